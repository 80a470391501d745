"""Open loads and ends in a plan: what is read, what is refused and where, and what it amounts to."""

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.failures import PlanError
from kvgauge.plan import load_files, load_plan
from kvgauge.plan.expand import cell_s, under_way
from kvgauge.plan.open import offered, said, span_s
from kvgauge.plan.read import read
from kvgauge.plan.records import OPEN_LOADS, Burst, Plan, Ramp, Until
from kvgauge.plan.reference import quick
from kvgauge.plan.trace import BYTES_MAX, again, asked, parse, summary
from scene import make_cell, make_test

HEAD = """\
name: open
primary: {metric: ttft_ms_mean, cell: c}
tests: [{name: A, backend: UCX, fabric: tcp, build: 1.5.0, model: Qwen3-0.6B}]
cells:
"""
LENGTHS = "input_tokens: 512, output_tokens: 32"
TRACE = b"""\
{"timestamp": 100, "input_length": 600, "output_length": 5, "hash_ids": [7, 8], "type": "chat"}

{"timestamp": 100, "input_length": 512, "output_length": 9, "hash_ids": [7]}
{"timestamp": 2100.5, "input_length": 40, "output_length": 1}
"""


def plan(cell: str, files: dict[str, bytes] | None = None) -> Plan:
    def read_file(path: str) -> bytes:
        if files and path in files:
            return files[path]
        raise FileNotFoundError(2, "No such file or directory", path)

    return read(f"{HEAD}  - {{name: c, {cell}}}\n", source="p.yaml", known_builds=("1.5.0",), read_file=read_file)


def cells_of(cell: str):
    return plan(cell.replace("LENGTHS", LENGTHS)).cells


def test_a_list_of_rates_is_a_cell_each():
    text = f"{HEAD}  - {{name: c, load: closed, concurrency: 1, requests: 1, {LENGTHS}}}\n"
    text += f"  - {{name: p, load: poisson, rate: [0.5, 4], duration_s: 30, {LENGTHS}}}\n"
    _, slow, fast = read(text, source="p.yaml", known_builds=("1.5.0",)).cells
    assert [(each.name, each.rate, each.concurrency, each.duration_s) for each in (slow, fast)] == [
        ("p-0.5", 0.5, 1024, 30.0),
        ("p-4", 4.0, 1024, 30.0),
    ]
    assert slow.warmup_requests == 10


def test_each_shape_is_read():
    [gamma] = cells_of("load: gamma, rate: 3, burstiness: 0.5, requests: 9, concurrency: 4, LENGTHS")
    assert (gamma.burstiness, gamma.concurrency, gamma.requests, gamma.warmup_requests) == (0.5, 4, 9, 4)
    [ramp] = cells_of("load: ramp, ramp: {from: 0, to: 20, over_s: 60}, LENGTHS")
    assert (ramp.ramp, ramp.duration_s) == (Ramp(from_rate=0, to_rate=20, over_s=60), 60.0)
    [burst] = cells_of("load: burst, burst: {size: 10, every_s: 5}, requests: 40, LENGTHS")
    assert burst.burst == Burst(size=10, every_s=5)


