"""Log lines to facts: real logs of six NIXL builds, UCX, libfabric and Dynamo, and wording taken from sources.

Tests whose name ends in `from_source` hold lines that were never recorded by us: no EFA, no such engine was at hand.
Each names the file its wording is from.
"""

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.evidence import engines, libfabric, logs, nixl, ucx

SAMPLES = Path(__file__).parents[1] / "samples"


def read(name):
    lines, cut = logs.read_file(SAMPLES / name)
    return logs.scan(lines, name, cut)


def scan(*lines):
    return logs.scan(lines, "w")


def values(found, name):
    return [fact.value for fact in found.facts if fact.name == name]


def count(found, name):
    return sum(sighting.count for sighting in found.of(name))


@pytest.mark.parametrize(
    ("sample", "version", "provider", "handshakes"),
    [
        ("nixl-0.8.0-libfabric-tcp-info.log", None, "sockets", 0),
        ("nixl-0.10.1-libfabric-tcp-info.log", "0.10.1", "sockets", 0),
        ("nixl-0.10.1-libfabric-tcp-debug.log", "0.10.1", "sockets", 0),
        ("nixl-1.0.1-libfabric-tcp-info.log", "1.0.1", "tcp", 0),
        ("nixl-1.2.0-libfabric-tcp-info.log", "1.2.0", "tcp", 0),
        ("nixl-1.2.0-libfabric-tcp-debug.log", "1.2.0", "tcp", 0),
        ("nixl-1.4.1-libfabric-tcp-info.log", "1.4.1", "tcp", 2),
        ("nixl-1.5.0-libfabric-tcp-info.log", "1.5.0", "tcp", 2),
        ("nixl-1.5.0-libfabric-tcp-debug.log", "1.5.0", "tcp", 2),
        ("nixl-1.5.1-libfabric-tcp-info.log", "1.5.1", "tcp", 2),
    ],
)
def test_every_recorded_libfabric_log_names_provider_rails_gpudirect_and_handshakes(
    sample, version, provider, handshakes
):
    found = read(sample)
    assert values(found, "nixl_version") == ([version] if version else [])
    assert values(found, "provider") == [provider]
    assert values(found, "rails") == ["1"]
    assert values(found, "gpudirect") == ["no"]
    assert values(found, "backend_instantiated") == ["LIBFABRIC"]
    assert count(found, "handshake") == handshakes
    assert values(found, "rails_used_by_host") == ([] if version in (None, "0.10.1", "1.0.1") else ["1"])
    assert found.cut is None


@pytest.mark.parametrize("sample", ["nixl-1.0.1-ucx-info.log", "nixl-1.5.0-ucx-info.log", "nixl-1.5.1-ucx-info.log"])
def test_every_recorded_ucx_log_names_the_lane_to_the_other_process(sample):
    found = read(sample)
    assert values(found, "backend_instantiated") == ["UCX"]
    assert values(found, "lane") == values(found, "lane_intra-node") == ["tcp/lo by active messages"]
    assert values(found, "ucx_library")


def test_a_ucx_that_cannot_use_what_it_was_given_says_what():
    found = read("nixl-0.8.0-ucx-info.log")
    assert values(found, "device_missing") == ["'v0'"]
    assert values(found, "ucx_error") == ["no active messages transport"]
    assert values(found, "backend_refused") == ["UCX"]


def test_a_recorded_protocol_table_shows_software_emulation_over_tcp():
    found = read("nixl-1.4.1-ucx-proto.log")
    assert values(found, "emulated") == ["read 0..inf: software emulation over tcp/lo"]
    assert "write 0..inf: zero-copy over tcp/lo" in values(found, "protocol")


def test_a_recorded_protocol_table_shows_cma_where_the_lanes_say_tcp():
    found = read("nixl-1.5.0-ucx-all-proto.log")
    assert set(values(found, "protocol")) == {
        "write 0..inf: zero-copy over cma/memory", "read 0..inf: zero-copy over cma/memory",
    }  # fmt: skip
    assert values(found, "lane") == ["tcp/lo by active messages"]
    assert values(found, "lane_beside") == ["cma/memory"]


