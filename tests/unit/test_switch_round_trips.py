"""Whatever a manifest looks like, switching it and back gives the same bytes, and switching twice is switching once."""

from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.failures import UsageError
from kvgauge.switch import kv_json, regions, table
from kvgauge.switch.check import check, settings_of
from kvgauge.switch.patch import Asked, put_back, switched
from kvgauge.switch.places import chosen, read
from kvgauge.switch.spans import Mapped, scalar, shell_words
from kvgauge.switch.variables import VARIABLES

FABRIC = {"UCX": "tcp", "LIBFABRIC": "efa"}
NAMES = [*VARIABLES, "HF_HOME", "NCCL_DEBUG"]
COMMENTS = st.sampled_from(["", "  # why", "   #| odd", " # kvgauge says"])
VALUES = st.sampled_from(
    ["1", "efa", "tcp,cuda_copy,sm,self", "rc", "é:# x", "it's", 'a "b"', "off", "LIBFABRIC", "UCX"]
)


def yaml_quoted(draw, value):
    style = draw(st.sampled_from("'\""))
    if style == "'":
        return "'" + value.replace("'", "''") + "'"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def variables(draw, indent):
    """A list of variables under a key, in one of the styles people use; sometimes none."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6))
    kind = draw(st.sampled_from(["lines", "braces", "empty", "none"]))
    if kind == "none":
        return []
    if kind == "empty" or not names:
        return [f"{indent}env: []"]
    dash = indent + draw(st.sampled_from(["", "  "]))
    lines = [f"{indent}env:{draw(COMMENTS)}"]
    for name in names:
        value = yaml_quoted(draw, draw(VALUES))
        if draw(st.booleans()):
            lines.append(f"{dash}# about {name}")
        if kind == "braces":
            lines.append(f"{dash}- {{name: {name}, value: {value}}}{draw(COMMENTS)}")
        elif draw(st.booleans()):
            lines += [f"{dash}- name: {name}{draw(COMMENTS)}", f"{dash}  value: {value}{draw(COMMENTS)}"]
        else:
            lines += [
                f"{dash}- value: {value}",
                "" if draw(st.booleans()) else f"{dash}  # between",
                f"{dash}  name: {name}",
            ]
        if draw(st.booleans()):
            lines.append("")
    return lines


CONFIGS = st.sampled_from(
    [
        '{"kv_connector":"NixlConnector","kv_role":"kv_both"}',
        '{"kv_connector": "NixlConnector", "kv_connector_extra_config": {"backends": ["UCX"], "num_threads": 2}}',
        '{ "kv_connector_extra_config":{ "backends":["LIBFABRIC"]},"kv_connector":"NixlPushConnector" }',
        '{"kv_connector_extra_config":{},"kv_connector":"NixlConnector","x":{"backends":["no"]}}',
    ]
)


@st.composite
def command(draw, indent, engine):
    """A command line: a list with dashes, one in brackets, or a script for the shell."""
    program = {
        "vllm": ["python3", "-m", "dynamo.vllm"],
        "trtllm": ["python3", "-m", "dynamo.trtllm"],
        "sglang": ["python3", "-m", "dynamo.sglang"],
    }[engine]
    arguments = {
        "vllm": ["--model", "m", "--kv-transfer-config", draw(CONFIGS)],
        "trtllm": ["--model-path", "m", "--disaggregation-mode", "decode"],
        "sglang": ["--disaggregation-mode", "decode", "--disaggregation-transfer-backend", "nixl"],
    }[engine]
    kind = draw(st.sampled_from(["dashes", "brackets", "literal", "folded", "quoted"]))
    if kind == "dashes":
        dash = indent + draw(st.sampled_from(["", "  "]))
        lines = [f"{indent}command: [{', '.join(program)}]", f"{indent}args:"]
        return lines + [f"{dash}- {yaml_quoted(draw, a)}{draw(COMMENTS)}" for a in arguments]
    if kind == "brackets":
        quoted = [yaml_quoted(draw, a) for a in arguments]
        return [f"{indent}command: [{', '.join(program)}]", f"{indent}args: [{', '.join(quoted)}]"]
    words = [*program, *("'" + a + "'" if "{" in a else a for a in arguments)]
    head = f'{indent}command: ["/bin/bash", "-c"]'
    if kind == "quoted":
        return [head, f"{indent}args:", f"{indent}- {yaml_quoted(draw, 'set -e; ' + ' '.join(words))}"]
    script = [
        f"{indent}    # the engine",
        f"{indent}    exec {' '.join(words[:3])} \\",
        f"{indent}      {' '.join(words[3:])}",
    ]
    if kind == "folded":
        return [
            head,
            f"{indent}args:",
            f"{indent}  - >-",
            script[1].removesuffix(" \\"),
            f"{indent}    {' '.join(words[3:])}",
            "",
        ]
    return [head, f"{indent}args:", f"{indent}  - |", *script, "", f"{indent}    echo end"]


@st.composite
def container(draw, indent, engine):
    parts = [
        draw(command(indent, engine)),
        draw(variables(indent)),
        [f"{indent}image: x/{engine}-runtime:1", "", f"{indent}# gpu"],
    ]
    return [line for part in draw(st.permutations(parts)) for line in part]


@st.composite
def manifests(draw):
    engine = draw(st.sampled_from(table.ENGINES))
    kind = draw(st.sampled_from(["Deployment", "StatefulSet", "v1alpha1", "v1beta1"]))
    if kind in ("Deployment", "StatefulSet"):
        lines = [
            "# top",
            "apiVersion: apps/v1",
            f"kind: {kind}",
            "metadata: {name: w}",
            "spec:",
            "  template:",
            "    spec:",
        ]
        lines += ["      containers:", "      - name: a", *draw(container("        ", engine))]
        if draw(st.booleans()):
            lines += [
                "      - image: sidecar",
                "        name: b",
                "        env:",
                "        - {name: UCX_TLS, value: x}",
            ]
    elif kind == "v1alpha1":
        lines = [
            "apiVersion: nvidia.com/v1alpha1",
            "kind: DynamoGraphDeployment",
            "metadata: {name: g}",
            "spec:",
            "  services:",
        ]
        for name in ("decode", "prefill"):
            lines += [f"    {name}:  # {name}", "      componentType: worker", f"      subComponentType: {name}"]
            lines += ["      extraPodSpec:", "        mainContainer:", *draw(container("          ", engine))]
        lines += ["    Frontend:", "      componentType: frontend", "      envs:", "      - {name: UCX_TLS, value: x}"]
    else:
        lines = [
            "apiVersion: nvidia.com/v1beta1",
            "kind: DynamoGraphDeployment",
            "metadata: {name: g}",
            "spec:",
            "  components:",
        ]
        for name in ("decode", "prefill"):
            lines += [
                f"  - name: {name}",
                f"    type: {name}",
                "    podTemplate:",
                "      spec:",
                "        containers:",
            ]
            lines += ["        - name: main", *draw(container("          ", engine))]
    if draw(st.booleans()):
        lines += ["---", "# another document", "kind: Service", "metadata: {name: s}"]
    text = "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n", "\n# end\n"]))
    return text.replace("\n", "\r\n") if draw(st.booleans()) else text


def cleans(text):
    manifest = read(text)
    return {check(settings_of(manifest, place, engine)).clean for place, engine in chosen(manifest, None)}


@settings(max_examples=15, deadline=None)
@given(manifests(), st.sampled_from(table.BACKENDS), st.sampled_from(table.PROFILES))
def test_there_and_back_gives_the_same_bytes_and_twice_is_once(text, backend, profile):
    def to(which, was):
        return switched(was, Asked(backend=which, profile=profile, fabric=FABRIC[which])).text

    other = "LIBFABRIC" if backend == "UCX" else "UCX"
    there = to(backend, text)
    assert cleans(there) == {backend}
    assert to(backend, there) == there
    away = to(other, there)
    assert cleans(away) == {other}
    assert to(other, away) == away
    assert to(backend, away) == there
    if there != text:
        assert put_back(there).text == text
    if cleans(text) == {other}:
        assert to(other, there) == text


@settings(max_examples=6, deadline=None)
@given(manifests())
def test_overwriting_writes_the_profile_for_good_and_changes_no_second_time(text):
    asked = Asked(backend="UCX", fabric="tcp", overwrite=True)
    once = switched(text, asked).text
    assert switched(once, asked).text == once
    assert cleans(once) == {"UCX"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.sampled_from([None, 1]), st.data())
def test_only_the_backends_of_a_kv_config_change(extra, indent, data):
    import json

    config = {**extra, "kv_connector": "NixlConnector"}
    if data.draw(st.booleans()):
        config["kv_connector_extra_config"] = data.draw(st.dictionaries(st.text(max_size=4), JSON, max_size=2))
    text = json.dumps(config, indent=indent, ensure_ascii=data.draw(st.booleans()))
    for start, end, new in kv_json.with_backend(text, "LIBFABRIC"):
        text = text[:start] + new + text[end:]
    got = json.loads(text)
    assert kv_json.nixl_backends(got) == [["LIBFABRIC"]]
    got["kv_connector_extra_config"].pop("backends")
    config.setdefault("kv_connector_extra_config", {}).pop("backends", None)
    assert got == config
    assert kv_json.with_backend(text, "LIBFABRIC") == []


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20),
    st.sampled_from("'\""),
    st.data(),
)
def test_a_part_of_a_quoted_value_is_replaced_and_nothing_beside_it(value, style, data):
    source = "a: " + (
        "'" + value.replace("'", "''") + "'"
        if style == "'"
        else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    )
    node = yaml.compose(source).value[0][1]
    start = data.draw(st.integers(0, len(value) - 1))
    end = data.draw(st.integers(start, len(value)))
    new = data.draw(st.sampled_from(["", "x", "it's", '"q"', "\\"]))
    edit = scalar(source, node).replace(start, end, new)
    assert (
        yaml.safe_load(source[: edit.start] + edit.new + source[edit.end :])["a"] == value[:start] + new + value[end:]
    )


@settings(max_examples=100, deadline=None)
@given(st.text("abc '\"\\\n;#$", max_size=12))
def test_shell_words_are_those_of_the_shell(word):
    import shlex

    script = f"echo {shlex.quote(word)} \"a b\"c 'd'\\ e # no"
    plain = Mapped(
        text=script, spans=tuple((i, i + 1) for i in range(len(script))), quotes=(lambda text: text,) * len(script)
    )
    words = [mapped.text for mapped, _ in shell_words(plain)]
    assert words == [w for w in ["echo", word, "a bc", "d e"] if w]
    if word and "'" not in word:  # shlex quotes with several kinds of quotes then, and a part of one kind is replaced
        edit = shell_words(plain)[1][0].replace(0, len(word), 'it\'s "x"')
        assert shlex.split(script[: edit.start] + edit.new + script[edit.end :], comments=True)[1] == 'it\'s "x"'


SAMPLES = [p.read_text() for p in sorted((Path(__file__).parents[1] / "samples" / "switch").glob("*.yaml"))]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_a_damaged_manifest_is_refused_in_words_or_comes_back_whole(text, data):
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        new = data.draw(
            st.sampled_from(["", "#", "'", '"', "\n", " ", "- ", ": ", "{", "]", "&a ", "*a", "|", "$(UCX_TLS)", "é"])
        )
        text = text[:at] + new + text[at + data.draw(st.integers(0, 12)) :]
    try:
        there = switched(text, Asked(backend="LIBFABRIC", fabric="efa"))
    except UsageError as error:
        assert str(error)
        return
    assert regions.put_back(there.text) == regions.put_back(text)


def test_a_script_that_ends_the_file_without_a_line_end_stays_whole():
    text = (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: w}\nspec:\n  template:\n    spec:\n"
        "      containers:\n      - name: a\n        image: x/trtllm-runtime:1\n"
        '        command: ["/bin/bash", "-c"]\n        args:\n          - |\n'
        "            exec python3 -m dynamo.trtllm --model-path m --disaggregation-mode decode\n\n            echo end"
    )
    away = switched(text, Asked(backend="LIBFABRIC", profile="reference", fabric="efa")).text
    assert switched(away, Asked(backend="UCX", profile="reference", fabric="tcp")).text != away
    assert put_back(away).text == text
