"""What is said of a p5, an InfiniBand host, a laptop and pods: facts read from copies of them, then judged."""

import msgspec
import pytest

import trees
from kvgauge.builds.pins import known_versions
from kvgauge.doctor import fabrics, host, judge_variables, needs
from kvgauge.doctor.examine import judge, unread
from kvgauge.doctor.records import Attempt, Facts, FoundBuild, Plugin
from kvgauge.evidence.cgroups import Cgroups
from kvgauge.evidence.tree import Tree
from kvgauge.plan import read
from kvgauge.switch.transports import expand
from kvgauge.switch.variables import NOBODY, VARIABLES
from trees import GIB, MIB

LIBRARIES = {name: f"/usr/lib64/{name}" for name in ("libibverbs.so.1", "libefa.so.1", "libmlx5.so.1")}
PLAN = """
name: a plan
repetitions: 2
primary: {{metric: ttft_ms_mean, cell: c}}
tests:
  - {{name: one, backend: {backend}, fabric: {fabric}, build: 1.5.0, model: {model}{more}}}
cells:
  - {{name: c, load: closed, concurrency: {concurrency}, requests: 1000, input_tokens: 512, output_tokens: 8}}
"""


def facts_of(
    machine, *, shm=(8 * GIB, 8 * GIB), address="10.0.0.5", libcuda="/usr/lib64/libcuda.so.1", variables=None, **more
):
    tree = Tree(machine.root)
    cgroups, variables = Cgroups(tree), variables or {}
    seen = {
        name: (tree.number(f"/sys/class/net/{name}/flags"), None if name == "lo" else address)
        for name in tree.names("/sys/class/net")
    }
    names = [name for name in seen if name != "lo"]
    facts = Facts(
        memory=host.memory(tree, cgroups, shm),
        limits=host.limits(tree, cgroups),
        processor=msgspec.structs.replace(
            host.processor(tree, cgroups), busy=0.1, steal=0.0, watched_s=0.8, clock_read_ns=50
        ),
        place=host.place(tree, variables),
        fabrics=fabrics.fabrics(tree, LIBRARIES.get),
        gpus=fabrics.gpus(tree, libcuda),
        network=fabrics.network(tree, seen, names[-1] if names else None),
        variables=variables,
    )
    return msgspec.structs.replace(facts, **more)


def a_plan(backend="LIBFABRIC", fabric="efa", model="Qwen3-0.6B", concurrency=4, more=""):
    text = PLAN.format(backend=backend, fabric=fabric, model=model, concurrency=concurrency, more=more)
    return read.read(text, source="test", known_builds=known_versions())


def said(facts, plan=None):
    """key -> finding; and the examination"""
    examination = judge(facts, needs.of_plan(plan) if plan else needs.of_machine(facts))
    return {finding.key: finding for finding in examination.findings}, examination


def test_a_p5_with_room_has_no_problem(tmp_path):
    facts = facts_of(trees.efa_p5(tmp_path), variables={"FI_EFA_ENABLE_SHM_TRANSFER": "0", "FI_EFA_USE_HUGE_PAGE": "0"})
    found, examination = said(facts)
    assert examination.exit_code == 0
    assert "32 EFA devices are here" in examination.looked_for
    assert found["fabric.efa"].seen.startswith("32 efa devices")
    assert found["memory.efa"].level == "ok"
    assert found["gpu.direct"].seen == "GPUDirect RDMA by NVIDIA"
    assert found["fabric.efa_installer"].seen == "EFA installer 1.48.0"
    assert [f.key for f in examination.findings if f.level == "warning"] == []


@pytest.mark.parametrize(
    ("limit", "level"), [(64 * GIB, "problem"), (100 * GIB, "warning"), (128 * GIB, "ok"), (256 * GIB, "ok")]
)
def test_32_devices_in_a_pod_are_judged_by_the_pods_memory_not_the_hosts(tmp_path, limit, level):
    machine = trees.pod_v2(trees.efa_p5(tmp_path), limit=limit)
    found, examination = said(facts_of(machine))
    assert found["memory.efa"].level == level
    assert examination.exit_code == (1 if level == "problem" else 0)
    if level != "ok":
        assert "128 GiB" in found["memory.efa"].remedy


