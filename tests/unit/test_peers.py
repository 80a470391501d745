"""Results of AIPerf, vllm bench serve and nixlbench, as the same records.

tests/samples/aiperf-0.13 was written by AIPerf 0.13 against `kvgauge serve` (paths shortened), vllm-bench-serve-0.32.0
by vLLM against its own workers. The other files of vllm bench serve and nixlbench's are made here, in the form that
their writers' source gives them (vllm/benchmarks/serve.py; benchmark/nixlbench/src/utils/utils.cpp of NIXL).
"""

import json
import random
import statistics

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvgauge.cli.main import main
from kvgauge.failures import KvgaugeError, SamplesError, UsageError
from kvgauge.peers import aiperf, nixlbench, vllm
from kvgauge.peers.find import find
from kvgauge.peers.write import write_run
from kvgauge.plan.records import Plan
from kvgauge.report import results as results_files
from kvgauge.samples.read import load_exchanges

MS = 1_000_000


@pytest.fixture(scope="module")
def aiperf_folder(samples_folder):
    return samples_folder / "aiperf-0.13"


@pytest.fixture(scope="module")
def aiperf_files(aiperf_folder):
    return (aiperf_folder / "profile_export.jsonl").read_bytes(), (
        aiperf_folder / "profile_export_aiperf.json"
    ).read_bytes()


@pytest.fixture(scope="module")
def vllm_file(samples_folder):
    return (samples_folder / "vllm-bench-serve-form.json").read_bytes()


@pytest.fixture(scope="module")
def nixlbench_file(samples_folder):
    return (samples_folder / "nixlbench-form.txt").read_bytes()


def whole(vllm_file):
    """The same without its failed request, as bytes."""
    value = json.loads(vllm_file)
    for name in ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors"):
        del value[name][3]
    return json.dumps(value | {"failed": 0}).encode()


def sent_ttfts_ms(piece):
    good = [each for each in piece.exchanges if not each.warmup and each.failure is None]
    return [(each.arrivals_ns[0] - each.sent_ns) / MS for each in good]


def test_aiperf_sums_are_those_of_the_imported_records(aiperf_files):
    """Counted from when it was sent, as AIPerf counts; our own figures count from when it was due."""
    piece = aiperf.read(*aiperf_files, source="here")
    theirs = json.loads(aiperf_files[1])
    good = [each for each in piece.exchanges if not each.warmup]
    assert statistics.fmean(sent_ttfts_ms(piece)) == pytest.approx(theirs["time_to_first_token"]["avg"], rel=1e-6)
    e2e_ms = [(each.arrivals_ns[-1] - each.sent_ns) / MS for each in good]
    assert statistics.fmean(e2e_ms) == pytest.approx(theirs["request_latency"]["avg"], rel=1e-6)
    assert piece.metrics["tpot_ms_mean"].point == pytest.approx(theirs["inter_token_latency"]["avg"], rel=1e-6)
    assert piece.metrics["itl_ms_mean"].point == pytest.approx(theirs["inter_chunk_latency"]["avg"], rel=1e-6)
    assert piece.metrics["requests"].point == theirs["request_count"]["avg"] == 12


def test_aiperf_lateness_is_what_its_scheduler_and_workers_took(aiperf_files):
    piece = aiperf.read(*aiperf_files, source="here")
    late_ms = piece.metrics["late_ms_mean"].point
    assert late_ms > 0
    assert piece.metrics["ttft_ms_mean"].point == pytest.approx(statistics.fmean(sent_ttfts_ms(piece)) + late_ms)
    assert any(limit.startswith("due times are when AIPerf's scheduler") for limit in piece.limits)


def test_aiperf_warm_up_stays_apart(aiperf_files):
    piece = aiperf.read(*aiperf_files, source="here")
    assert [each.warmup for each in piece.exchanges[:3]] == [True, True, False]
    assert (piece.cell.name, piece.cell.load, piece.cell.concurrency) == ("concurrency-2", "closed", 2)
    assert (piece.cell.requests, piece.cell.warmup_requests) == (12, 2)
    assert (piece.version, piece.model) == ("0.13.0", "Qwen3-0.6B")


