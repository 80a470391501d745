"""Logs against what was asked for: backend, fabric, rails, GPUDirect, handshakes."""

from pathlib import Path

import pytest

from kvgauge.evidence import logs, transport
from kvgauge.evidence.transport import Want, claims, fabric_of

SAMPLES = Path(__file__).parents[1] / "samples"
HEAD = "I1124 02:42:45.680713   29148 libfabric.cpp:113] "
EFA = [  # wording: ai-dynamo/nixl v1.4.0, never recorded with EFA
    "2026-11-24 02:42:46 NIXL INFO    _api.py:405 Backend LIBFABRIC was instantiated",
    HEAD + "Created 32 rails using provider=efa",
    *(HEAD + f"Using provider with FI_HMEM support for rail {rail}" for rail in range(32)),
    HEAD + "Registered memory on 4 rails, mem_type=1 device=0",
    HEAD + "Handshake stored: peer='decode' assigned_idx=1",
    "libfabric:1:2::efa:cq:f():1<info> HANDSHAKE received from peer with explicit fi_addr 3 implicit fi_addr 4",
]
UCX = "2026-11-24 02:42:46 NIXL INFO    _api.py:405 Backend UCX was instantiated"
LANE = "[1.0] [h:1:0]      ucp_worker.c:1997 UCX  INFO    d inter-node cfg#1 {}"


def read(name):
    lines, cut = logs.read_file(SAMPLES / name)
    return logs.scan(lines, name, cut)


def scanned(*lines):
    return [logs.scan(lines, "w")]


def by_name(want, found):
    return {claim.name: claim for claim in claims(want, found)}


@pytest.mark.parametrize(
    ("carrier", "fabric"),
    [("efa", "efa"), ("efa-direct", "efa"), ("srd/rdmap40s0:1", "efa"), ("ud_verbs/rdmap79s0:1", "efa"),
     ("ud_verbs/mlx5_0:1", "ib"), ("rc_mlx5/mlx5_0:1", "ib"), ("verbs;ofi_rxm", "ib"), ("tcp/eth0 by active messages", "tcp"),
     ("tcp", "tcp"), ("sockets", "tcp"), ("cma/memory", "shm"), ("cuda_ipc/cuda", "cuda"), ("nonsense", None)],
)  # fmt: skip
def test_a_provider_or_lane_has_a_fabric(carrier, fabric):
    assert fabric_of(carrier) == fabric


def test_all_that_was_asked_for_is_proved_by_the_line_that_shows_it():
    want = Want(backend="LIBFABRIC", fabric="efa", rails=4, gpudirect=True)
    found = by_name(want, scanned(*EFA))
    assert {name: claim.verdict for name, claim in found.items()} == dict.fromkeys(
        ("backend", "fabric", "rails", "GPUDirect", "handshakes"), "proved"
    )
    assert found["rails"].text == "32 opened, 4 used by a buffer"
    assert "Created 32 rails using provider=efa" in found["fabric"].shown_by
    assert found["handshakes"].text == "NIXL 1, one a peer agent; EFA 1, one a peer endpoint"
    assert transport.seen(scanned(*EFA)).way == "LIBFABRIC/efa, 4 rails"


@pytest.mark.parametrize(
    ("want", "name", "text"),
    [
        ({"backend": "UCX"}, "backend", "UCX was expected, LIBFABRIC opened"),
        ({"fabric": "tcp"}, "fabric", "tcp was expected, efa is what was opened"),
        ({"rails": 8}, "rails", "8 were expected: 32 opened, 4 used by a buffer"),
        ({"gpudirect": False}, "GPUDirect", "expected no, the rails say yes"),
    ],
)
def test_each_contradiction_says_what_was_expected_and_what_is_there(want, name, text):
    claim = by_name(Want(**want), scanned(*EFA))[name]
    assert (claim.verdict, claim.text) == ("contradicted", text)


def test_rails_are_those_of_gpu_memory_where_both_were_registered():
    lines = [*EFA, HEAD + "Registered memory on 1 rails, mem_type=0 device=0"]
    assert by_name(Want(rails=4), scanned(*lines))["rails"].verdict == "proved"


def test_rails_that_differ_in_gpudirect_are_told():
    lines = [
        HEAD + "Using provider with FI_HMEM support for rail 0",
        HEAD + "Using provider without FI_HMEM support for rail 1",
    ]
    assert by_name(Want(), scanned(*lines))["GPUDirect"].verdict == "unproved"
    assert by_name(Want(gpudirect=True), scanned(*lines))["GPUDirect"].verdict == "contradicted"


def test_a_recorded_tcp_fallback_contradicts_efa_and_says_what_to_do():
    found = by_name(Want(fabric="efa", gpudirect=True), [read("nixl-1.5.0-libfabric-tcp-info.log")])
    assert found["fabric"].verdict == found["GPUDirect"].verdict == "contradicted"
    assert "vpc.amazonaws.com/efa" in found["fabric"].fix


