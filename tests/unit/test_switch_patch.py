"""Manifests switched: golden files, what stays, what is refused, and what a second switch does."""

from pathlib import Path

import pytest
import yaml

from kvgauge.failures import UsageError
from kvgauge.switch.check import check, settings_of
from kvgauge.switch.patch import Asked, put_back, switched
from kvgauge.switch.places import chosen, read
from kvgauge.switch.spans import CannotPatch

SAMPLES = Path(__file__).parents[1] / "samples" / "switch"
TO_LIBFABRIC = Asked(backend="LIBFABRIC", fabric="efa")
TO_UCX = Asked(backend="UCX", fabric="ib")
GOLDEN = [
    ("vllm-deployment", Asked(backend="LIBFABRIC", fabric="efa"), "minimal"),
    ("vllm-statefulset", Asked(backend="LIBFABRIC", fabric="efa"), "minimal"),
    ("dynamo-vllm-v1alpha1", Asked(backend="LIBFABRIC", fabric="efa"), "minimal"),
    ("dynamo-trtllm-v1beta1", Asked(backend="UCX", profile="reference"), "reference"),
    ("dynamo-sglang-v1alpha1", Asked(backend="LIBFABRIC", profile="reference"), "reference"),
]


def deployment(container: str, **more: str) -> str:
    """A Deployment whose container `vllm` holds these lines."""
    lines = "\n".join(f"          {line}" if line else "" for line in container.strip("\n").split("\n"))
    return f"""apiVersion: apps/v1
kind: Deployment
metadata: {{name: w}}
spec:
  template:
    spec:
      containers:
        - name: vllm
          image: vllm/vllm-openai:v0.17.1
{lines}
{more.get("after", "")}"""


ARGS = """
args:
  - --kv-transfer-config
  - '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'
"""


def amounts(text):
    manifest = read(text)
    return [check(settings_of(manifest, place, engine)) for place, engine in chosen(manifest, None)]


@pytest.mark.parametrize(("name", "asked", "profile"), GOLDEN)
def test_a_manifest_is_switched_to_the_golden_file_and_back_to_the_same_bytes(name, asked, profile):
    before = (SAMPLES / f"{name}.yaml").read_text()
    golden = (SAMPLES / f"{name}.{asked.backend.lower()}.yaml").read_text()
    assert switched(before, asked).text == golden
    assert switched(golden, asked).text == golden
    other = "UCX" if asked.backend == "LIBFABRIC" else "LIBFABRIC"
    back = switched(golden, Asked(backend=other, fabric="efa", profile=profile))
    assert back.text == before
    assert all("put back as it was" in line for line in back.done)
    assert {a.backend for a in amounts(golden)} == {asked.backend}


@pytest.mark.parametrize(("name", "asked", "profile"), GOLDEN)
def test_only_the_engines_variables_and_command_lines_differ_after_a_switch(name, asked, profile):
    def without(node):
        if isinstance(node, dict):
            return {k: without(v) for k, v in node.items() if k not in ("env", "envs", "args")}
        return [without(item) for item in node] if isinstance(node, list) else node

    before = list(yaml.safe_load_all((SAMPLES / f"{name}.yaml").read_text()))
    after = list(yaml.safe_load_all((SAMPLES / f"{name}.{asked.backend.lower()}.yaml").read_text()))
    assert before != after
    assert without(before) == without(after)


def test_other_containers_frontends_and_documents_keep_their_variables():
    text = (SAMPLES / "vllm-deployment.libfabric.yaml").read_text()
    sidecar, engine = yaml.safe_load_all(text).__iter__().__next__()["spec"]["template"]["spec"]["containers"]
    assert sidecar["env"] == [{"name": "UCX_TLS", "value": "tcp"}]
    names = [entry["name"] for entry in engine["env"]]
    assert names[:2] == ["HF_TOKEN", "VLLM_NIXL_SIDE_CHANNEL_PORT"]
    assert names[2:] == ["FI_PROVIDER", "FI_EFA_USE_DEVICE_RDMA", "FI_EFA_ENABLE_SHM_TRANSFER"]
    assert '"backends":["LIBFABRIC"]' in engine["args"][0]
    assert engine["args"][0].startswith("# the side channel must be reachable\n")


def test_ucx_libfabric_ucx_gives_the_file_that_the_first_switch_gave():
    first = switched(deployment(ARGS), Asked(backend="UCX", fabric="tcp", overwrite=True)).text
    assert "UCX_TLS" in first
    assert "# kvgauge" not in first
    assert switched(switched(first, TO_LIBFABRIC).text, Asked(backend="UCX", fabric="tcp")).text == first