def test_aiperf_sums_alone_give_points_without_intervals(aiperf_files):
    piece = aiperf.read(None, aiperf_files[1], source="here")
    ttft = piece.metrics["ttft_ms_mean"]
    assert (ttft.low, ttft.high) == (None, None)
    assert ttft.point == json.loads(aiperf_files[1])["time_to_first_token"]["avg"]
    assert piece.exchanges == ()
    assert any(limit.startswith("aggregated only") for limit in piece.limits)


def test_aiperf_records_alone_do_not_know_the_load(aiperf_files):
    piece = aiperf.read(aiperf_files[0], None, source="here")
    assert (piece.model, piece.cell.name) == ("not known", "all requests")
    assert any("profile_export_aiperf.json" in limit for limit in piece.limits)


def test_aiperf_without_server_usage_counts_tokens_itself(aiperf_files):
    text = aiperf_files[0].replace(b'"usage_completion_tokens"', b'"gone"')
    piece = aiperf.read(text, aiperf_files[1], source="here")
    assert {each.tokens_source for each in piece.exchanges} == {"tool"}
    assert any("AIPerf's tokenizer" in limit for limit in piece.limits)
    assert piece.metrics["tpot_ms_mean"].point is not None


def test_an_aiperf_request_that_failed_is_a_failure(aiperf_folder, aiperf_files):
    """The record is AIPerf's own, of a server that answered 503."""
    failed = (aiperf_folder / "failed-request.jsonl").read_bytes()
    piece = aiperf.read(aiperf_files[0] + failed, aiperf_files[1], source="here")
    (lost,) = [each for each in piece.exchanges if each.failure is not None]
    assert (lost.failure, lost.status, lost.arrivals_ns) == ("status", 503, ())
    assert "overloaded" in lost.detail
    assert piece.metrics["failures"].point == 1
    assert piece.metrics["failures"].n == 13


def test_vllm_sums_are_those_of_the_imported_records(vllm_file):
    (piece,) = vllm.read(vllm_file, source="here")
    theirs = json.loads(vllm_file)
    assert piece.metrics["ttft_ms_mean"].point == pytest.approx(theirs["mean_ttft_ms"], rel=1e-6)
    assert piece.metrics["tpot_ms_mean"].point == pytest.approx(theirs["mean_tpot_ms"], rel=1e-6)
    assert piece.metrics["itl_ms_mean"].point == pytest.approx(theirs["mean_itl_ms"], rel=1e-6)
    assert piece.metrics["output_token_throughput_tok_s"].point == pytest.approx(theirs["output_throughput"], rel=0.01)
    assert (piece.metrics["requests"].point, piece.metrics["failures"].point) == (19, 1)
    assert (piece.cell.name, piece.cell.load) == ("concurrency-4", "closed")


def test_the_sums_of_a_real_vllm_bench_are_those_of_the_imported_records(samples_folder):
    """vllm bench serve of vLLM 0.32.0 against its own prefill and decode workers over NIXL, on an overloaded machine."""
    data = (samples_folder / "vllm-bench-serve-0.32.0.json").read_bytes()
    (piece,) = vllm.read(data, source="here")
    theirs = json.loads(data)
    for ours, sum_of in (("ttft_ms", "ttft"), ("tpot_ms", "tpot"), ("itl_ms", "itl")):
        assert piece.metrics[f"{ours}_mean"].point == pytest.approx(theirs[f"mean_{sum_of}_ms"], rel=1e-6)
    e2e_ms = [(each.arrivals_ns[-1] - each.sent_ns) / MS for each in sorted(piece.exchanges, key=lambda e: e.sent_ns)]
    order = sorted(range(8), key=theirs["start_times"].__getitem__)
    assert e2e_ms == pytest.approx([1e3 * theirs["latencies"][at] for at in order], rel=1e-6)
    assert piece.metrics["output_token_throughput_tok_s"].point == pytest.approx(theirs["output_throughput"], rel=0.01)
    assert {len(each.arrivals_ns) for each in piece.exchanges} == {4, 7, 8}, "chunks are not tokens: 8 of each"
    assert {each.tokens_out for each in piece.exchanges} == {8}
    assert (piece.cell.name, piece.cell.load) == ("concurrency-2", "closed")


