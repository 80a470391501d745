"""Raw times to figures: what is taken within a round, and what over rounds."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvgauge.xfer.figures import paired_ratio, ratios, row_of
from kvgauge.xfer.measure import Measured
from kvgauge.xfer.messages import Connected, Limited
from kvgauge.xfer.results import NIXLBENCH, document, nixlbench_row
from kvgauge.xfer.rounds import Setting, results_of
from kvgauge.xfer.seen import expected_merged, off_fabric
from kvgauge.xfer.table import COLUMNS, ratio_line, render
from kvgauge.xfer.tools import Figure, beside, parse
from kvgauge.xfer.workload import Workload

WORK = Workload(name="w", blocks=4, block_bytes=1000 * 8)  # 32,000 bytes a transfer
MS = 1_000_000


def table(latencies_us, *, lane=0, start_ns=0):
    """Transfers one after another: 2 us to prepare, 3 us to post, done at the latency; the gap is 1 us."""
    rows, now = [], start_ns
    for slot, latency in enumerate(latencies_us):
        done = now + latency * 1_000
        rows.append((lane, slot, now, 2_000, now + 2_000, 3_000, done, 1_000, done, 0, 0, 0))
        now += latency * 1_000
    return np.array(rows, dtype=np.int64)


def measured(number, backend="UCX", latencies=(10, 20, 30), work=WORK, **changes):
    found = Measured(
        round=number, backend=backend, work=work, load_ns=[5 * MS, 7 * MS], agent_ns=[MS, 3 * MS],
        register_ns=[MS], first_ns=MS, again_first_ns=MS // 2, batches=[table(latencies)],
        connected=[Connected(add_ns=[MS, 2 * MS], make_ns=[MS, MS], prepare_ns=[MS, 4 * MS], prepared=8)],
        again=[Connected(add_ns=[MS], make_ns=[], prepare_ns=[MS], prepared=8)],
        merged=4, nixl_bytes=work.transfer_bytes, backends={backend}, blocks_checked=12,
        copy=Limited("copy", 64_000, 4_000), stream=Limited("stream", 64_000, 20_000),
    )  # fmt: skip
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def points(row):
    return {name: estimate.point for name, estimate in row.figures.items()}


def test_figures_of_one_round_are_what_its_rows_say_and_carry_no_interval():
    row = row_of([measured(1)], (1, 5, 0))
    found = points(row)
    assert found["latency_us_mean"] == 20
    assert found["latency_us_p50"] == 20
    assert found["prepare_us_mean"] == 2
    assert found["post_us_mean"] == 3
    assert found["transfer_us_mean"] == 18
    assert found["stamp_error_us_p50"] == 1
    assert found["bandwidth_gb_s"] == found["aggregate_gb_s"] == pytest.approx(3 * 32_000 / 60_000)
    assert found["stream_share_pct"] == pytest.approx(100 * 1.6 / 3.2)
    assert (found["connect_cold_ms"], found["connect_warm_ms"], found["prepare_lists_ms"]) == (3, 1, 4)
    assert (found["first_cold_ms"], found["first_warm_ms"]) == (1, 0.5)
    assert found["first_excess_ms"] == pytest.approx(0.98)
    assert (found["load_ms"], found["agent_start_ms"], found["copy_gb_s"]) == (7, 2, 16)
    assert row.figures["latency_us_mean"].low is None
    assert row.figures["latency_us_mean"].reason == "one round: an interval needs at least 2"


def test_rounds_are_what_intervals_are_over_however_many_transfers_they_hold():
    row = row_of([measured(1, latencies=[10] * 200), measured(2, latencies=[12] * 200)], (1, 5, 0))
    found = row.figures["latency_us_p99"]
    assert (found.point, found.n, row.transfers) == (11, 2, 400)
    assert found.low < 10
    assert found.high > 12


def test_a_percentile_of_too_few_transfers_is_the_largest_and_says_so():
    found = row_of([measured(1), measured(2)], (1, 5, 0)).figures["latency_us_p99"]
    assert (found.point, found.low, found.reason) == (30, None, "max of n=6: P99 needs 100 transfers a round")


def test_initiators_share_a_span_for_the_aggregate_and_have_their_own_for_theirs():
    work = Workload(name="w", blocks=4, block_bytes=8000, initiators=2)
    both = np.concatenate([table([10, 10], lane=0), table([10, 10], lane=1, start_ns=10_000)])
    found = points(row_of([measured(1, work=work, batches=[both])], (1, 5, 0)))
    assert found["bandwidth_gb_s"] == pytest.approx(3.2)
    assert found["aggregate_gb_s"] == pytest.approx(4 * 32_000 / 30_000)


def test_a_round_that_failed_is_told_and_enters_no_figure():
    row = row_of([measured(1), measured(2, latencies=[1000], failure="it hung")], (1, 5, 0))
    assert (row.rounds, row.failures, row.valid) == (1, ("round 2: it hung",), True)
    assert row.figures["latency_us_mean"].point == 20
    lost = row_of([measured(1, failure="it hung")], (1, 5, 0))
    assert (lost.valid, lost.figures["latency_us_mean"].point) == (False, None)


def test_integrity_counts_failed_rounds_too():
    row = row_of([measured(1), measured(2, failure="late", blocks_wrong=2, kinds={"zero": 2})], (1, 5, 0))
    assert (row.integrity.blocks_checked, row.integrity.blocks_wrong, row.valid) == (24, 2, False)
    assert row.against == ("2 of 24 blocks wrong (2 zero)",)


def test_handshakes_are_counted_where_there_are_any_and_missing_with_the_reason_elsewhere():
    logs = {"target-0": "Handshake stored: peer='initiator-0'\n", "initiator-0": "Handshake stored: peer='target-0'\n"}
    assert row_of([measured(1, "LIBFABRIC", logs=logs)], (1, 5, 0)).figures["handshakes"].point == 2
    assert "1.4.0" in row_of([measured(1, "LIBFABRIC", logs=logs)], (1, 2, 0)).figures["handshakes"].reason
    assert "UCX has no NIXL-level handshake" in row_of([measured(1)], (1, 5, 0)).figures["handshakes"].reason


def test_what_carried_it_is_read_from_the_logs():
    log = "x Created 1 rails using provider=tcp\n"
    row = row_of([measured(1, logs={"initiator-0": log})], (1, 5, 0))
    assert row.evidence["provider"] == "tcp"


def test_the_ratio_is_paired_by_round_and_only_of_valid_rows():
    found = [
        measured(n, b, [10 * n * (2 if b == "LIBFABRIC" else 1)] * 3) for n in (1, 2, 3) for b in ("UCX", "LIBFABRIC")
    ]
    (one,) = ratios(found, {("w", "UCX"), ("w", "LIBFABRIC")}, ("UCX", "LIBFABRIC"))
    assert (one.ratio.point, one.ratio.n) == (pytest.approx(2), 3)
    assert one.ratio.low == pytest.approx(2)
    (none,) = ratios(found, {("w", "UCX")}, ("UCX", "LIBFABRIC"))
    assert (none.ratio.point, none.ratio.reason) == (None, "one of the two is not valid here")
    assert "one of the two" in ratio_line(none)
    assert ratios(found, set(), ("UCX",)) == []


def test_a_ratio_of_one_pair_has_no_interval():
    assert paired_ratio([(3.0, 2.0)]).low is None
    assert paired_ratio([]).point is None
    assert paired_ratio([(3.0, 2.0), (3.0, 2.0)]).high == pytest.approx(1.5)


def test_descriptors_left_after_merging_are_foreseen_for_all_ranks_and_targets():
    contiguous = Workload(name="w", blocks=4, block_bytes=8, regions=3, ranks=2, targets=2, pattern="contiguous")
    assert expected_merged(contiguous) == 3 * 2 * 2


def everything():
    setting = Setting(workloads=(WORK,), backends=("UCX", "LIBFABRIC"), rounds=2, pace=None)
    found = [measured(n, b) for n in (1, 2) for b in ("UCX", "LIBFABRIC")]
    found[3].failure = "initiator-0: \x1b[31mit hung"
    return results_of(found, setting, (1, 5, 0)), setting


def test_the_page_holds_every_column_of_nixlbench_the_failure_and_no_escape_sequence():
    from rich.console import Console

    (rows, found), _ = everything()
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    tools = [
        Figure(tool="ucx_perftest", size_bytes=8, latency_us=3.1, bandwidth_gb_s=0.2),
        Figure(tool="fi_pingpong", size_bytes=8, reason="gone"),
    ]
    for part in render(rows, found, tools):
        console.print(part)
    page = console.export_text()
    for word in ("block", "batch", "B/W", "aggregate", "network", "util", "prep", "post", "tx", "P99", "limit:"):
        assert word in page
    assert "FAILED round 2: initiator-0: \\x1b[31mit hung" in page
    assert "time over LIBFABRIC / time over UCX" in page
    assert "ucx_perftest, 8 B: 3.1 us" in page
    assert "no figure (gone)" in page
    assert "█" in page


def test_the_document_says_integrity_and_every_figure_with_n_and_unit(tmp_path):
    import msgspec

    from kvgauge.builds.records import Build

    (rows, found), setting = everything()
    build = Build(
        name="1.5.0", version="1.5.0", folder="", module="m", preload=(), libcuda="", sha256={"libnixl": "ab"}
    )
    whole = msgspec.json.decode(
        document(rows, found, [], setting=setting, build=build, args={"rounds": 2}, notes=["rehearsal"])
    )
    assert whole["integrity"] == {
        "blocks_checked": 48, "blocks_wrong": 0, "kinds": {}, "blocks_outside": 0, "right": True,
    }  # fmt: skip
    assert [row["backend"] for row in whole["rows"]] == ["UCX", "LIBFABRIC"]
    for row in whole["rows"]:
        assert set(row["figures"]["latency_us_p50"]) == {"point", "low", "high", "n", "unit", "reason", "note"}
        assert set(row["nixlbench"]) == {"Block Size (B)", "Batch Size", *NIXLBENCH}
    assert nixlbench_row(rows[0])["Avg Lat. (us)"] == 20
    assert {key for key, _ in COLUMNS} | {"load_ms", "copy_share_pct"} | {
        f"{what}_us_{q}" for what in ("prepare", "post", "transfer") for q in ("p50", "p90", "p999")
    } | {
        f"{what}_us_{q}" for what in ("gather", "scatter", "signal") for q in ("p50", "p90", "p99", "p999")
    } | {"prepare_us_p99"} == set(rows[0].figures)  # fmt: skip


UCX_PERFTEST = """\
+--------------+--------------+------------------------------+---------------------+-----------------------+
|    Stage     | # iterations | 50.0%ile | average | overall |  average |  overall |  average  |  overall  |
+--------------+--------------+----------+---------+---------+----------+----------+-----------+-----------+
Final:                   200     10.432    10.998    11.206     5682.89    5577.47       90926       89240
"""
FI_PINGPONG = """\
bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec
64k     200     =200     25m         0.01s   4915.20      13.33       0.08
"""


def test_figures_of_other_tools_are_read_and_other_output_is_refused():
    from kvgauge.failures import TransferError

    assert parse("ucx_perftest", UCX_PERFTEST, 65536) == (11.206, pytest.approx(5577.47 * 2**20 / 1e9))
    assert parse("fi_pingpong", FI_PINGPONG, 65536) == (13.33, 4.9152)
    for tool in ("ucx_perftest", "fi_pingpong"):
        with pytest.raises(TransferError, match=f"{tool} printed what kvgauge cannot read"):
            parse(tool, "nothing\n", 65536)
        with pytest.raises(TransferError):
            parse(tool, "", 1)


@pytest.mark.parametrize(
    ("size", "figures"),
    [(65536, (9505.75, 0.00689)), (1_000_000, (1901.82, 0.52581)), (1_572_864, (3785.32, 0.41552)),
     (3000, (1041.20, 0.00288)), (100, (4980.30, 0.00002))],
)  # fmt: skip
def test_what_fi_pingpong_1_17_wrote_is_read_whatever_way_it_wrote_the_size(samples_folder, size, figures):
    assert parse("fi_pingpong", (samples_folder / "fi-pingpong-1.17.0-tcp.txt").read_text(), size) == pytest.approx(
        figures
    )


def test_what_ucx_perftest_1_13_wrote_is_read(samples_folder):
    text = (samples_folder / "ucx-perftest-1.13.1-get.txt").read_text()
    assert parse("ucx_perftest", text, 65536) == (1171.185, pytest.approx(53.36 * 2**20 / 1e9))


@pytest.mark.parametrize(("tool", "backend"), [("ucx_perftest", "UCX"), ("fi_pingpong", "LIBFABRIC")])
def test_the_other_tools_give_a_figure_where_they_are_installed(tool, backend):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (Debian: ucx-utils, libfabric-bin)")
    (figure,) = beside([WORK], [backend])
    assert figure.tool == tool
    assert figure.reason is None
    assert figure.latency_us > 0


PROTO = Path(__file__).parents[1] / "samples"


@pytest.mark.parametrize(
    ("sample", "operation", "valid", "said"),
    [
        ("read", "READ", False, "read 0..inf: software emulation over tcp/lo"),
        ("write", "WRITE", True, "write 0..inf: zero-copy over cuda_ipc/cuda"),
    ],
)
def test_emulation_on_a_gpu_is_seen_where_it_was_and_only_there(sample, operation, valid, said):
    """Tables of an H100: the READ was emulated; the WRITE was not, though tables from host memory say so beside it."""
    log = (PROTO / f"nixl-1.5.0-ucx-h100-vram-{sample}-proto-info.log").read_text()
    work = msgspec.structs.replace(WORK, memory="VRAM", operation=operation)
    row = row_of([measured(1, work=work, logs={"initiator-0": log})], (1, 5, 0), fabric="cuda")
    assert row.evidence["protocol"] == said
    assert ("emulated" in row.evidence) is not valid
    cures = ("UCX_CUDA_IPC_ENABLE_GET_ZCOPY=on", "--strategy gathered")
    assert any(all(cure in reason for cure in cures) for reason in row.against) is not valid
    gathered = msgspec.structs.replace(work, strategy="gathered")
    row_gathered = row_of([measured(1, work=gathered, logs={"initiator-0": log})], (1, 5, 0), fabric="cuda")
    assert row_gathered.valid is valid  # one large READ is emulated too, and is not told to gather
    assert not any("--strategy" in reason for reason in row_gathered.against)
    assert row_of([measured(1, work=work, logs={"initiator-0": log})], (1, 5, 0), fabric="tcp").against == ()


def test_gpu_memory_that_goes_over_tcp_makes_the_row_invalid_without_emulation_too_from_source():
    """openucx/ucx: a WRITE of GPU memory may be copied through the host and sent, which is no emulation"""
    evidence = {"protocol": "write 0..inf: copy-in over tcp/lo"}
    assert "UCX moves it otherwise" in off_fabric("cuda", evidence)[0]
    assert (
        off_fabric("cuda", {"protocol": "write 0..64: short over tcp/lo, write 65..inf: zero-copy over cuda_ipc/c"})
        == ()
    )


def test_shared_memory_that_was_asked_for_and_is_tcp_makes_the_row_invalid():
    log = (PROTO / "nixl-1.5.1-ucx-proto-info.log").read_text()
    own, tcp = ([measured(1, logs={"initiator-0": text})] for text in (log, log.replace("cma/memory", "tcp/lo")))
    assert row_of(own, (1, 5, 0), fabric="shm").valid
    row = row_of(tcp, (1, 5, 0), fabric="shm")
    assert not row.valid
    assert any("fabric shm was asked for" in reason and "tcp/lo" in reason for reason in row.against)
    assert not row_of([measured(1)], (1, 5, 0), fabric="shm").valid, "nothing says what carried it"


def test_a_failure_quotes_what_nixl_logged():
    log = "E1124 14:05:27.887083     769 config.cpp:84] Invalid UCX_TLS=tcp,self for NIXL UCX backend\n"
    row = row_of([measured(1, failure="NIXL_ERR_BACKEND", logs={"target-0": log})], (1, 5, 0))
    assert row.failures == ("round 1: NIXL_ERR_BACKEND (NIXL: Invalid UCX_TLS=tcp,self for NIXL UCX backend)",)