def test_a_pod_of_cgroup_v1_is_judged_alike(tmp_path):
    machine = trees.pod_v1(trees.efa_p5(tmp_path), limit=64 * GIB)
    assert said(facts_of(machine))[0]["memory.efa"].level == "problem"


def test_four_devices_need_less_and_the_figure_is_called_a_guess(tmp_path):
    machine = trees.pod_v2(trees.efa_p5(tmp_path, devices=4, uverbs=4), limit=12 * GIB)
    finding = said(facts_of(machine))[0]["memory.efa"]
    assert (finding.level, "16 GiB" in finding.needed, "a guess" in finding.needed) == ("warning", True, True)


def test_devices_that_sysfs_shows_but_the_pod_cannot_open_are_a_problem(tmp_path):
    found, examination = said(facts_of(trees.efa_p5(tmp_path, uverbs=0)))
    assert found["fabric.uverbs"].level == "problem"
    assert "fall back to TCP" in found["fabric.uverbs"].needed
    assert examination.exit_code == 1


def test_some_of_the_devices_are_worth_a_word_about_rails(tmp_path):
    finding = said(facts_of(trees.efa_p5(tmp_path, uverbs=8)))[0]["fabric.uverbs"]
    assert (finding.level, finding.seen) == ("note", "8 of 32 RDMA devices can be opened here")


def test_memory_that_may_not_be_locked_is_a_problem_for_efa_and_a_note_for_a_laptop(tmp_path):
    efa = said(facts_of(trees.efa_p5(tmp_path / "p5", memlock=64 * MIB)))[0]["limits.memlock"]
    assert (efa.level, efa.seen) == ("problem", "ulimit -l: 64 MiB")
    assert said(facts_of(trees.laptop(tmp_path / "laptop")))[0]["limits.memlock"].level == "note"


def test_the_lock_capability_lifts_the_limit(tmp_path):
    machine = trees.efa_p5(tmp_path, memlock=64 * MIB)
    machine.write({"/proc/self/status": trees.STATUS.format(caps="000001ffffffffff", cpus="0-191")})
    assert said(facts_of(machine))[0]["limits.memlock"].level == "ok"


def test_an_infiniband_host_without_peer_memory_is_warned_of_and_a_port_that_is_down_named(tmp_path):
    found, examination = said(facts_of(trees.infiniband(tmp_path)))
    assert "asked for: UCX over ib (8 mlx5 devices are here)" in examination.looked_for
    assert (found["fabric.mlx5"].level, "not active: mlx5_7" in found["fabric.mlx5"].seen) == ("warning", True)
    assert found["gpu.direct"].level == "warning"
    assert "nvidia_peermem" in found["gpu.direct"].remedy
    assert found["variables.ucx_rails"].level == "note"
    assert "fabric.efa_missing" not in found


def test_the_open_driver_brings_gpudirect_by_dmabuf(tmp_path):
    machine = trees.infiniband(tmp_path)
    trees.gpus(machine, "NVIDIA H100", 8, module="NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  x")
    assert "dmabuf" in said(facts_of(machine))[0]["gpu.direct"].seen


def test_gpu_memory_that_others_hold_is_named_and_an_idle_gpu_is_not(tmp_path):
    machine = trees.laptop(tmp_path)
    trees.gpus(machine, "NVIDIA H100", 2)
    facts = facts_of(machine)
    tool = "NVIDIA H100, 580.1, 70656 MiB, 81559 MiB\nNVIDIA H100, 580.1, 4 MiB, 81559 MiB\nodd line"
    found, _ = said(msgspec.structs.replace(facts, gpus=msgspec.structs.replace(facts.gpus, tool=tool)))
    assert "GPU 0: 70,656 of 81,559 MiB" in found["gpu.in_use"].seen
    assert "GPU 1" not in found["gpu.in_use"].seen
    assert "cannot register GPU memory" in found["gpu.libfabric_tcp"].seen


def test_a_gpu_without_libcuda_is_a_problem(tmp_path):
    assert said(facts_of(trees.infiniband(tmp_path), libcuda=None))[0]["gpu.libcuda"].level == "problem"