def test_vllm_failures_keep_the_last_line_of_what_was_said(vllm_file):
    (piece,) = vllm.read(vllm_file, source="here")
    (lost,) = [each for each in piece.exchanges if each.failure is not None]
    assert (lost.failure, lost.arrivals_ns) == ("reported", ())
    assert lost.detail == "aiohttp.client_exceptions.ServerDisconnectedError: Server disconnected"


def test_vllm_lateness_is_not_known_and_never_zero(vllm_file):
    (piece,) = vllm.read(vllm_file, source="here")
    assert piece.metrics["late_ms_mean"].point is None
    assert "due" in piece.metrics["late_ms_mean"].reason


def test_an_older_vllm_file_has_no_start_times_and_says_so(vllm_file):
    value = json.loads(vllm_file)
    del value["start_times"]
    (piece,) = vllm.read(json.dumps(value).encode(), source="here")
    assert {each.sent_ns for each in piece.exchanges} == {0}
    assert any(limit.startswith("no start times") for limit in piece.limits)
    assert piece.metrics["output_token_throughput_tok_s"].point == pytest.approx(value["output_throughput"])


def test_a_vllm_file_without_details_gives_points_without_intervals(vllm_file):
    value = json.loads(vllm_file)
    for name in ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors"):
        del value[name]
    (piece,) = vllm.read(json.dumps(value).encode(), source="here")
    assert (piece.metrics["ttft_ms_mean"].point, piece.metrics["ttft_ms_mean"].low) == (value["mean_ttft_ms"], None)
    assert piece.metrics["e2e_latency_ms_mean"].reason == "mean_e2el_ms is not in the file"
    assert any("--save-detailed" in limit for limit in piece.limits)


def test_results_appended_to_one_vllm_file_are_repetitions(vllm_file, tmp_path):
    pieces = vllm.read(whole(vllm_file) + b"\n" + whole(vllm_file), source="here")
    results = write_run(pieces, tmp_path / "out")
    assert [run.repetition for run in results.tests[0].runs] == [1, 1, 2, 2]
    assert next(row.n for row in results.tests[0].summary if row.metric == "ttft_ms_mean") == 2


def test_a_vllm_file_that_does_not_add_up_says_so(vllm_file):
    value = json.loads(vllm_file) | {"completed": 7}
    (piece,) = vllm.read(json.dumps(value).encode(), source="here")
    assert "the file does not add up: completed is 7, 19 requests have no error" in piece.limits


@pytest.mark.parametrize(
    ("asked", "name", "load"),
    [
        ({"request_rate": "inf", "max_concurrency": None}, "all-20-at-once", "wave"),
        ({"request_rate": 5.0, "max_concurrency": None}, "poisson-5", "poisson"),
        ({"request_rate": 5.0, "burstiness": 0.5, "max_concurrency": 8}, "gamma-5-concurrency-8", "gamma"),
        ({"request_rate": "inf", "max_concurrency": None, "ramp_up_strategy": "linear"}, "ramp-linear", "ramp"),
    ],
)
def test_a_vllm_load_is_called_what_it_was(vllm_file, asked, name, load):
    (piece,) = vllm.read(json.dumps(json.loads(vllm_file) | asked).encode(), source="here")
    assert (piece.cell.name, piece.cell.load) == (name, load)


def test_every_row_of_nixlbench_is_a_cell(nixlbench_file):
    pieces = nixlbench.read(nixlbench_file, source="here")
    assert [piece.cell.name for piece in pieces] == [
        "4096B-x1-WRITE-VRAM",
        "1048576B-x1-WRITE-VRAM",
        "67108864B-x1-WRITE-VRAM",
    ]
    assert [piece.metrics["bandwidth_gb_s"].point for piece in pieces] == [0.106944, 9.361, 22.96]
    assert [piece.metrics["wait_us_p99"].n for piece in pieces] == [1008, 1008, 63]  # fewer for blocks above 1 MiB
    assert pieces[0].metrics["wait_us_p99"].low is None
    assert pieces[0].metrics["post_us_mean"].unit == "us"