def test_a_manifest_that_uses_the_backend_keeps_its_own_values_unless_told_to_overwrite():
    own = deployment(ARGS + "env:\n  - name: UCX_TLS\n    value: rc,tcp\n")
    kept = switched(own, TO_UCX)
    assert kept.text == own
    assert "--overwrite" in kept.done[0]
    asked = Asked(backend="UCX", fabric="ib", overwrite=True)
    new = switched(own, asked).text
    assert "rc,cuda_copy,cuda_ipc,sm,self" in new
    assert switched(new, asked).text == new


def test_a_manifest_that_names_the_other_backend_to_nobody_is_no_manifest_of_that_backend():
    text = deployment(ARGS + "env:\n  - name: NIXL_BACKEND\n    value: LIBFABRIC\n")
    assert amounts(text)[0].backend == "UCX"
    patched = switched(text, Asked(backend="UCX", fabric="tcp"))
    assert "NIXL_BACKEND" not in [
        e["name"] for e in yaml.safe_load(patched.text)["spec"]["template"]["spec"]["containers"][0]["env"]
    ]
    assert patched.done[0].startswith("Deployment/w/vllm: MIXED -> UCX")
    assert put_back(patched.text).text == text


def test_one_service_of_a_graph_can_be_switched_and_then_the_other_and_each_back():
    text = (SAMPLES / "dynamo-sglang-v1alpha1.yaml").read_text()
    one = switched(text, Asked(backend="LIBFABRIC", fabric="efa", services=("decode",)))
    assert [a.backend for a in amounts(one.text)] == ["LIBFABRIC", "UCX"]
    both = switched(one.text, Asked(backend="LIBFABRIC", fabric="efa", services=("prefill",)))
    assert [a.backend for a in amounts(both.text)] == ["LIBFABRIC", "LIBFABRIC"]
    again = switched(both.text, Asked(backend="UCX", fabric="ib", services=("decode",)))
    assert [a.backend for a in amounts(again.text)] == ["UCX", "LIBFABRIC"]
    assert switched(again.text, TO_UCX).text == text


@pytest.mark.parametrize("frontend", ["", "      extraPodSpec: {mainContainer: {image: x}}\n"])
def test_variables_of_a_whole_graph_go_whatever_its_other_services_hold(frontend):
    text = (
        "apiVersion: nvidia.com/v1alpha1\nkind: DynamoGraphDeployment\nmetadata: {name: g}\nspec:\n"
        "  envs:\n  - name: UCX_TLS\n    value: rc\n  services:\n"
        f"    Frontend:\n      componentType: frontend\n{frontend}"
        "    decode:\n      componentType: worker\n      subComponentType: decode\n      extraPodSpec:\n"
        "        mainContainer:\n          command: [vllm, serve, m]\n"
        '          args: [--kv-transfer-config, \'{"kv_connector":"NixlConnector"}\']\n'
    )
    there = switched(text, Asked(backend="LIBFABRIC", fabric="efa")).text
    assert "\n  envs: []\n" in there
    assert switched(there, Asked(backend="UCX", fabric="ib")).text == text


def test_variables_of_a_whole_graph_are_not_changed_for_one_of_its_services():
    text = (SAMPLES / "dynamo-vllm-v1alpha1.yaml").read_text()
    with pytest.raises(CannotPatch, match=r"UCX_TLS stands in the graph's own variables.*switch all services"):
        switched(text, Asked(backend="LIBFABRIC", fabric="efa", services=("VllmDecodeWorker",)))
    golden = (SAMPLES / "dynamo-vllm-v1alpha1.libfabric.yaml").read_text()
    with pytest.raises(CannotPatch, match="without --service"):
        switched(golden, Asked(backend="UCX", fabric="ib", services=("VllmDecodeWorker",)))


def test_a_variable_in_two_lists_is_kept_in_the_one_that_wins():
    text = (SAMPLES / "dynamo-sglang-v1alpha1.yaml").read_text()
    text = text.replace("          env: []\n", "          env:\n          - {name: FI_PROVIDER, value: tcp}\n")
    text = text.replace(
        "      subComponentType: decode\n",
        "      subComponentType: decode\n      envs:\n      - name: FI_PROVIDER\n        value: tcp\n",
    )
    patched = switched(text, TO_LIBFABRIC).text
    decode = yaml.safe_load(patched)["spec"]["services"]["decode"]
    assert decode["envs"] == []
    assert {"name": "FI_PROVIDER", "value": "efa"} in decode["extraPodSpec"]["mainContainer"]["env"]
    assert switched(patched, TO_UCX).text == text