@pytest.mark.parametrize(
    "prefix", ["[pod/decode-0/main] ", "2026-11-24T02:42:46.123Z ", "decode-1  | ", "(Worker pid=7) "]
)
@pytest.mark.parametrize(
    "sample",
    [
        "nixl-1.4.1-ucx-proto.log",
        "nixl-1.5.0-ucx-all-proto.log",
        "nixl-1.5.0-ucx-info.log",
        "nixl-1.5.0-libfabric-tcp-info.log",
    ],
)
def test_what_collectors_of_logs_put_before_each_line_hides_nothing(prefix, sample):
    lines, _ = logs.read_file(SAMPLES / sample)
    said = [(fact.name, fact.value) for fact in read(sample).facts]
    assert [(fact.name, fact.value) for fact in scan(*(prefix + line for line in lines)).facts] == said


def test_a_provider_ends_where_its_name_does():
    assert values(scan('{"log":"I1 x] Created 1 rails using provider=efa\\n","stream":"stderr"}'), "provider") == [
        "efa"
    ]


def test_tables_of_two_processes_that_come_mixed_are_kept_apart():
    title = (
        "[1.0] [vm:{}:0]   | x inter-node cfg#1 | remote memory read by ucp_get*(multi) into host memory from host |"
    )
    row = "[1.0] [vm:{}:0]   | 0..inf | zero-copy | {} |"
    found = scan(title.format(1), title.format(2), row.format(2, "tcp/eth0"), row.format(1, "rc_mlx5/mlx5_0:1"))
    assert values(found, "protocol") == ["read 0..inf: zero-copy over tcp/eth0", "read 0..inf: zero-copy over rc_mlx5/mlx5_0:1"]  # fmt: skip


@pytest.mark.parametrize(
    ("lane", "config"),
    [
        ("srd/rdmap40s0:1", "rma(srd/rdmap40s0:1) am(srd/rdmap40s0:1 srd/rdmap62s0:1)"),
        ("srd/rdmap40s0:1 by active messages", "rma_am(srd/rdmap40s0:1) am(srd/rdmap40s0:1)"),
        ("ud_verbs/rdmap79s0:1 by active messages", "rma_am(ud_verbs/rdmap79s0:1) am(ud_verbs/rdmap79s0:1)"),
        ("rc_mlx5/mlx5_0:1", "rma(rc_mlx5/mlx5_0:1) am(rc_mlx5/mlx5_0:1) ka(ud_mlx5/mlx5_0:1)"),
    ],
)
def test_lanes_of_fabrics_that_are_not_here_from_source(lane, config):
    """openucx/ucx src/ucp/core/ucp_worker.c; srd as TensorRT-LLM's and Dynamo's EFA pages show it."""
    line = f"[1.0] [ip-10-0-0-1:7:0]      ucp_worker.c:1997 UCX  INFO    decode inter-node cfg#3 {config}"
    assert values(scan(line), "lane_inter-node")[0] == lane


def test_a_cuda_ipc_table_and_an_emulated_read_beside_it_from_source():
    """UCX_PROTO_INFO=y; rows as facts about one H100 hold them, the frame as recorded from UCX 1.23."""
    frame = "[1.0] [gpu:7:0]   "
    found = scan(
        frame + "| prefill intra-node cfg#1                                       |",
        frame + "| remote memory write by ucp_put*(multi) from cuda/GPU0 to cuda |",
        frame + "| 0..inf | zero-copy   | cuda_ipc/cuda                          |",
        frame + "| prefill intra-node cfg#1                                            |",
        frame + "| remote memory read by ucp_get*(multi) into cuda/GPU0 from cuda/dev[0] |",
        frame + "| 0..inf | software emulation | tcp/lo                                  |",
    )
    assert values(found, "protocol") == [
        "write 0..inf: zero-copy over cuda_ipc/cuda", "read 0..inf: software emulation over tcp/lo",
    ]  # fmt: skip
    assert values(found, "emulated") == ["read 0..inf: software emulation over tcp/lo"]