@pytest.mark.parametrize(
    "stamp", ["[2026-07-28T10:17:33.487Z] ", "2026-07-28T10:17:33.487123456Z ", "2026-07-28T10:17:33+02:00 "]
)
def test_a_log_that_stamps_each_line_is_read_as_the_table_it_holds(nixlbench_file, stamp):
    stamped = b"".join(stamp.encode() + line + b"\n" for line in nixlbench_file.splitlines())
    assert nixlbench.read(stamped, source="here") == nixlbench.read(nixlbench_file, source="here")


def test_each_start_in_a_log_has_a_configuration_of_its_own(nixlbench_file):
    read = nixlbench_file.replace(b": WRITE", b": READ").replace(b": LIBFABRIC", b": UCX").replace(b": 1008", b": 208")
    first, *_, last = nixlbench.read(nixlbench_file + b"+ true\n" + read, source="here")
    assert (first.cell.name, first.metrics["wait_us_p99"].n) == ("4096B-x1-WRITE-VRAM", 1008)
    assert (last.cell.name, last.metrics["wait_us_p99"].n) == ("67108864B-x1-READ-VRAM", 13)
    assert ("claimed_backend", "UCX") in {(fact.name, fact.value) for fact in last.claims}
    assert ("claimed_backend", "LIBFABRIC") in {(fact.name, fact.value) for fact in first.claims}