@pytest.mark.parametrize(
    "line",
    [
        """'{"kv_connector":"NixlConnector","kv_connector_extra_config":{"backends":["UCX"]}}'""",
        r'''"{\"kv_connector\":\"NixlConnector\",\"kv_connector_extra_config\":{\"backends\":[\"UCX\"]}}"''',
        """|\n    {"kv_connector":"NixlConnector",\n     "kv_connector_extra_config": {"backends": [ "UCX" ], "x": 1}}""",
        """>-\n    {"kv_connector":"NixlConnector",\n    "kv_connector_extra_config": {"backends": [ "UCX" ]}}""",
        """'{"kv_connector":"NixlPullConnector",\n     "kv_connector_extra_config":{"backends":["UCX"]}}'""",
    ],
)
def test_json_is_patched_where_it_stands_whatever_quotes_hold_it(line):
    text = deployment(f"args:\n  - --kv-transfer-config\n  - {line}\n  - --seed\n  - '1'")
    patched = switched(text, TO_LIBFABRIC).text
    args = yaml.safe_load(patched)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[2:4] == ["--seed", "1"]
    before = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"][0]["args"][1]
    assert args[1].replace("LIBFABRIC", "UCX").replace(" ", "") == before.replace(" ", "")
    assert switched(patched, TO_UCX).text == text


@pytest.mark.parametrize(
    "script",
    [
        """vllm serve m --kv-transfer-config '{"kv_connector":"NixlConnector"}'""",
        r"""vllm serve m --kv-transfer-config "{\"kv_connector\":\"NixlConnector\"}" """,
        r"""exec vllm serve m --kv-transfer-config={\"kv_connector\":\"NixlConnector\"} > log 2>&1""",
        """cd /x; python3 -m dynamo.vllm --model m \\\n  --kv-transfer-config '{"kv_connector": "NixlConnector",\n  "kv_role": "kv_both"}' & wait""",
    ],
)
@pytest.mark.parametrize("style", ["|", "double"])
def test_json_in_a_shell_script_is_patched_in_the_scripts_own_quotes(script, style):
    if style == "|":
        body = "\n".join(f"    {line}" for line in script.split("\n"))
        item = f"|\n{body}"
    else:
        item = '"' + script.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    text = deployment(f"command: [bash, -ec]\nargs:\n  - {item}")
    patched = switched(text, TO_LIBFABRIC).text
    assert amounts(patched)[0].backend == "LIBFABRIC"
    assert switched(patched, TO_UCX).text == text


def test_a_multi_connector_has_its_nixl_part_switched_and_the_rest_left():
    config = (
        '{"kv_connector":"MultiConnector","kv_connector_extra_config":{"connectors":['
        '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"},{"kv_connector":"NixlConnector"},'
        '{"kv_connector":"NixlConnector","kv_connector_extra_config":{"backends":["UCX"]}}]}}'
    )
    text = deployment(f"args:\n  - --kv-transfer-config\n  - '{config}'")
    patched = switched(text, TO_LIBFABRIC).text
    assert patched.count('"backends":["LIBFABRIC"]') == 2
    assert switched(patched, TO_UCX).text == text


@pytest.mark.parametrize("flag", ["backends+", "backends"])
def test_vllms_dotted_arguments_are_switched_too(flag):
    value = "UCX" if flag.endswith("+") else """'["UCX"]'"""
    text = deployment(
        f"args: [--kv-transfer-config.kv_connector, NixlConnector, --kv-transfer-config.kv_connector_extra_config.{flag}, {value}]"
    )
    patched = switched(text, TO_LIBFABRIC).text
    assert amounts(patched)[0].backend == "LIBFABRIC"
    assert switched(patched, TO_UCX).text == text


def test_dotted_arguments_that_name_no_backend_get_one():
    text = deployment("args: [--model, m, --kv-transfer-config.kv_connector, NixlConnector]")
    patched = switched(text, TO_LIBFABRIC).text
    args = yaml.safe_load(patched)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[4:] == ["--kv-transfer-config.kv_connector_extra_config.backends+", "LIBFABRIC"]
    assert amounts(patched)[0].backend == "LIBFABRIC"
    assert switched(patched, TO_UCX).text == text


def test_sglang_over_mooncake_is_moved_to_nixl_and_undo_puts_mooncake_back():
    text = deployment("args: [--disaggregation-mode, prefill, --disaggregation-transfer-backend=mooncake]").replace(
        "vllm/vllm-openai:v0.17.1", "lmsysorg/sglang:v0.5.8"
    )
    patched = switched(text, TO_LIBFABRIC)
    assert "--disaggregation-transfer-backend=nixl" in patched.text
    assert patched.done[0].startswith("Deployment/w/vllm: OTHER -> LIBFABRIC")
    assert put_back(patched.text).text == text