def test_efa_rails_of_nixl_from_source():
    """ai-dynamo/nixl v1.4.0 src/utils/libfabric/libfabric_{topology,rail,rail_manager}.cpp, libfabric_backend.cpp."""
    head = "I1124 02:42:45.680713   29148 libfabric.cpp:113] "
    found = scan(
        head + "Discovered 4 EFA devices",
        *(head + f"Using provider with FI_HMEM support for rail {rail}" for rail in range(4)),
        head + "System runtime: CUDA for 8 NVIDIA GPU(s)",
        head + "Created 4 rails using provider=efa",
        head + "Registered memory on 4 rails, mem_type=1 device=0",
        head + "Rail count mismatch (local: 32, remote: 8)",
        head + "Handshake from peer 'decode' not received after 60s; connection cannot be established.",
    )
    assert (values(found, "provider"), values(found, "rails"), values(found, "rails_used")) == (["efa"], ["4"], ["4"])
    assert (values(found, "gpudirect"), values(found, "runtime")) == (["yes"], ["CUDA"])
    assert values(found, "rail_mismatch") == ["Rail count mismatch (local: 32, remote: 8)"]
    assert values(found, "handshake_missing") == ["decode"]


def test_a_build_before_1_2_names_efa_by_its_devices_and_counts_rails_by_their_lines_from_source():
    """ai-dynamo/nixl 0.8.0 src/utils/libfabric/libfabric_{topology,rail}.cpp: every rail twice, data and control."""
    head = "I1124 02:42:45.680713   29148 libfabric_rail.cpp:452] "
    rails = [head + f"Using provider with FI_HMEM support for rail {rail}" for rail in (*range(32), *range(1))]
    found = scan(head + "Discovered 32 EFA devices", *rails)
    assert (values(found, "provider"), values(found, "rails")) == (["efa"], ["32"])


@pytest.mark.parametrize(
    "message",
    [
        "HANDSHAKE received from peer with explicit fi_addr 33 implicit fi_addr 18446744073709551615",
        "HANDSHAKE received from 33",
    ],
)
def test_both_wordings_of_the_efa_handshake_from_source(message):
    """ofiwg/libfabric prov/efa/src/rdm/efa_rdm_pke_nonreq.c (since 2.3.1) and its rxr_handle_handshake_recv before."""
    line = f"libfabric:4242:1795522735::efa:cq:efa_rdm_pke_handle_handshake_recv():138<info> {message}"
    assert list(libfabric.read(line)) == [("efa_handshake", "4242/33")]
    assert list(libfabric.read(message)) == [("efa_handshake", "?/33")]
    found = scan(line, line.replace("4242", "7"), line.replace("33", "34"))
    assert count(found, "efa_handshake") == 3
    assert len(found.of("efa_handshake")) == 3


def test_other_lines_of_the_efa_provider_from_source():
    """ofiwg/libfabric prov/efa/src/efa_device.c, efa_rdm_pke_nonreq.c"""
    head = "libfabric:4242:1795522735::efa:fabric:efa_device_list_initialize():210<info> "
    found = scan(
        head + "ibv_get_device_list returns total_device_cnt=33",
        head + "g_efa_selected_device_cnt=32, g_efa_ibv_gid_cnt=32",
        head + "Received peer host id: i-0123456789abcdef0",
    )
    assert values(found, "efa_devices") == ["32"]
    assert values(found, "peer_host") == ["i-0123456789abcdef0"]


def test_a_recorded_libfabric_log_is_read_by_its_format():
    lines = (SAMPLES / "libfabric-2.5.1-tcp-fi-log.log").read_text().splitlines()
    own = [line for line in lines if line.startswith("libfabric:")]
    assert len(own) > 100
    assert all(libfabric.LINE.match(line) for line in own)
    found = read("libfabric-2.5.1-tcp-fi-log.log")
    assert "FI_HMEM_CUDA" in values(found, "hmem_missing")


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_recorded_vllm_says_its_connector_its_backend_and_what_carries_reads(role):
    found = read(f"vllm-0.32.0-ucx-{role}.log")
    assert values(found, "kv_connector") == ["NixlPullConnector"]
    assert values(found, "backend_configured") == ["UCX"]
    assert values(found, "backend_instantiated") == ["UCX"]
    assert values(found, "lane_beside") == ["cma/memory"]
    way = "read" if role == "decode" else "write"
    assert f"{way} 0..inf: zero-copy over cma/memory" in values(found, "protocol_intra-node")
    assert set(values(found, "vllm_failed")) == {"0"}
    assert ("passed" in values(found, "nixl_compatible")) == (role == "decode")


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_recorded_vllm_over_libfabric_says_its_provider_rails_and_handshakes(role):
    found = read(f"vllm-0.32.0-libfabric-{role}.log")
    assert values(found, "backend_configured") == values(found, "backend_instantiated") == ["LIBFABRIC"]
    assert (values(found, "provider"), values(found, "rails"), values(found, "gpudirect")) == (["tcp"], ["1"], ["no"])
    assert len(values(found, "handshake")) == 1
    assert set(values(found, "handshake")) != set(values(found, "self_connection"))
    assert ("Releasing expired KV blocks" in values(found, "kv_expired")) == (role == "prefill")