def test_two_backends_of_nixlbench_are_no_repetitions_of_one_test(nixlbench_file, tmp_path):
    both = nixlbench_file + nixlbench_file.replace(b": LIBFABRIC", b": UCX")
    with pytest.raises(UsageError, match=r"not asked for alike: backend \(LIBFABRIC, UCX\)"):
        write_run(nixlbench.read(both, source="here"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    twice = nixlbench_file + nixlbench_file.replace(b"0.106944", b"0.206944")
    results = write_run(nixlbench.read(twice, source="here"), tmp_path / "out")
    assert {run.repetition for run in results.tests[0].runs} == {1, 2}


def test_nixlbench_of_several_pairs_has_two_columns_more():
    heads = ["Block Size (B)", "Batch Size", "B/W (GB/Sec)", "Aggregate B/W (GB/Sec)", "Network Util (%)",
             "Avg Lat. (us)", "Avg Prep (us)", "P99 Prep (us)", "Avg Post (us)", "P99 Post (us)", "Avg Tx (us)", "P99 Tx (us)"]  # fmt: skip
    widths = [20, 15, 15, 25, 20, 15, 15, 15, 15, 15, 15, 15]
    values = ["4096", "1", "0.100000", "0.400000", "0.400000", "40.0", "5.0", "9.0", "12.0", "20.0", "25.0", "41.0"]
    text = "\n".join(
        "".join(f"{each:<{width}}" for each, width in zip(line, widths, strict=True)) for line in (heads, values)
    )
    (piece,) = nixlbench.read(text.encode(), source="here")
    assert piece.metrics["bandwidth_aggregate_gb_s"].point == 0.4
    assert any(limit.startswith("the configuration is not in the file") for limit in piece.limits)
    assert piece.metrics["bandwidth_gb_s"].n == 0  # iterations are not known


def test_nixlbench_before_it_told_phases_apart_is_read_too():
    text = ("Loaded plugin UCX\nBlock Size (B)      Batch Size     Avg Lat. (us)  B/W (MiB/Sec)  B/W (GiB/Sec)  B/W (GB/Sec)\n"
            "-----------------\n4096                64             3.11355        1254.6         1.22519        1.31554\n")  # fmt: skip
    (piece,) = nixlbench.read(text.encode(), source="here")
    assert (piece.cell.name, piece.metrics["bandwidth_gb_s"].point) == ("4096B-x64", 1.31554)


def test_a_load_whose_requests_failed_is_invalid_as_one_of_kvgauge_s_own_is(vllm_file, tmp_path):
    results = write_run(vllm.read(vllm_file, source="here"), tmp_path / "out")
    run = results.tests[0].runs[1]
    assert run.status == "invalid"
    assert run.reasons == ("1 of 20 requests failed (reported): what is left is not the load that was offered",)
    assert run.metrics["ttft_ms_mean"].point is not None
    assert all(row.point is None for row in results.tests[0].summary)


def test_what_nixlbench_says_of_itself_is_a_claim_and_no_key_is_kept(nixlbench_file, tmp_path):
    folder = tmp_path / "out"
    results = write_run(nixlbench.read(nixlbench_file, source="here"), folder)
    evidence = (folder / "runs" / "r1-nixlbench" / "evidence.json").read_text()
    assert '"claimed_backend"' in evidence
    kept = "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    assert "not-for-the-disk" not in kept
    test = results.tests[0]
    assert (test.backend, test.fabric, test.runs[0].proved) == ("unobserved", "unobserved", {})


@pytest.mark.parametrize("sample", ["aiperf-0.13", "vllm-bench-serve-form.json", "nixlbench-form.txt"])
def test_the_tool_is_told_from_what_it_wrote(samples_folder, sample):
    pieces = find([samples_folder / sample])
    assert {piece.tool for piece in pieces} == {sample.partition("-")[0]}


@pytest.mark.parametrize("name", ["profile_export.jsonl", "profile_export_aiperf.json"])
def test_one_of_aiperf_s_files_is_enough(aiperf_folder, name):
    (piece,) = find([aiperf_folder / name])
    assert piece.model == "Qwen3-0.6B"
    assert bool(piece.exchanges) == name.endswith("jsonl")


def test_a_folder_of_several_aiperf_runs_is_repetitions(aiperf_folder, tmp_path):
    for number in (1, 2, 3):
        folder = tmp_path / "art" / "profile_runs" / f"run_{number:04}"
        folder.mkdir(parents=True)
        for path in aiperf_folder.glob("profile_export*"):
            lines = path.read_bytes().splitlines(keepends=True)
            kept = lines[: len(lines) + 1 - number] if path.suffix == ".jsonl" else lines
            (folder / path.name).write_bytes(b"".join(kept))
    pieces = find([tmp_path / "art"])
    assert len(pieces) == 3
    results = write_run(pieces, tmp_path / "out", test="mine", cell="512x128-2")
    assert results.tests[0].name == "mine"
    assert {run.cell for run in results.tests[0].runs} == {None, "512x128-2"}
    assert next(row.n for row in results.tests[0].summary if row.metric == "ttft_ms_mean") == 3


@pytest.mark.parametrize("sample", ["aiperf-0.13", "vllm-bench-serve-0.32.0.json", "nixlbench-form.txt"])
def test_a_result_that_is_in_twice_is_no_repetition(samples_folder, sample, tmp_path, capsys):
    """Copies have no spread: five of them would look like five runs that agree to the last digit."""
    path = samples_folder / sample
    if path.is_file():
        copy = tmp_path / "copy.json"
        copy.write_bytes(path.read_bytes())
    else:
        copy = path
    assert main(["import", str(path), str(copy), "--out", str(tmp_path / "out")]) == 2
    assert "a result that is in twice is no repetition" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_imported_can_be_reported_and_says_its_limits(samples_folder, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["import", str(samples_folder / "aiperf-0.13"), "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    again = capsys.readouterr().out
    assert again.strip() in printed
    assert "transport unobserved" in again
    assert "limit: transport not observed" in again
    assert "limit: no kernel stamps" in again
    results = results_files.read(folder)
    assert results.tests[0].tp == results_files.Tp(prefill=None, decode=None)
    assert msgspec.convert(results.plan, Plan).cells[0].concurrency == 2
    loaded = load_exchanges(folder / "runs" / results.tests[0].runs[0].run_id)
    piece = find([samples_folder / "aiperf-0.13"])[0]
    assert [each.arrivals_ns for each in loaded] == [each.arrivals_ns for each in piece.exchanges]
    assert {each.cell for each in loaded} == {"concurrency-2"}


def test_without_out_the_folder_lies_beside_the_runs_and_latest_stays(samples_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(samples_folder / "aiperf-0.13")]) == 0
    (folder,) = (tmp_path / "kvgauge-runs").iterdir()
    assert folder.name.endswith("-import-aiperf")
    assert (folder / "results.json").is_file()


def test_nixlbench_is_reported_as_transfers(samples_folder, tmp_path, capsys):
    assert main(["import", str(samples_folder / "nixlbench-form.txt"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "67108864B-x1-WRITE-VRAM" in printed
    assert "2,923" in printed
    assert "time to first token" not in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere"], "is not there"),
        (["{samples}/nixl-1.5.1-ucx-info.log"], "is none of"),
        (["{samples}/aiperf-0.13", "--from", "vllm"], "holds none of"),
        (["{samples}/aiperf-0.13", "{samples}/nixlbench-form.txt"], "different tools"),
        (["{samples}/aiperf-0.13", "{samples}/vllm-bench-serve-form.json"], "different tools"),
        (["{samples}/nixlbench-form.txt", "--cell", "one"], "--cell names one cell"),
        (["{samples}/aiperf-0.13", "--test", "a\nb"], "--test"),
        (["{samples}/aiperf-0.13", "--out", "{samples}"], "exists already"),
    ],
)
def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(
    samples_folder, tmp_path, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(tmp_path)
    assert main(["import", *(each.format(samples=samples_folder) for each in arguments)]) == 2
    seen = capsys.readouterr().err
    assert said in seen
    assert seen.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_larger_than_any_result_is_refused(tmp_path, monkeypatch, vllm_file):
    monkeypatch.setattr("kvgauge.peers.find.FILE_BYTES_MAX", 1000)
    (tmp_path / "big.json").write_bytes(vllm_file)
    with pytest.raises(SamplesError, match="larger than"):
        find([tmp_path / "big.json"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ttfts": [0.1]}, "lists of"),
        ({"itls": None}, "but not itls"),
        ({"duration": -1.0}, "duration is -1"),
        ({"completed": "many"}, "is not what vllm bench serve writes"),
        ({"start_times": [1e300] * 20}, "start time"),
        ({"start_times": [float("inf")] * 20}, "not what vllm|start time"),
        ({"output_lens": [10**400] * 20}, "tokens"),
    ],
)
def test_a_vllm_file_that_was_edited_is_refused_with_the_reason(vllm_file, change, said):
    with pytest.raises(SamplesError, match=said):
        vllm.read(json.dumps(json.loads(vllm_file) | change).encode(), source="here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no table"),
        (b"Block Size (B)   Batch Size\n", "lacks B/W"),
        (b"Block Size (B) Batch Size   B/W (GB/Sec)\n1 1 1\n", "lacks Block Size"),
        (b"Block Size (B)   Batch Size   B/W (GB/Sec)\n", "no row"),
        (b"Block Size (B)   Batch Size   B/W (GB/Sec)\n4096 1\n", "2 values below 3 heads"),
        (b"Block Size (B)   Batch Size   B/W (GB/Sec)\n4096 1 nan\n", "expected 0 to"),
        (b"Block Size (B)   Batch Size   B/W (GB/Sec)\n4096 0 1\n", "whole number"),
        (b"Block Size (B)   Batch Size   B/W (GB/Sec)\n4096 1 fast\n", "not a number"),
    ],
)
def test_a_table_that_is_not_nixlbench_s_is_refused_with_the_line(text, said):
    with pytest.raises(SamplesError, match=said):
        nixlbench.read(text, source="here")


def mutated(data, seed):
    """A few bytes changed, cut, doubled or dropped, numbers made absurd."""
    rng = random.Random(seed)
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(6)
        if what == 0:
            data = data[:at]
        elif what == 1:
            del data[at : at + rng.randint(1, 40)]
        elif what == 2:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif what == 3:
            data[at:at] = data[at : at + rng.randint(1, 200)]
        elif what == 4:
            data[at : at + 3] = rng.choice(
                [b"1e999", b"-1", b"NaN", b"null", b"9" * 30, b'"x"', b"[]", b"{}", b"[" * 5000, b"\xff"]
            )
        elif digits := [index for index, byte in enumerate(data) if 48 <= byte <= 57]:
            data[rng.choice(digits)] = 45
        if not data:
            break
    return bytes(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from(["aiperf", "aiperf sums", "vllm", "nixlbench"]))
def test_whatever_stands_in_a_file_gives_records_or_one_line(aiperf_files, vllm_file, nixlbench_file, seed, which):
    try:
        if which == "aiperf":
            pieces = [
                aiperf.read(mutated(b"\n".join(aiperf_files[0].split(b"\n")[:3]), seed), aiperf_files[1], source="here")
            ]
        elif which == "aiperf sums":
            pieces = [aiperf.read(None, mutated(aiperf_files[1], seed), source="here")]
        else:
            read, data = (vllm.read, vllm_file) if which == "vllm" else (nixlbench.read, nixlbench_file)
            pieces = read(mutated(data, seed), source="here")
    except KvgaugeError as error:
        assert "\n" not in str(error).strip()
    else:
        for piece in pieces:
            for name, estimate in piece.metrics.items():
                assert estimate.point is None or estimate.point == estimate.point, name
            msgspec.json.encode(piece)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_end_as_one_line(tmp_path, data):
    path = tmp_path / "any"
    path.write_bytes(data)
    for tool in (None, "aiperf", "vllm", "nixlbench"):
        with pytest.raises((UsageError, SamplesError)) as error:
            find([path], tool)
        assert "\n" not in str(error.value)


def test_mutated_files_that_are_taken_can_be_written(aiperf_files, vllm_file, nixlbench_file, tmp_path):
    """What the readers let through must not fail later: 40 of each, written and read back."""
    written = 0
    for seed in range(40):
        for name, read in (
            ("a", lambda d: [aiperf.read(d, None, source="x")]),
            ("v", lambda d: vllm.read(d, source="x")),
            ("n", lambda d: nixlbench.read(d, source="x")),
        ):
            data = {"a": aiperf_files[0], "v": vllm_file, "n": nixlbench_file}[name]
            try:
                pieces = read(mutated(data, seed))
                write_run(pieces, tmp_path / f"{name}{seed}")
            except KvgaugeError:
                continue
            results_files.read(tmp_path / f"{name}{seed}")
            written += 1
    assert written > 10


def test_imported_results_can_be_compared_and_the_page_says_what_they_lack(vllm_file, tmp_path, capsys):
    """Five results of each; the second side's first tokens come twice as late."""
    value = json.loads(whole(vllm_file))
    for side, factor in (("before", 1), ("after", 2)):
        (tmp_path / side).mkdir()
        for number in range(5):
            slower = [ttft * factor * (1 + number / 100) for ttft in value["ttfts"]]
            (tmp_path / side / f"{number}.json").write_text(json.dumps(value | {"ttfts": slower}))
        assert main(["import", str(tmp_path / side), "--out", str(tmp_path / f"{side}-run")]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "before-run"), str(tmp_path / "after-run")]) == 1
    page = " ".join(capsys.readouterr().out.split())
    assert "worse" in page
    assert "imported (both sides): transport not observed" in page
    assert "imported (both sides): vllm bench does not record when requests were due" in page


def test_bandwidth_of_two_nixlbench_tables_can_be_compared(nixlbench_file, tmp_path, capsys):
    for side, bandwidth in (("before", b"0.106944"), ("after", b"0.108")):
        write_run(nixlbench.read(nixlbench_file.replace(b"0.106944", bandwidth), source=side), tmp_path / side)
    assert main(["compare", str(tmp_path / "before"), str(tmp_path / "after")]) == 4  # one run a side
    assert "4096B-x1" in capsys.readouterr().out