def test_a_laptop_can_rehearse_and_is_told_what_that_is_worth(tmp_path):
    found, examination = said(facts_of(trees.laptop(tmp_path)))
    assert examination.exit_code == 0
    assert "only use tcp" in found["fabric.efa_missing"].seen
    assert "powersave" in found["processor.governor"].seen
    assert "wireless" in found["network.bound"].seen
    assert found["network.bound"].level == "note"


def test_a_plan_over_efa_on_a_laptop_has_a_problem(tmp_path):
    found, examination = said(facts_of(trees.laptop(tmp_path)), a_plan())
    assert found["fabric.efa_missing"].level == "problem"
    assert examination.exit_code == 1


def test_a_plan_over_tcp_on_a_laptop_asks_for_nothing_it_does_not_use(tmp_path):
    found, examination = said(facts_of(trees.laptop(tmp_path), shm=None), a_plan(fabric="tcp"))
    assert examination.exit_code == 0
    assert not {"fabric.efa_missing", "gpu.none", "memory.shm", "memory.efa"} & set(found)


def test_libfabric_over_tcp_needs_an_interface_that_is_not_loopback_and_ucx_does_not(tmp_path):
    machine = trees.Machine(tmp_path)
    machine.interface("lo", flags=0x49)
    facts = facts_of(machine)
    assert said(facts, a_plan(fabric="tcp"))[0]["network.bound"].level == "problem"
    assert said(facts, a_plan(backend="UCX", fabric="tcp"))[0]["network.bound"].level == "note"


def test_loopback_that_is_down_is_a_problem(tmp_path):
    machine = trees.laptop(tmp_path)
    machine.interface("lo", flags=0x8)
    assert said(facts_of(machine))[0]["network.loopback"].level == "problem"


def test_pools_that_do_not_fit_into_the_pod_are_a_problem_and_cut_ones_a_warning(tmp_path):
    plan = a_plan(fabric="tcp", model="Llama-3.1-70B", concurrency=200, more=", tp: 8")

    def level(limit):
        machine = trees.pod_v2(trees.laptop(tmp_path / str(limit), memory=512 * GIB), limit=limit, used=0)
        return said(facts_of(machine), plan)[0]["memory.pools"].level

    assert [level(limit) for limit in (256 * MIB, 32 * GIB, 400 * GIB)] == ["problem", "warning", "ok"]


def test_files_ports_and_cores_are_held_against_the_plans_concurrency(tmp_path):
    machine = trees.laptop(tmp_path, files=256)
    machine.write({"/proc/sys/net/ipv4/ip_local_port_range": "60000 60400"})
    plan = a_plan(fabric="tcp", concurrency=500, more=", progress_thread: true, prefill_workers: 8, decode_workers: 8")
    found, examination = said(facts_of(machine), plan)
    assert [found[key].level for key in ("limits.files", "network.ports", "processor.cores")] == [
        "problem",
        "problem",
        "warning",
    ]
    assert "18 that are mostly idle" in found["processor.cores"].needed
    assert examination.exit_code == 1


def test_servers_ports_inside_the_ephemeral_range_are_named(tmp_path):
    machine = trees.laptop(tmp_path)
    machine.write({"/proc/sys/net/ipv4/ip_local_port_range": "1024 65535"})
    finding = said(facts_of(machine))[0]["network.ports"]
    assert finding.level == "note"
    assert "5600 (vLLM's NIXL side channel)" in finding.needed


def test_a_pods_quota_and_its_throttling_are_told(tmp_path):
    machine = trees.pod_v2(trees.laptop(tmp_path), limit=8 * GIB, quota="150000 100000")
    facts = facts_of(machine)
    facts = msgspec.structs.replace(facts, processor=msgspec.structs.replace(facts.processor, throttled=2))
    found, _ = said(facts)
    assert (found["processor.cores"].level, "quota is 1.5" in found["processor.cores"].seen) == ("warning", True)
    assert found["processor.throttled"].level == "warning"
    assert found["limits.pids"].level == "warning"


@pytest.mark.parametrize(("steal", "level"), [(0.0, "ok"), (0.03, "note"), (0.2, "warning")])
def test_stolen_time_is_weighed(tmp_path, steal, level):
    facts = facts_of(trees.laptop(tmp_path))
    facts = msgspec.structs.replace(facts, processor=msgspec.structs.replace(facts.processor, steal=steal))
    assert said(facts)[0]["processor.steal"].level == level