def test_without_an_expectation_tcp_is_told_with_what_to_do():
    found = by_name(Want(), [read("nixl-1.5.0-libfabric-tcp-info.log")])
    assert (found["fabric"].verdict, found["fabric"].text) == ("proved", "over tcp")
    assert "fi_info -p efa" in found["fabric"].fix
    assert found["rails"].text == "1 opened, 1 used by a buffer"


def test_a_recorded_table_outranks_the_lanes_that_say_tcp():
    found = by_name(Want(fabric="tcp"), [read("nixl-1.5.0-ucx-all-proto.log")])
    assert (found["fabric"].verdict, "cma/memory" in found["fabric"].text) == ("contradicted", True)


def test_lanes_that_leave_it_open_which_transport_carries_prove_nothing():
    claim = by_name(Want(fabric="tcp"), [read("nixl-1.5.1-ucx-info.log")])["fabric"]
    assert claim.verdict == "unproved"
    assert "or over cma/memory" in claim.text
    assert "UCX_PROTO_INFO=y" in claim.fix


def test_of_two_opened_backends_the_one_that_was_asked_for_is_looked_at():
    both = scanned(UCX, LANE.format("rma_am(tcp/eth0)"), *EFA)
    assert by_name(Want(backend="LIBFABRIC", fabric="efa"), both)["fabric"].verdict == "proved"
    assert by_name(Want(backend="UCX", fabric="efa"), both)["fabric"].verdict == "contradicted"


def test_lanes_to_other_nodes_outrank_those_within_one_and_tables_of_one_from_source():
    """openucx/ucx: a worker talks to its neighbours too"""
    near = "[1.0] [h:1:0]   | d intra-node cfg#2 | remote memory read by ucp_get*(multi) into host from host |"
    row = "[1.0] [h:1:0]   | 0..inf | software emulation | tcp/lo |"
    found = by_name(Want(fabric="ib"), scanned(UCX, near, row, LANE.format("rma(rc_mlx5/mlx5_0:1)")))
    assert found["fabric"].verdict == "proved"
    assert "remote memory" not in found


def test_a_transport_beside_the_lane_that_is_the_one_asked_for_leaves_it_open_from_source():
    found = by_name(Want(fabric="efa"), scanned(UCX, LANE.format("rma_am(tcp/eth0) am(srd/rdmap40s0:1)")))
    assert found["fabric"].verdict == "unproved"


def test_software_emulation_contradicts_a_fast_fabric_and_is_only_told_on_tcp():
    log = [read("nixl-1.4.1-ucx-proto.log")]
    assert by_name(Want(fabric="ib"), log)["remote memory"].verdict == "contradicted"
    assert by_name(Want(fabric="tcp"), log)["remote memory"].verdict == "proved"


def test_ud_on_efa_is_told_to_be_the_slow_path_from_source():
    """dmvevents/aws-gpu-workshop 04: ud_verbs/rdmap79s0:1 under UCX_TLS=rc,ud"""
    found = by_name(Want(), scanned(UCX, LANE.format("rma_am(ud_verbs/rdmap79s0:1)")))
    assert "name srd in UCX_TLS" in found["fabric"].fix


def test_two_backends_in_one_worker_leave_it_open_which_carries():
    claim = by_name(Want(backend="LIBFABRIC"), scanned(UCX, *EFA))["backend"]
    assert claim.verdict == "unproved"
    assert "both opened" in claim.text


def test_a_name_that_tensorrt_llm_did_not_take_is_a_contradiction_from_source():
    lines = [
        "[TensorRT-LLM][WARNING] Unsupported NIXL backend: libfabric, fallback to UCX",
        "[TensorRT-LLM][INFO] NixlTransferAgent::NixlTransferAgent using NIXL backend: UCX",
    ]
    claim = by_name(Want(backend="LIBFABRIC"), scanned(*lines))["backend"]
    assert (claim.verdict, claim.text) == ("contradicted", "the workers refused backend libfabric")


def test_a_mocker_moves_nothing_whatever_is_counted():
    claim = by_name(Want(), [read("dynamo-1.6.1-decode.log")])["engine"]
    assert claim.verdict == "contradicted"
    assert "Creating mocker engine" in claim.shown_by


@pytest.mark.parametrize(
    ("line", "name", "verdict"),
    [
        ("Rail count mismatch (local: 32, remote: 8)", "rail mismatch", "contradicted"),
        ("No network devices found with any provider", "no devices", "contradicted"),
        ("CQ read failed on rail 3", "transfer error", "unproved"),
        (
            "Handshake from peer 'd' not received after 60s; connection cannot be established.",
            "handshakes",
            "contradicted",
        ),
    ],
)
def test_lines_that_mean_trouble_are_told_whatever_was_asked_for_from_source(line, name, verdict):
    """ai-dynamo/nixl v1.4.0 src/plugins/libfabric, src/utils/libfabric"""
    assert by_name(Want(), scanned(HEAD + line))[name].verdict == verdict