def test_tensorrt_llm_past_nixl_is_brought_to_nixl_for_libfabric():
    text = deployment(
        "command: [python3, -m, dynamo.trtllm]\n"
        "args:\n"
        """  - --override-engine-args\n  - '{"cache_transceiver_config": {"backend": "UCX"}, "x": 1}'\n"""
        "env:\n  - name: TRTLLM_USE_UCX_KVCACHE\n    value: '1'\n"
    )
    patched = switched(text, TO_LIBFABRIC).text
    container = yaml.safe_load(patched)["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][1] == '{"cache_transceiver_config": {"backend": "NIXL"}, "x": 1}'
    assert "TRTLLM_USE_UCX_KVCACHE" not in [e["name"] for e in container["env"]]
    assert put_back(patched).text == text


def test_windows_line_ends_and_a_missing_last_one_come_back():
    text = deployment(ARGS + "env:\n  - name: UCX_TLS\n    value: rc").rstrip("\n").replace("\n", "\r\n")
    patched = switched(text, TO_LIBFABRIC).text
    assert "\n" not in patched.replace("\r\n", "")
    assert switched(patched, TO_UCX).text == text


def test_an_edit_by_hand_beside_the_switch_stays_and_one_inside_it_is_not_thrown_away():
    text = deployment(ARGS)
    patched = switched(text, TO_LIBFABRIC).text
    beside = patched.replace("image: vllm/vllm-openai:v0.17.1", "image: vllm/vllm-openai:v0.18.0")
    assert switched(beside, TO_UCX).text == text.replace("v0.17.1", "v0.18.0")
    inside = patched.replace("value: efa", "value: efa,tcp")
    with pytest.raises(CannotPatch, match="edited by hand since the switch"):
        switched(inside, TO_UCX)
    with pytest.raises(CannotPatch, match="are gone"):
        switched(patched.replace("# kvgauge end\n", ""), TO_UCX)
    with pytest.raises(CannotPatch, match="line was changed"):
        switched(patched.replace(" kept, ", ", "), TO_UCX)
    with pytest.raises(CannotPatch, match="without its beginning"):
        switched(text + "# kvgauge end\n", TO_UCX)
    with pytest.raises(CannotPatch, match="nothing to undo"):
        put_back(text)


ENV = "env:\n  - name: UCX_TLS\n    value: rc\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (deployment(ARGS + "env:\n  - name: UCX_TLS\n    valueFrom:\n      configMapKeyRef: {name: a, key: b}"), "valueFrom"),
        (deployment(ARGS + "env: [{name: UCX_TLS, value: rc}]"), "written in brackets"),
        (deployment(ARGS + ENV + "  - name: UCX_TLS\n    value: tcp"), "stands 2 times"),
        (deployment(ARGS + ENV + "  - name: B\n    value: use $(UCX_TLS)"), r"\$\(UCX_TLS\) is used elsewhere"),
        (deployment(ARGS + "env:\n  - name: FI_PROVIDER\n    value: |\n      tcp"), "block of text"),
        (deployment("args:\n  - --kv-transfer-config\n  - '{nonsense'"), "does not hold JSON"),
        (deployment("""args:\n  - --kv-transfer-config\n  - '{"kv_connector":"LMCacheConnectorV1"}'"""), "not by a NIXL connector"),
        (deployment(ARGS + ARGS.split("\n", 2)[2]), "stands 2 times"),
        (deployment("command: [sh, -c]\nargs:\n  - UCX_TLS=tcp vllm serve m"), "sets UCX_TLS itself"),
        (deployment("command: [sh, -c]\nargs:\n  - vllm serve 'm"), "never ends"),
        (deployment("args: ['{{ .Values.model }}']"), "Helm template"),
        (deployment("args: [a"), "no YAML"),
        (deployment("args: [--model, m]"), "this worker moves no KV"),
        (deployment("args: [--model, m]").replace("vllm/vllm-openai", "sglang"), "this worker moves no KV"),
        ('{"kind": "Deployment"}', "JSON"),
        ("kind: Service\n", "no container that runs"),
        (deployment("args:\n  - vllm\n").replace("vllm/vllm-openai", "postgres").replace("name: vllm", "name: db"), "no container that runs"),
    ],
)  # fmt: skip
def test_what_cannot_be_patched_safely_is_refused_by_name(text, says):
    with pytest.raises(UsageError, match=says):
        switched(text, TO_LIBFABRIC)