@pytest.mark.parametrize(
    ("clock", "read_ns", "level"), [("tsc", 50, "ok"), ("hpet", 900, "warning"), ("xen", 60, "note")]
)
def test_a_clock_is_judged_by_what_a_reading_takes(tmp_path, clock, read_ns, level):
    facts = facts_of(trees.laptop(tmp_path))
    processor = msgspec.structs.replace(facts.processor, clock=clock, clock_read_ns=read_ns)
    finding = said(msgspec.structs.replace(facts, processor=processor))[0]["processor.clock"]
    assert finding.level == level
    if clock == "hpet":
        assert "echo tsc" in finding.remedy


def test_small_or_no_shared_memory_is_warned_of_where_engines_run(tmp_path):
    machine = trees.laptop(tmp_path)
    assert said(facts_of(machine, shm=(64 * MIB, 64 * MIB)))[0]["memory.shm"].level == "warning"
    assert said(facts_of(machine, shm=None))[0]["memory.shm"].level == "warning"
    assert said(facts_of(machine, shm=None), a_plan(backend="UCX", fabric="shm"))[0]["memory.shm"].level == "problem"


def test_a_disk_that_is_nearly_full_is_warned_of(tmp_path):
    facts = facts_of(trees.laptop(tmp_path), disk_free={"/home/x": 200 * MIB, "the current folder": 9 * GIB})
    finding = said(facts)[0]["memory.disk"]
    assert (finding.level, "200 MiB of disk free for /home/x" in finding.seen) == ("warning", True)


def test_huge_pages_are_counted_for_every_device_unless_they_are_off(tmp_path):
    machine = trees.efa_p5(tmp_path)
    finding = said(facts_of(machine))[0]["memory.huge"]
    assert (finding.level, "3.4 GiB" in finding.needed) == ("note", True)
    assert said(facts_of(machine, variables={"FI_EFA_USE_HUGE_PAGE": "1"}))[0]["memory.huge"].level == "warning"
    assert said(facts_of(machine, variables={"FI_EFA_USE_HUGE_PAGE": "0"}))[0]["memory.huge"].level == "ok"
    machine.write(
        {
            "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 9 kB\nHugePages_Total: 5128\nHugePages_Free: 5128\nHugepagesize: 2048 kB"
        }
    )
    assert said(facts_of(machine))[0]["memory.huge"].level == "ok"
    machine.write({"/sys/fs/cgroup/hugetlb.2MB.max": 0, "/proc/self/cgroup": "0::/"})
    assert said(facts_of(machine))[0]["memory.huge"].level == "note"


# --- variables


def keys(facts):
    return {
        key.removeprefix("variables."): finding
        for key, finding in said(facts)[0].items()
        if key.startswith("variables.")
    }


def test_the_workshops_variables_are_told_apart_into_read_and_unread(tmp_path):
    deployed = {
        "NIXL_BACKEND": "LIBFABRIC", "TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC", "NIXL_SKIP_TOPOLOGY_CHECK": "1",
        "NIXL_LIBFABRIC_MAX_RAILS": "1", "FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1",
        "FI_EFA_ENABLE_SHM_TRANSFER": "0", "FI_EFA_ENABLE_SHM": "0", "FI_EFA_USE_HUGE_PAGE": "0",
        "FI_EFA_FORK_SAFE": "1", "FI_MR_CACHE_MAX_COUNT": "0", "FI_MR_CACHE_MONITOR": "disabled",
    }  # fmt: skip
    _, examination = said(facts_of(trees.efa_p5(tmp_path), variables=deployed))
    unread = [f.seen.split("=")[0] for f in examination.findings if f.key == "variables.unread"]
    assert sorted(unread) == [
        "FI_EFA_ENABLE_SHM",
        "NIXL_BACKEND",
        "NIXL_LIBFABRIC_MAX_RAILS",
        "NIXL_SKIP_TOPOLOGY_CHECK",
    ]
    idle = [f.seen.split("=")[0] for f in examination.findings if f.key == "variables.idle"]
    assert idle == ["FI_MR_CACHE_MAX_COUNT", "FI_MR_CACHE_MONITOR"]
    assert [f.key for f in examination.findings if f.level == "problem"] == []