def test_recorded_lines_of_a_vllm_whose_handshake_timed_out():
    """vLLM 0.32.0 on two overloaded cores: decode reached prefill's side channel after the KV's lease of 30 s."""
    found = scan(
        "(Worker pid=20807) ERROR 11-24 16:52:37 [base_worker.py:1318] NIXL transfer failure: handshake_setup_failed | "
        "Context: {'failure_type': 'handshake_setup_failed', 'request_id': None}",
        "(Worker pid=20810) WARNING 11-24 16:52:34 [base_worker.py:3032] Releasing expired KV blocks for request "
        "cmpl-a597e87cdd9d2d27-0-80ef90ff which were retrieved by 0 remote worker(s) before lease expired.",
        "(Worker pid=20810) ERROR 11-24 16:52:37 [pull_worker.py:667] Potentially invalid KV blocks for unrecognized "
        "request cmpl-a597e87cdd9d2d27-0-80ef90ff were retrieved by a decode worker. They may have expired.",
    )
    assert values(found, "kv_failed") == ["handshake_setup_failed"]
    assert values(found, "kv_expired") == ["Releasing expired KV blocks"]
    assert values(found, "kv_stale") == ["Potentially invalid KV blocks"]


def test_vllm_lines_from_source():
    """vllm-project/vllm v1/metrics.py and kv_connector/factory.py: a transfer that failed, never recorded by us."""
    head = "(EngineCore_DP0 pid=714) INFO 05-12 13:59:46 [metrics.py:103] "
    found = scan(
        head + "Creating v1 connector with name: NixlPullConnector and engine_id: 1-2",
        head
        + "KV Transfer metrics: Num successful transfers=80, Avg xfer time (ms)=173.794, P90 xfer time (ms)=235.706, "
        "Avg post time (ms)=129.127, P90 post time (ms)=131.126, Avg MB per transfer=313.0, Throughput (MB/s)=1800.983, "
        "Avg number of descriptors=40064.0, Num failed transfers=2",
        head + "External prefix cache hit rate: 100.0%",
        head + "NIXL compatibility check passed (hash: dbb2848c)",
        head + "Releasing expired KV blocks for request r before lease expired.",
        """non-default args: {'kv_connector_extra_config': {'backends': ['LIBFABRIC']}}""",
    )
    assert values(found, "kv_connector") == ["NixlPullConnector"]
    assert (values(found, "vllm_transfers"), values(found, "vllm_failed")) == (["80"], ["2"])
    assert (values(found, "vllm_mib_mean"), values(found, "external_hits_pct")) == (["313.0"], ["100.0"])
    assert (values(found, "nixl_compatible"), values(found, "kv_expired")) == (
        ["passed"],
        ["Releasing expired KV blocks"],
    )
    assert values(found, "backend_configured") == ["LIBFABRIC"]


def test_tensorrt_llm_lines_from_source():
    """NVIDIA/TensorRT-LLM cpp/tensorrt_llm/executor/cache_transmission/nixl_utils/transferAgent.cpp"""
    found = scan(
        "[TensorRT-LLM][WARNING] Unsupported NIXL backend: libfabric, fallback to UCX",
        "[TensorRT-LLM][INFO] NixlTransferAgent::NixlTransferAgent using NIXL backend: UCX",
        "[TensorRT-LLM][INFO] NixlTransferAgent::NixlTransferAgent mAddress: 10.0.0.7:32939",
    )
    assert (values(found, "backend_refused"), values(found, "engine_backend")) == (["libfabric"], ["UCX"])
    assert values(found, "engine_address") == ["10.0.0.7:32939"]