def test_lists_shared_by_anchors_are_refused():
    text = deployment(ARGS + "env: &shared\n  - name: UCX_TLS\n    value: rc")
    shared = text + "      initContainers:\n        - name: j\n          env: *shared\n"
    with pytest.raises(CannotPatch, match="shared by a YAML anchor"):
        switched(shared, TO_LIBFABRIC)
    merged = deployment("<<: {resources: {}}\n" + ARGS.strip())
    with pytest.raises(CannotPatch, match="merge"):
        switched(merged, TO_LIBFABRIC)


def test_variables_from_a_config_map_of_the_file_that_would_have_to_go_are_refused():
    config_map = "---\nkind: ConfigMap\nmetadata: {name: net}\ndata:\n  UCX_TLS: rc\n"
    text = deployment(ARGS + "envFrom:\n  - configMapRef: {name: net}", after=config_map)
    with pytest.raises(CannotPatch, match=r"UCX_TLS must go and come from ConfigMap net"):
        switched(text, TO_LIBFABRIC)
    assert amounts(text)[0].settings.environment == {"UCX_TLS": "rc"}
    engine = (
        "---\nkind: ConfigMap\nmetadata: {name: e}\ndata:\n  e.yaml: |\n    cache_transceiver_config: {backend: UCX}\n"
    )
    trtllm = deployment("command: [trtllm-serve, m, --config, e.yaml]", after=engine)
    with pytest.raises(CannotPatch, match="goes past NIXL"):
        switched(trtllm, TO_LIBFABRIC)


def test_a_named_container_is_switched_and_an_unknown_one_is_answered_with_those_there_are():
    text = (SAMPLES / "vllm-deployment.yaml").read_text()
    named = switched(text, Asked(backend="LIBFABRIC", fabric="efa", containers=("vllm",)))
    assert named.text == (SAMPLES / "vllm-deployment.libfabric.yaml").read_text()
    with pytest.raises(CannotPatch, match=r"no nope here: .*Deployment/vllm-prefill/vllm \(vllm\).*--container"):
        switched(text, Asked(backend="LIBFABRIC", fabric="efa", containers=("nope",)))
    with pytest.raises(CannotPatch, match="no container that runs sglang"):
        switched(text, Asked(backend="LIBFABRIC", fabric="efa", engine="sglang"))


def test_a_workload_that_was_renamed_after_the_switch_is_not_switched_over_it():
    patched = switched(deployment(ARGS), TO_LIBFABRIC).text.replace("metadata: {name: w}", "metadata: {name: new}")
    with pytest.raises(CannotPatch, match=r"switched for Deployment/w/vllm, which it no longer holds.*--undo"):
        switched(patched, TO_UCX)
    assert put_back(patched).text == deployment(ARGS).replace("{name: w}", "{name: new}")


def test_the_same_name_in_two_namespaces_or_in_leader_and_worker_is_two_places():
    one = deployment(ARGS).replace("{name: w}", "{name: w, namespace: a}")
    two = one + "---\n" + one.replace("namespace: a", "namespace: b")
    patched = switched(two, TO_LIBFABRIC)
    assert len(patched.done) == 2
    assert switched(patched.text, TO_UCX).text == two
    with pytest.raises(CannotPatch, match="two containers are called"):
        switched(one + "---\n" + one, TO_LIBFABRIC)
    pod = "      spec:\n        containers:\n        - name: vllm\n          image: vllm/vllm-openai\n"
    pod += '          args: [--kv-transfer-config, \'{"kv_connector":"NixlConnector"}\']\n'
    group = "kind: LeaderWorkerSet\nmetadata: {name: g}\nspec:\n  leaderWorkerTemplate:\n"
    group += f"    leaderTemplate:\n{pod}    workerTemplate:\n{pod}"
    assert len(switched(group, TO_LIBFABRIC).done) == 2


def test_aliases_that_explode_or_hold_themselves_are_refused_quickly():
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqrstuvw", "bcdefghijklmnopqrstuvwx", strict=True)
    )
    for text in (bomb, "a: &a [*a]\n"):
        with pytest.raises(CannotPatch, match=r"stand for more than|no YAML"):
            read(text)


def test_a_container_of_a_list_is_found():
    indented = "".join(f"  {line}" for line in deployment(ARGS).splitlines(keepends=True))
    text = "kind: List\nitems:\n- " + indented.lstrip()
    patched = switched(text, TO_LIBFABRIC)
    assert switched(patched.text, TO_UCX).text == text