def test_until_looks_at_the_primary_metric_unless_another_is_named():
    [cell] = cells_of("load: closed, concurrency: 2, until: {half_width: 2%, at_most_s: 60}, LENGTHS")
    assert (cell.until, cell.duration_s) == (Until(metric="ttft_ms_mean", half_width=0.02), 60.0)
    [cell] = cells_of(
        "load: constant, rate: 1, until: {metric: tpot_ms_mean, half_width: 0.5%, at_most_requests: 900}, LENGTHS"
    )
    assert (cell.until, cell.requests, cell.duration_s) == (Until(metric="tpot_ms_mean", half_width=0.005), 900, None)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("load: poison, rate: 1, requests: 1", "did you mean 'poisson'"),
        ("load: poisson, requests: 1", "has no `rate`"),
        ("load: closed, concurrency: 1, rate: 2, requests: 1", "rate: a closed load has none; it is for constant"),
        ("load: poisson, rate: 1, burstiness: 2, requests: 1", "it is for gamma"),
        ("load: poisson, rate: 0, requests: 1", "expected a number from 0.001 to 100000, got '0'"),
        ("load: poisson, rate: 1e3, requests: 1", "expected a number"),
        ("load: poisson, rate: [2, 2.0], requests: 1", "2 is listed twice"),
        ("load: poisson, rate: 1", "has no `requests` (or `requests_per_slot`), `duration_s` or `until`"),
        ("load: poisson, rate: 1, requests: 5, duration_s: 5", "given beside `requests`; a cell has one end"),
        ("load: poisson, rate: 1, requests_per_slot: 5", "no slots that send in turn"),
        ("load: poisson, rate: 1, requests: 5, concurrency: [1, 2]", "vary `rate` instead"),
        ("load: poisson, rate: [1, 2], requests: [5]", "1 numbers for 2 rates"),
        ("load: ramp, ramp: {from: 0, to: 0, over_s: 5}", "one of its rates must be at least"),
        ("load: ramp, ramp: {from: 0, over_s: 5}", "ramp has no `to`"),
        ("load: burst, burst: {size: 0, every_s: 1}, requests: 1", "expected a whole number from 1"),
        ("load: constant, rate: 1, until: {half_width: 2%}", "has no `at_most_requests` or `at_most_s`"),
        ("load: constant, rate: 1, until: {half_width: 2, at_most_s: 9}", "expected from 0.1% to 50%, got '2'"),
        (
            "load: constant, rate: 1, until: {metric: ttft_ms_p99, half_width: 2%, at_most_s: 9}",
            "did you mean 'ttft_ms_mean'",
        ),
    ],
)
def test_a_mistake_names_its_line_and_what_would_do(cell, words):
    with pytest.raises(PlanError) as caught:
        plan(f"{cell}, {LENGTHS}")
    assert words in str(caught.value)
    assert str(caught.value).startswith("p.yaml:5: ")


def test_a_trace_is_remembered_by_its_hash_and_its_sizes():
    [cell] = plan("load: trace, trace: t.jsonl, speed_up: 2", {"t.jsonl": TRACE}).cells
    trace = cell.trace
    assert trace.sha256 == hashlib.sha256(TRACE).hexdigest()
    assert (trace.path, trace.requests, trace.span_s, trace.input_tokens_max) == ("t.jsonl", 3, 2.0005, 600)
    assert (cell.requests, cell.output_tokens, cell.speed_up, cell.input_tokens) == (3, 9, 2.0, None)
    assert span_s(cell) == pytest.approx(1.00025)
    [first] = plan("load: trace, trace: t.jsonl, requests: 1", {"t.jsonl": TRACE}).cells
    assert first.requests == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{oops", "t.jsonl:4: "),
        (b"\xff", "t.jsonl:4: "),
        (b'{"timestamp": 2, "input_length": 5}', "missing required field `output_length`"),
        (b'{"timestamp": 200, "input_length": 0, "output_length": 1}', "`int` >= 1"),
        (b'{"timestamp": 99, "input_length": 5, "output_length": 1}', "99 is before the last one's, 100; sort"),
        (
            b'{"timestamp": 200, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]}',
            "2 hash_ids for 512 prompt tokens, which are 1 blocks of 512",
        ),
    ],
)
def test_a_malformed_line_of_a_trace_is_named(line, words):
    three = TRACE.splitlines(keepends=True)[:3]
    with pytest.raises(PlanError) as caught:
        plan("load: trace, trace: t.jsonl", {"t.jsonl": b"".join(three) + line + b"\n"})
    assert words in str(caught.value)
    assert "t.jsonl:4: " in str(caught.value)


@given(st.binary(max_size=300))
def test_whatever_a_trace_holds_it_is_read_or_refused(data):
    try:
        assert parse(data, "t")
    except PlanError as error:
        assert str(error).startswith("t")


def test_a_trace_that_is_missing_empty_or_too_long_is_refused():
    with pytest.raises(PlanError, match=r"p\.yaml:5: trace: cannot read t\.jsonl: No such file"):
        plan("load: trace, trace: t.jsonl")
    with pytest.raises(PlanError, match="the trace is empty"):
        parse(b"\n\n", "t")
    with pytest.raises(PlanError, match="longer than 32 MiB"):
        parse(b" " * (BYTES_MAX + 1), "t")
    with pytest.raises(PlanError, match="given beside `trace`"):
        plan("load: trace, trace: t.jsonl, output_tokens: 4", {"t.jsonl": TRACE})