def test_without_logs_and_without_lines_nothing_is_claimed():
    (claim,) = claims(Want(fabric="efa"), [])
    assert (claim.name, claim.verdict) == ("transport", "unproved")
    found = by_name(Want(backend="UCX", fabric="efa", rails=4, gpudirect=True), scanned("hello"))
    assert {claim.verdict for claim in found.values()} == {"unproved"}
    assert set(found) == {"backend", "fabric", "rails", "GPUDirect"}


def test_a_provider_of_another_network_is_no_infiniband_from_source():
    """ai-dynamo/nixl libfabric_common.cpp: cxi (Slingshot) is tried first"""
    slingshot = scanned(EFA[0], HEAD + "Created 4 rails using provider=cxi")
    assert by_name(Want(fabric="ib"), slingshot)["fabric"].verdict == "contradicted"
    assert by_name(Want(), slingshot)["fabric"].text.startswith("over cxi, which is none of")


def test_a_log_that_says_nothing_is_named_beside_those_that_do():
    found = claims(Want(), [*scanned(*EFA), logs.scan(["hello", "world"], "decode.log"), logs.scan([], "empty.log")])
    (silent,) = [claim for claim in found if claim.name == "log"]
    assert (silent.verdict, silent.text) == (
        "unproved", "nothing about a transport in decode.log (2 lines), empty.log (0 lines)"
    )  # fmt: skip


def test_a_log_that_was_not_read_whole_is_told():
    found = by_name(Want(), [logs.scan(EFA, "w", "4 MiB in the middle were not read")])
    assert found["log"].verdict == "unproved"


def test_messages_in_place_of_remote_memory_on_a_fast_fabric_are_told_from_source():
    """openucx/ucx: rma_am is emulation by active messages; datagrams have no other way, and for the others a cfg# line
    says so too where only large READs and WRITEs are the device's own."""
    srd = by_name(Want(fabric="efa"), scanned(UCX, LANE.format("rma_am(srd/rdmap79s0:1) am(srd/rdmap79s0:1)")))
    assert (srd["fabric"].verdict, srd["remote memory"].verdict) == ("proved", "unproved")
    assert "UCX_PROTO_INFO=y" in srd["remote memory"].fix
    ud = by_name(Want(fabric="efa"), scanned(UCX, LANE.format("rma_am(ud_verbs/rdmap79s0:1) am(ud_verbs/rdmap79s0:1)")))
    assert ud["remote memory"].verdict == "contradicted"
    assert "name srd in UCX_TLS" in ud["remote memory"].fix
    own = by_name(Want(fabric="efa"), scanned(UCX, LANE.format("rma(srd/rdmap79s0:1)")))
    assert "remote memory" not in own
    assert "remote memory" not in by_name(Want(fabric="tcp"), scanned(UCX, LANE.format("rma_am(tcp/eth0)")))


WARN = "[1.0] [h:1:0]     ucp_context.c:1349 UCX  WARN  {}, please use one or more of: 'lo'(tcp)"


@pytest.mark.parametrize(
    ("line", "fabric", "verdict"),
    [
        ("transport 'srd' is not available", "efa", "contradicted"),
        ("transports 'srd','ud' are not available", "efa", "contradicted"),
        ("transport 'srd' is not available", None, "unproved"),
        ("transport 'dc' is not available", "ib", "unproved"),
        ("network device 'rdmap79s0:1' is not available", "efa", "unproved"),
    ],
)
def test_what_ucx_left_out_with_one_warning_is_told_and_without_srd_there_is_no_efa(line, fabric, verdict):
    """UCX 1.23 [1.5.1]: UCX_TLS=srd,tcp,self without EFA, at the default log level"""
    claim = by_name(Want(fabric=fabric), scanned(UCX, WARN.format(line)))["left out"]
    assert claim.verdict == verdict
    assert "which the worker does not have" in claim.text
    assert "UCX  WARN" in claim.shown_by


def test_a_backend_that_was_refused_is_told_with_why_its_plugin_did_not_load():
    why = "/lib/libfabric.so.1: version `FABRIC_1.10' not found (required by libplugin_LIBFABRIC.so)"
    found = by_name(
        Want(backend="LIBFABRIC"),
        scanned(
            HEAD + f"Failed to load plugin from /x/libplugin_LIBFABRIC.so: {why}",
            HEAD + "createBackend: unsupported backend 'LIBFABRIC'",
        ),
    )
    assert found["backend"].verdict == "contradicted"
    assert found["backend"].text.endswith(f"whose plugin did not load: {why}")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("EFA internal error: (4112) Cannot allocate memory", "efa error"),
        (HEAD + "Cannot add agent 'd': agent index 256 exceeds 8-bit wire limit (255)", "agents max"),
        ("[1.0] [h:1:0] wireup.c:1 UCX ERROR   no remote memory access transport to h", "ucx error"),
    ],
)
def test_errors_of_the_transports_leave_a_trace_in_the_proof_from_source(line, name):
    assert by_name(Want(), scanned(UCX, line))[name].verdict == "unproved"