@pytest.mark.parametrize("variable", [v for v in VARIABLES.values() if v.reader == NOBODY], ids=lambda v: v.name)
def test_what_switch_says_nobody_reads_doctor_says_too_with_what_to_use(tmp_path, variable):
    (found,) = [
        finding
        for finding in said(facts_of(trees.efa_p5(tmp_path), variables={variable.name: "1"}))[1].findings
        if finding.key == "variables.unread"
    ]
    assert found.seen.startswith(variable.name)
    assert found.remedy == variable.instead != ""
    assert judge_variables.kept({variable.name: "1"}) == {variable.name: "1"}


@pytest.mark.parametrize(
    ("variables", "key", "level"),
    [
        ({"UCX_TLS": "tcp,cuda_copy,cuda_ipc,sm,self"}, "ucx_tcp_only", "warning"),
        ({"UCX_TLS": "rc,ud,cuda_copy,sm,self"}, "ucx_ud", "warning"),
        ({"UCX_TLS": "rc,srd,cuda_copy,self"}, "ucx_no_device", "warning"),
        ({"UCX_TLS": "cuda_copy,cuda_ipc,sm,self"}, "ucx_no_network", "warning"),
        ({"UCX_TLS": "srd,self"}, "ucx_cuda", "warning"),
        ({"UCX_TLS": "srd,warp,cuda,self"}, "ucx_unknown", "warning"),
        ({"UCX_NET_DEVICES": "mlx5_9:1"}, "net_devices", "warning"),
        ({"FI_PROVIDER": "tcp"}, "provider", "problem"),
        ({"FI_PROVIDER": "^efa"}, "provider", "problem"),
        ({"FI_EFA_IFACE": "rdmap99s0"}, "efa_iface", "problem"),
        ({"FI_TCP_IFACE": "lo"}, "tcp_iface", "warning"),
        ({"FI_EFA_FORK_SAFE": "1", "FI_EFA_USE_HUGE_PAGE": "1"}, "fork_huge", "warning"),
        ({"FI_EFA_FORK_SAFE": "1"}, "fork", "note"),
        ({"FI_EFA_USE_DEVICE_RDMA": "0"}, "device_rdma", "warning"),
        ({"FI_MR_CACHE_MONITOR": "disabled", "FI_EFA_MR_CACHE_ENABLE": "1"}, "mr_cache", "warning"),
        ({}, "efa_shm", "warning"),
        ({"TRTLLM_NIXL_KVCACHE_BACKEND": "libfabric"}, "trtllm_backend", "warning"),
        ({"TRTLLM_NIXL_KVCACHE_BACKEND": "UCX", "NIXL_BACKEND": "LIBFABRIC"}, "backend_conflict", "warning"),
        (
            {"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC", "NIXL_BACKEND": "LIBFABRIC"},
            "backend_conflict",
            "warning",
        ),  # 10024
        ({"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC", "TRTLLM_USE_UCX_KVCACHE": "1"}, "past_nixl", "warning"),
        ({"SGLANG_DISAGGREGATION_NIXL_BACKEND": "libfabric"}, "sglang_backend", "warning"),
        ({"DYN_KVBM_NIXL_BACKEND_LIBFABRIC": "true"}, "idle", "note"),
        ({"FI_LOG_LEVEL": "debug"}, "log_level", "warning"),
        ({"NIXL_TELEMETRY_ENABLE": "n"}, "telemetry", "note"),
        ({"NIXL_LIBFABRIC_STRIPING_THRESHOLD": "1"}, "unread", "note"),
        ({"LD_PRELOAD": "/x.so"}, "preload", "note"),
    ],
)
def test_a_variable_that_goes_wrong_on_a_p5_is_told(tmp_path, variables, key, level):
    assert keys(facts_of(trees.efa_p5(tmp_path, devices=4, uverbs=4), variables=variables))[key].level == level