def test_a_trace_that_changed_since_the_plan_was_read_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(TRACE)
    (tmp_path / "p.yaml").write_text(HEAD + "  - {name: c, load: trace, trace: t.jsonl}\n")
    found = load_plan(tmp_path / "p.yaml", quick=False, tests=())
    assert msgspec.json.decode(msgspec.json.encode(found), type=Plan) == found
    path = found.cells[0].trace.path
    assert path == str(tmp_path / "t.jsonl")
    assert [request.at_ns for request in load_files(found.cells)[path]] == [0, 0, 2_000_500_000]
    (tmp_path / "t.jsonl").write_bytes(TRACE + b"\n")
    with pytest.raises(PlanError, match="not what it was when the plan was read"):
        load_files(found.cells)
    (tmp_path / "t.jsonl").unlink()
    with pytest.raises(PlanError, match="put it back"):
        load_files(found.cells)


def trace_cell(**changes):
    requests = parse(TRACE, "t")
    given = {"load": "trace", "trace": summary("t", TRACE, requests), "requests": 3, "warmup_requests": 2}
    return make_cell(**{**given, "input_tokens": None, "output_tokens": 9, "concurrency": 64, **changes}), requests


def test_each_request_of_a_trace_has_its_own_lengths_and_warm_up_the_mean_ones():
    cell, requests = trace_cell()
    assert again(cell.trace, TRACE) == requests
    assert [asked(cell, requests, seq) for seq in range(5)] == [(384, 5), (384, 5), (600, 5), (512, 9), (40, 1)]


def test_the_estimate_follows_the_clock_of_an_open_load():
    test = make_test()
    slow = make_cell(load="constant", rate=1.0, requests=60, concurrency=64)
    assert cell_s(test, slow) == pytest.approx(60, rel=0.1)
    assert cell_s(test, msgspec.structs.replace(slow, duration_s=10.0)) == pytest.approx(10, rel=0.2)
    assert offered(msgspec.structs.replace(slow, duration_s=10.0)) == 10
    ramp = make_cell(load="ramp", ramp=Ramp(from_rate=0, to_rate=10, over_s=10), requests=1000, duration_s=10.0)
    assert offered(ramp) == 50
    assert span_s(msgspec.structs.replace(ramp, duration_s=None, requests=50)) == pytest.approx(10)
    heavy = make_cell(load="constant", rate=1000.0, requests=1000, input_tokens=4096)
    assert cell_s(test, heavy) > 10, "a queue takes as long as what is in it"


def test_room_is_made_for_what_an_open_load_has_under_way_and_not_for_its_limit():
    slow = make_cell(load="constant", rate=1.0, requests=60, concurrency=1024)
    assert under_way(make_test(), slow) == 16
    assert under_way(make_test(), msgspec.structs.replace(slow, concurrency=3)) == 3
    burst = make_cell(load="burst", burst=Burst(size=100, every_s=60), requests=600, concurrency=1024)
    assert under_way(make_test(), burst) == 100
    assert under_way(make_test(), make_cell(concurrency=7)) == 7


def test_a_quick_plan_cuts_open_loads_and_ends_of_their_own_short():
    long = plan(f"load: poisson, rate: 100, until: {{half_width: 2%, at_most_s: 900}}, {LENGTHS}")
    [cell] = quick(long).cells
    assert (cell.requests, cell.duration_s, cell.until, cell.warmup_requests) == (20, 10.0, None, 1)


def test_the_example_is_valid():
    found = load_plan(Path(__file__).parents[2] / "examples" / "open-loads.yaml", quick=False, tests=())
    assert {cell.load for cell in found.cells} == {*OPEN_LOADS, "closed"}
    assert load_files(found.cells)


def test_a_load_is_said_in_words():
    cell, _ = trace_cell(speed_up=2.0)
    assert said(cell) == "trace x2"
    assert said(make_cell(load="gamma", rate=2.5, burstiness=0.5)) == "gamma 2.5 req/s burstiness 0.5"
    assert json.loads(msgspec.json.encode(cell))["trace"]["requests"] == 3