def test_sglang_lines_from_source():
    """sgl-project/sglang python/sglang/srt/disaggregation/nixl/conn.py"""
    found = scan(
        "[2026-04-30 18:32:58 TP0] NIXL KVManager initialized with backend: LIBFABRIC",
        "ValueError: NIXL backend 'LIBFABRIC' not found. Available: ['UCX'].",
    )
    assert (values(found, "engine_backend"), values(found, "backend_missing")) == (["LIBFABRIC"], ["LIBFABRIC"])


def test_recorded_dynamo_logs_tell_a_mocker_and_a_prefill_router_through_their_colours():
    assert values(read("dynamo-1.6.1-decode.log"), "simulated") == ["Creating mocker engine"]
    frontend = read("dynamo-1.6.1-frontend.log")
    assert values(frontend, "prefill_worker") == ["Prefill worker detected"]
    assert set(values(frontend, "prefill_router")) == {"Activating prefill router", "Prefill router target activated"}
    assert all("\x1b" not in sighting.fact.shown_by for sighting in frontend.sightings)


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=200), max_size=20),
    st.lists(st.integers(1, 50), min_size=1, max_size=8),
)
def test_lines_do_not_depend_on_where_a_file_was_cut(lines, sizes):
    data = "\n".join(lines).encode()
    stream, at, chunks = io.BytesIO(data), 0, []
    while chunk := stream.read(sizes[at % len(sizes)]):
        chunks.append(chunk)
        at += 1
    assert list(logs.split(chunks)) == list(logs.split([data]))


def test_of_a_line_without_end_the_beginning_is_read_and_the_next_line_is_whole():
    chunks = [b"NIXL version: 1.5.0 " + b"x" * logs.LINE_BYTES_MAX] + [b"y" * 100_000] * 50 + [b"z\nnext\n"]
    lines = list(logs.split(chunks))
    assert [len(line) for line in lines] == [logs.LINE_BYTES_MAX, 4]
    assert lines[1] == "next"


def test_of_a_huge_log_the_beginning_and_the_end_are_read_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "HEAD_BYTES", 2_000)
    monkeypatch.setattr(logs, "TAIL_BYTES", 2_000)
    path = tmp_path / "w.log"
    path.write_text(
        "NIXL version: 1.5.0 (git: x)\n" + "noise\n" * 700_000 + "Handshake stored: peer='p' assigned_idx=1\n"
    )
    lines, cut = logs.read_file(path)
    found = logs.scan(lines, "w", cut)
    assert values(found, "nixl_version") == ["1.5.0"]
    assert count(found, "handshake") == 1
    assert "4 MiB in the middle of w.log were not read" in found.cut
    assert found.lines < 1_000


def test_what_a_log_repeats_is_counted_and_what_it_invents_is_bounded():
    found = scan(*(f"Handshake stored: peer='p{n}' assigned_idx=1" for n in range(3 * logs.KEPT_MAX)))
    assert len(found.sightings) == logs.KEPT_MAX
    assert "different facts" in found.cut


WORDS = st.sampled_from(
    [
        "NIXL version: ",
        "Created ",
        " rails using provider=",
        "Using provider with FI_HMEM support for rail ",
        "UCX ",
        "cfg#",
        "inter-node ",
        "rma(",
        ")",
        "| ",
        "[1.0] [h:1:0]   ",
        "0..inf",
        "remote memory read by ucp_get*",
        "HANDSHAKE received from ",
        "libfabric:1:2::efa:cq:f():3<info> ",
        "KV Transfer metrics: Num successful transfers=",
        "=",
        ",",
        "RequestID,Duration,Bandwidth(Gbps)",
        "9" * 40,
        "-1",
        "\x1b[2m",
        "transports ",
        " is not available",
        "Registered memory on ",
        "'backends': [",
        "]",
        "Unsupported NIXL backend: ",
        "\u0661",
    ]
)


@settings(max_examples=150)
@given(st.lists(st.lists(WORDS | st.text(max_size=8), max_size=12).map("".join), max_size=12))
def test_no_text_breaks_a_parser(lines):
    found = logs.scan(lines, "w")
    assert found.lines == len(lines)
    assert found.facts is not None
    text = "\n".join(lines)
    for parse in (nixl.facts, ucx.facts):
        parse(text, "w")
    for line in lines:
        list(engines.read(line))


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=300), max_size=10))
def test_no_bytes_break_the_reading_of_a_log(chunks):
    logs.scan(logs.split(chunks), "w")