@pytest.mark.parametrize(
    "variables",
    [
        {"UCX_TLS": "srd,cuda_copy,cuda_ipc,sm,self"},
        {"UCX_TLS": "all"},
        {"UCX_TLS": "^tcp"},
        {"UCX_TLS": "ib,cuda,sm,self"},
        {"FI_PROVIDER": "efa", "FI_EFA_IFACE": "all"},
        {"UCX_NET_DEVICES": "rdmap0s0:1,eth0"},
    ],
)
def test_right_variables_on_a_p5_are_left_alone(tmp_path, variables):
    found = keys(
        facts_of(
            trees.efa_p5(tmp_path, devices=4, uverbs=4), variables={"FI_EFA_ENABLE_SHM_TRANSFER": "0", **variables}
        )
    )
    assert {key for key, finding in found.items() if finding.level in ("problem", "warning")} == set()


def test_ucx_names_the_transports_its_modules_lack(tmp_path):
    build = FoundBuild(
        name="here", version="1.5.0", origin="environment", folder="/x", transports=frozenset({"tcp", "self", "srd"})
    )
    facts = facts_of(trees.efa_p5(tmp_path), variables={"UCX_TLS": "srd,gdr_copy,self"}, builds=(build,))
    assert "no module for gdr_copy" in keys(facts)["ucx_module"].seen


def test_a_silent_fall_back_to_tcp_without_efa_is_foretold(tmp_path):
    found = keys(facts_of(trees.laptop(tmp_path), variables={"UCX_TLS": "srd,tcp,self"}))
    assert "falls back to tcp" in found["ucx_no_device"].seen


def test_a_plan_for_ucx_over_efa_with_the_workshops_tcp_list_is_a_problem(tmp_path):
    facts = facts_of(trees.efa_p5(tmp_path), variables={"UCX_TLS": "tcp,cuda_copy,cuda_ipc,sm,self"})
    found, examination = said(facts, a_plan(backend="UCX"))
    assert found["variables.ucx_tcp_only"].level == "problem"
    assert examination.exit_code == 1


@pytest.mark.parametrize(
    ("count", "variables", "level"),
    [
        (1, {"UCX_TLS": "tcp,cuda_copy,cuda_ipc,sm,self"}, "warning"),
        (1, {}, "warning"),
        (8, {}, "note"),
        (1, {"UCX_CUDA_IPC_ENABLE_GET_ZCOPY": "on"}, None),
    ],
)
def test_reading_gpu_memory_without_rdma_or_nvlink_is_emulated_unless_ucx_is_told(tmp_path, count, variables, level):
    machine = trees.laptop(tmp_path)
    trees.gpus(machine, "NVIDIA H100", count)
    finding = keys(facts_of(machine, variables=variables)).get("ucx_emulation")
    assert (finding and finding.level) == level


def test_with_rdma_devices_or_without_gpus_nothing_is_said_of_emulation(tmp_path):
    assert "ucx_emulation" not in keys(facts_of(trees.infiniband(tmp_path / "ib")))
    assert "ucx_emulation" not in keys(facts_of(trees.laptop(tmp_path / "laptop")))


def test_for_kvgauges_own_workers_variables_are_notes_since_they_see_none(tmp_path):
    facts = facts_of(trees.laptop(tmp_path), variables={"FI_PROVIDER": "efa", "NIXL_BACKEND": "UCX"})
    _, examination = said(facts, a_plan(fabric="tcp"))
    levels = {finding.level for finding in examination.findings if finding.area == "variables"}
    assert levels == {"note"}


def test_no_variable_that_may_hold_a_secret_is_kept():
    given = {
        "NIXL_ETCD_ENDPOINTS": "http://u:p@h",
        "UCX_TLS": "tcp",
        "OPENAI_API_KEY": "x",
        "FI_PROVIDER": "efa",
        "NIXL_TOKEN": "t",
    }
    assert judge_variables.kept(given) == {"UCX_TLS": "tcp", "FI_PROVIDER": "efa"}


def test_aliases_of_ucx_stand_for_what_ucx_takes_them_for():
    assert expand("rc,sm")[1] == {"rc_verbs", "rc_mlx5", "posix", "sysv", "xpmem", "knem", "cma"}
    assert expand("\\rc_verbs,ud:aux")[1] == {"rc_verbs", "ud_mlx5", "ud_verbs"}
    assert expand("^tcp")[2]


# --- builds


def a_build(
    *,
    origin="environment",
    name="nixl_cu12 in /site",
    version="1.5.1",
    backend="LIBFABRIC",
    verdicts=None,
    note="",
    **plugin,
):
    one = Plugin(backend=backend, path=f"/site/plugins/libplugin_{backend}.so", **plugin)
    return FoundBuild(
        name=name,
        version=version,
        origin=origin,
        folder="/site/plugins",
        plugins=(one,),
        verdicts=verdicts or {},
        note=note,
    )


TOO_OLD = "libfabric.so.1 (/usr/lib/libfabric.so.1) has no FABRIC_1.10, which libplugin_LIBFABRIC.so needs"
REFUSED = Attempt(
    ended="refused",
    detail="/usr/lib/libfabric.so.1: version `FABRIC_1.10' not found (required by /site/plugins/libplugin_LIBFABRIC.so)",
)


@pytest.mark.parametrize("attempt", [None, REFUSED])
def test_a_plugin_that_needs_a_newer_libfabric_is_a_problem_on_efa_with_both_versions(tmp_path, attempt):
    build = a_build(too_old=(TOO_OLD,), wants="FABRIC_1.10", offers="FABRIC_1.8", attempt=attempt)
    finding = said(facts_of(trees.efa_p5(tmp_path), builds=(build,)))[0]["builds.libfabric"]
    assert finding.level == "problem"
    assert "FABRIC_1.10" in finding.seen
    assert "it wants FABRIC_1.10, this one offers FABRIC_1.8" in finding.remedy


def test_missing_libraries_are_all_named_with_what_brings_each(tmp_path):
    missing = ("libfabric.so.1", "libhwloc.so.15", "libcuda.so.1", "libcudart.so.12")
    attempt = Attempt(
        ended="refused", detail="libfabric.so.1: cannot open shared object file: No such file or directory"
    )
    facts = facts_of(trees.laptop(tmp_path), builds=(a_build(missing=missing, attempt=attempt),), libcuda=None)
    finding = said(facts)[0]["builds.libfabric"]
    assert finding.level == "warning"  # nobody asked for LIBFABRIC here
    assert all(name in finding.seen for name in missing)
    assert all(word in finding.remedy for word in ("EFA installer", "hwloc", "NVIDIA driver", "cuda-runtime"))


def test_a_plugin_of_another_nixl_is_recognised_by_its_undefined_symbol(tmp_path):
    attempt = Attempt(ended="refused", detail="/site/plugins/libplugin_UCX.so: undefined symbol: nixlBackendEngineX")
    finding = said(facts_of(trees.laptop(tmp_path), builds=(a_build(backend="UCX", attempt=attempt),)))[0]["builds.ucx"]
    assert "different NIXL builds" in finding.remedy


def test_a_wheels_own_library_that_is_missing_means_another_core(tmp_path):
    build = a_build(backend="UCX", missing=("libucp-b39b3ed9.so.0.0.0",))
    finding = said(facts_of(trees.laptop(tmp_path), builds=(build,)))[0]["builds.ucx"]
    assert "different NIXL builds" in finding.remedy


def test_a_plugin_that_crashes_is_a_problem_with_where_it_did(tmp_path):
    detail = "killed by SIGSEGV while opening libplugin_UCX.so"
    build = a_build(backend="UCX", attempt=Attempt(ended="crashed", detail=detail))
    finding = said(facts_of(trees.infiniband(tmp_path), builds=(build,)))[0]["builds.ucx"]
    assert (finding.level, detail in finding.seen) == ("problem", True)


def test_a_plugin_that_did_not_open_in_time_was_not_looked_at_since_the_machine_may_be_busy(tmp_path):
    detail = "no end within 1.6 s of libucp.so"
    build = a_build(backend="UCX", attempt=Attempt(ended="no end", detail=detail))
    found, examination = said(facts_of(trees.infiniband(tmp_path), builds=(build,)))
    assert (found["builds.ucx"].level, detail in found["builds.ucx"].seen) == ("warning", True)
    [missing] = [each for each in examination.not_looked if "UCX of" in each.what]
    assert (missing.why, missing.needed, examination.exit_code) == (detail, True, 3)


def test_what_loads_is_fine_with_its_version(tmp_path):
    build = a_build(attempt=Attempt(ended="opened", libfabric="2.5"))
    finding = said(facts_of(trees.efa_p5(tmp_path), builds=(build,)))[0]["builds.libfabric"]
    assert (finding.level, "libfabric 2.5" in finding.seen) == ("ok", True)


def test_a_plans_build_that_is_known_wrong_is_a_problem_unless_the_plan_expects_it(tmp_path):
    build = a_build(
        origin="published",
        name="1.5.0",
        version="1.5.0",
        verdicts={"LIBFABRIC": "wrong data"},
        attempt=Attempt(ended="opened"),
    )
    facts = facts_of(trees.laptop(tmp_path), builds=(build,))
    assert said(facts, a_plan(fabric="tcp"))[0]["builds.verdict"].level == "problem"
    assert said(facts, a_plan(fabric="tcp", more=", expect: unusable"))[0]["builds.verdict"].level == "note"


def test_a_plans_build_that_is_not_installed_yet_is_a_note(tmp_path):
    found, examination = said(facts_of(trees.laptop(tmp_path)), a_plan(fabric="tcp"))
    assert found["builds.not_installed"].level == "note"
    assert examination.exit_code == 0


def test_a_plugin_folder_without_plugins_is_a_problem(tmp_path):
    build = FoundBuild(name="NIXL_PLUGIN_DIR=/empty", version=None, origin="environment", folder="/empty")
    assert said(facts_of(trees.laptop(tmp_path), builds=(build,)))[0]["builds.empty"].level == "problem"


@pytest.mark.parametrize(
    ("version", "words"),
    [("0.9.0", "over tcp: it reports DONE"), ("0.10.1", "over tcp"), ("1.2.0", "over efa: WRITEs were reported never"),
     ("1.3.1", "over efa"), ("1.1.0", None), ("1.3.2", None), ("1.5.1", None), ("of nobody", None)],
)  # fmt: skip
def test_an_engines_nixl_of_a_release_known_for_wrong_data_or_hangs_is_told(tmp_path, version, words):
    build = a_build(version=version, attempt=Attempt(ended="opened", libfabric="2.4"))
    machine = trees.efa_p5(tmp_path, devices=4, uverbs=4)
    found = said(facts_of(machine, builds=(build,)))[0].get("builds.known")
    assert (found is not None and words in found.seen) if words else found is None
    if words:
        assert found.level == ("warning" if "efa" in words else "note")
        assert "kvgauge builds test" in found.remedy


def test_gb200_wants_libfabric_2_5(tmp_path):
    machine = trees.laptop(tmp_path)
    trees.gpus(machine, "NVIDIA GB200", 4)
    build = a_build(attempt=Attempt(ended="opened", libfabric="2.4"))
    assert "builds.gb200" in said(facts_of(machine, builds=(build,)))[0]


def test_proc_that_cannot_be_read_is_something_needed_that_was_not_looked_at(tmp_path):
    facts = facts_of(trees.Machine(tmp_path))
    facts = msgspec.structs.replace(facts, not_looked=tuple(unread(facts)))
    _, examination = said(facts)
    assert {"memory", "ulimit -l and -n"} <= {each.what for each in examination.not_looked if each.needed}
    assert examination.exit_code == 3


def test_every_finding_that_is_not_fine_says_what_was_needed_what_to_do_and_where_that_stands(tmp_path):
    loud = {"UCX_TLS": "tcp,warp", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo", "NIXL_BACKEND": "x", "FI_EFA_X": "1", "NIXL_X": "1",
            "FI_EFA_FORK_SAFE": "1", "LD_PRELOAD": "/x", "FI_LOG_LEVEL": "debug", "TRTLLM_NIXL_KVCACHE_BACKEND": "y"}  # fmt: skip
    machines = [
        trees.efa_p5(tmp_path / "a", uverbs=0, memlock=1),
        trees.infiniband(tmp_path / "b"),
        trees.laptop(tmp_path / "c"),
    ]
    builds = (
        a_build(missing=("libfabric.so.1",)),
        a_build(backend="UCX", attempt=Attempt(ended="crashed", detail="x")),
    )
    for machine in machines:
        for plan in (None, a_plan(), a_plan(fabric="tcp")):
            _, examination = said(facts_of(machine, variables=loud, builds=builds, shm=None, libcuda=None), plan)
            for finding in examination.findings:
                assert finding.seen
                assert finding.source, finding.key
                assert finding.level == "ok" or (finding.needed and finding.remedy), finding.key
