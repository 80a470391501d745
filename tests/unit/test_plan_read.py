import random
import re
from importlib import resources
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvgauge.failures import PlanError
from kvgauge.plan.nodes import TEXT_BYTES_MAX
from kvgauge.plan.read import read, rehearsal
from kvgauge.plan.records import ColdStart, Plan

BUILDS = ("0.9.0", "1.2.0", "1.4.1", "1.5.0")
REFERENCE = resources.files("kvgauge.plan").joinpath("reference.yaml").read_text()
EXAMPLES = Path(__file__).parents[2] / "examples"

SHORT = """\
name: short
primary: {metric: ttft_ms_mean, cell: one}
baseline: A
defaults: {backend: UCX, fabric: tcp, build: 1.5.0, model: Llama-3.1-8B}
tests:
  - name: A
  - name: B
    backend: LIBFABRIC
    tp: {prefill: 4, decode: 8}
cells:
  - name: one
    load: closed
    concurrency: 5
    requests: 10
    prompt: Hello
    output_tokens: 4
"""


def plan(text: str | bytes) -> Plan:
    return read(text, source="p.yaml", known_builds=BUILDS)


def edited(old: str, new: str) -> str:
    assert SHORT.count(old) == 1, old
    return SHORT.replace(old, new)


def refusal(text: str | bytes) -> str:
    with pytest.raises(PlanError) as caught:
        plan(text)
    return str(caught.value)


def test_a_short_plan_is_read_with_its_defaults():
    short = plan(SHORT)
    a, b = short.tests
    assert (short.name, short.source, short.repetitions, short.seed, short.rehearsal) == ("short", "p.yaml", 5, 1, True)
    assert (a.backend, a.prefill_tp, a.decode_tp, a.patches, a.stand_in, a.baseline) == ("UCX", 1, 1, "none", None, ())
    assert (b.backend, b.prefill_tp, b.decode_tp, b.model, b.baseline) == ("LIBFABRIC", 4, 8, "Llama-3.1-8B", ("A",))
    assert short.cells[0].warmup_requests == 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: A", "basline: A", "p.yaml:3: the plan: unknown key 'basline'; did you mean 'baseline'?"),
        ("    tp: {", "    tpp: {", "p.yaml:9: tests: unknown key 'tpp'; did you mean 'tp'?"),
        ("    load: closed", "    lode: closed", "p.yaml:12: cells: unknown key 'lode'; did you mean 'load'?"),
        ("Llama-3.1-8B", "llama-3.1-8b", "p.yaml:4: model: unknown model 'llama-3.1-8b'; did you mean 'Llama-3.1-8B'?"),
        ("build: 1.5.0", "build: 1.5", "p.yaml:4: build: unknown build '1.5'; did you mean '1.5.0'?"),
        ("LIBFABRIC", "LIBFABRICK", "p.yaml:8: backend: unknown backend 'LIBFABRICK'; did you mean 'LIBFABRIC'?"),
        ("fabric: tcp", "fabric: tpc", "p.yaml:4: fabric: unknown fabric 'tpc'; did you mean 'tcp'?"),
        (
            "fabric: tcp",
            "fabric: quantum",
            "p.yaml:4: fabric: unknown fabric 'quantum'; valid: cuda, efa, ib, shm, tcp",
        ),
        ("ttft_ms_mean", "ttft_mean", "p.yaml:2: metric: unknown metric 'ttft_mean'; did you mean 'ttft_ms_mean'?"),
        ("cell: one", "cell: on", "p.yaml:2: cell: unknown cell 'on'; did you mean 'one'?"),
        ("baseline: A", "baseline: AA", "p.yaml:3: baseline: no test is called 'AA'; did you mean 'A'?"),
        ("baseline: A", "baseline: [A, A]", "p.yaml:3: baseline: 'A' is listed twice; remove one"),
        ("name: B", "name: A", "p.yaml:7: name: 'A' has the name of the test on line 6; rename one"),
        (
            "name: B",
            "name: a!",
            "p.yaml:7: name: 'a!' makes the same run ids as 'A', of the test on line 6; rename one",
        ),
        ("    backend: LIBFABRIC\n", "    tp: 1\n", "p.yaml:9: tests: 'tp' is given twice; remove one"),
        (
            "prefill: 4",
            "prefill: 3",
            "p.yaml:9: prefill: TP 3 is impossible: the 32 attention heads of Llama-3.1-8B do",
        ),
        ("{prefill: 4, decode: 8}", "64", "p.yaml:9: tp: TP 64 is impossible: 64 ranks are more than the 16"),
        ("{prefill: 4, decode: 8}", "{prefill: 4}", "p.yaml:9: tp has no `decode`: add it"),
        ("concurrency: 5", "concurrency: 0", "p.yaml:13: concurrency: expected a whole number from 1 to 4096, got '0'"),
        (
            "concurrency: 5",
            "concurrency: 5.0",
            "p.yaml:13: concurrency: expected a whole number from 1 to 4096, got '5.0",
        ),
        (
            "concurrency: 5",
            'concurrency: "5"',
            "p.yaml:13: concurrency: expected a whole number from 1 to 4096, got '5'",
        ),
        ("concurrency: 5", "concurrency: [5, 5]", "p.yaml:13: concurrency: 5 is listed twice; remove one"),
        (
            "requests: 10",
            "requests: 4",
            "p.yaml:14: requests: 4 requests never reach concurrency 5; ask for at least 5",
        ),
        ("requests: 10", "requests: [10, 10]", "p.yaml:14: requests: 2 numbers for 1 concurrencies; give one for each"),
        ("requests: 10", "requests:", "p.yaml:14: requests: expected a whole number from 1 to 1000000, got nothing"),
        ("closed", "single", "p.yaml:13: concurrency: a single-request load has concurrency 1, not 5"),
        ("    prompt: Hello\n", "", "p.yaml:11: a cell has no `prompt` or `input_tokens`: add it"),
        ("prompt: Hello", "prompt: Hello\n    input_tokens: 5", "p.yaml:16: input_tokens: given beside `prompt`"),
        ("name: one", "name: o/e", "p.yaml:11: name: expected letters, digits"),
        (
            "name: short",
            "name: short\nrepetitions: 1001",
            "p.yaml:2: repetitions: expected a whole number from 1 to 1000",
        ),
        ("name: short", "name: [short]", "p.yaml:1: name: expected text, got a list"),
        ("name: short", 'name: "sh\\e[31mort"', "p.yaml:1: name: must be printable"),
        ("name: short", 'name: "\\ud800"', "p.yaml:1: name: holds a character that cannot be sent"),
        ("name: short", 'name: "\\UFFFFFFFF"', "p.yaml:1: not YAML"),
        ("name: A", "name: 基准", "p.yaml:6: name: '基准' needs at least one ASCII letter or digit"),
        ("name: A", "name: A\n    progress_thread: 3", "p.yaml:7: progress_thread: expected true or false, got '3'"),
        ("name: A", "name: A\n    operation: PUT", "p.yaml:7: operation: unknown operation 'PUT'; valid: READ, WRITE"),
        ("name: A", "name: A\n    kv_dtype: bf61", "p.yaml:7: kv_dtype: unknown KV dtype 'bf61'; did you mean 'bf16'?"),
        ("name: A", "name: A\n    baseline: A", "p.yaml:7: baseline: 'A' names itself"),
        ("name: A", "name: A\n    baseline: B", "p.yaml:7: baseline: a cycle: 'A' is compared with"),
        ("build: 1.5.0", "build: {wheel: x.whl, core: 1.5.0}", "p.yaml:4: build: a wheel is a build by itself"),
        ("build: 1.5.0", "build: {whee: x.whl}", "p.yaml:4: build: unknown key 'whee'; did you mean 'wheel'?"),
        ("fabric: tcp, ", "", "p.yaml:6: test 'A' has no `fabric`: add it"),
        ("baseline: A", "baseline: &x A", "p.yaml:3: anchors and aliases (& and *) are not allowed"),
        ("baseline: A", "baseline: !!str A", "p.yaml:3: tags are not allowed"),
        ("baseline: A", "baseline: A\n---\n", "p.yaml:4: not YAML"),
        ("baseline: A", "baseline: [A", "p.yaml:4: not YAML"),
        ("baseline: A", "baseline: \0", "p.yaml:3: a character YAML does not allow: "),
        ("name: short", "? [name]\n: short", "p.yaml:1: the plan: expected a word as key, got a list"),
    ],
)
def test_each_problem_is_one_error_with_its_line_and_the_nearest_word(old, new, message):
    assert refusal(edited(old, new)).startswith(message)


@pytest.mark.parametrize("key", ["name", "primary", "tests", "cells"])
def test_a_plan_without_a_required_key_says_which(key):
    kept = re.sub(rf"^{key}:.*\n(?:[ ]+.*\n)*", "", SHORT, flags=re.MULTILINE)
    assert refusal(kept) == f"p.yaml:1: the plan has no `{key}`: add it"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "[]",
        "x",
        "null",
        "[" * 100_000,
        "- " * 50_000,
        '{"a":' * 50_000,
        "? " * 50_000,
        "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
        "%YAML " + "9" * 5_000 + ".1\n---\n",
        "- x\n" * 30_000,
        b"\xff\xfe",
        b"name: \xff",
        b"\x00" * 10,
        "x" * (TEXT_BYTES_MAX + 1),
        "repetitions: " + "9" * 6_000,
        "<<: {name: x}",
        "\ud800",
    ],
)
def test_hostile_text_ends_in_one_bounded_error(text):
    assert len(refusal(text)) < 500


def test_a_wave_is_whole():
    text = edited("load: closed", "load: wave").replace("requests: 10", "requests: 12")
    assert "12 requests are not whole waves of 5; ask for 15" in refusal(text)


def test_a_list_of_concurrencies_is_one_cell_each():
    text = edited("concurrency: 5", "concurrency: [1, 5]").replace("requests: 10", "requests: [7, 9]")
    cells = plan(text.replace("cell: one", "cell: one-5")).cells
    assert [(cell.name, cell.concurrency, cell.requests) for cell in cells] == [("one-1", 1, 7), ("one-5", 5, 9)]


def test_requests_per_slot_multiplies():
    assert plan(edited("requests: 10", "requests_per_slot: 3")).cells[0].requests == 15


def test_expanded_names_must_differ_too():
    more = SHORT + "  - {name: t, load: closed, concurrency: [1], requests: 1, prompt: x, output_tokens: 1}\n"
    more += "  - {name: t-1, load: single, concurrency: 1, requests: 1, prompt: x, output_tokens: 1}\n"
    assert refusal(more).startswith("p.yaml:18: cells: 't-1' is also a cell of line 17")


def test_named_patches_on_a_published_release_are_labelled_a_stand_in():
    text = edited("name: A", "name: A\n    patches: mine")
    assert plan(text).tests[0].stand_in == "stand-in: NIXL 1.5.0, not the patches"
    assert plan(text.replace("patches: mine", "patches: mine\n    stand_in: null")).tests[0].stand_in is None


def test_a_plan_baseline_is_compared_with_those_listed_before_it():
    tests = {test.name: test.baseline for test in plan(edited("baseline: A", "baseline: [B, A]")).tests}
    assert tests == {"A": ("B",), "B": ()}


def test_a_cycle_through_the_plan_default_is_found():
    text = edited("name: B", "name: C\n    baseline: B\n  - name: B\n    baseline: [C, A]")
    assert refusal(text).startswith("p.yaml:8: baseline: a cycle: 'C'")


def test_no_baseline_at_all_is_a_plan_without_comparisons():
    assert all(test.baseline == () for test in plan(edited("baseline: A\n", "")).tests)


def test_one_test_over_efa_ends_the_rehearsal():
    tests = plan(edited("    backend: LIBFABRIC", "    backend: LIBFABRIC\n    fabric: efa")).tests
    assert not rehearsal(tests)
    assert rehearsal(tests[:1])


@pytest.mark.parametrize("name", ["ucx-or-libfabric.yaml", "unequal-tp.yaml"])
def test_examples_are_valid(name):
    assert plan((EXAMPLES / name).read_bytes()).rehearsal


@pytest.mark.parametrize(("written", "read_as"), [("3", 3), ("auto", "auto"), (None, 1)])
def test_load_workers_are_a_number_or_auto(written, read_as):
    text = SHORT if written is None else SHORT + f"load_workers: {written}\n"
    assert plan(text).load_workers == read_as


@pytest.mark.parametrize("written", ["0", "65", "[2]", "many", "{a: 1}", "null"])
def test_other_load_workers_are_refused(written):
    assert "p.yaml:17: load_workers: expected" in refusal(SHORT + f"load_workers: {written}\n")


def test_a_plan_survives_json():
    short = plan(SHORT)
    assert msgspec.json.decode(msgspec.json.encode(short), type=Plan) == short


FRAGMENTS = (
    "[",
    "]",
    "{",
    "}",
    ":",
    "- ",
    "&a ",
    "*a",
    "!!x ",
    "|",
    "?",
    "%",
    "\t",
    "'",
    '"',
    "\\",
    "\0",
    "~",
    "é",
    "9" * 30,
)


def mutated(text: str, rng: random.Random) -> str:
    """The text with one to four edits: a line or a character dropped, doubled, moved, or replaced."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        edit = rng.randrange(6)
        if edit == 0 and len(lines) > 1:
            del lines[at]
        elif edit == 1:
            lines.insert(at, rng.choice(lines))
        elif edit == 2:
            column = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:column] + rng.choice(FRAGMENTS) + lines[at][column:]
        elif edit == 3:
            words = lines[at].split(" ")
            words[rng.randrange(len(words))] = rng.choice(rng.choice(lines).split(" "))
            lines[at] = " ".join(words)
        elif edit == 4:
            lines[at] = " " * rng.randrange(5) + lines[at]
        else:
            column = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:column] + lines[at][column + 1 :]
    return "".join(lines)


def outcome(text: str | bytes) -> Plan | PlanError:
    try:
        return plan(text)
    except PlanError as error:
        return error


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_a_damaged_reference_plan_is_read_or_refused(seed):
    got = outcome(mutated(REFERENCE, random.Random(seed)))
    assert isinstance(got, Plan) or got.line is not None


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_damaged_short_plan_is_read_or_refused(seed):
    got = outcome(mutated(SHORT, random.Random(seed)))
    assert isinstance(got, Plan) or got.line is not None


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200), st.text(alphabet="[]{}:-?&*!|>'\"%@ \na0\\", max_size=60))
)
def test_random_text_and_bytes_are_refused(text):
    assert isinstance(outcome(text), PlanError)


# -- cold_start


def with_cold(written: str) -> str:
    return edited("  - name: A\n", f"  - name: A\n    cold_start: {written}\n")


def test_a_cold_start_is_read_key_by_key_and_what_is_left_out_costs_nothing():
    whole = plan(with_cold("{compile_s: 20, graph_capture_s: 0.4, graph_batch_max: 8, connect_s: 1.5}")).tests[0]
    assert whole.cold_start == ColdStart(compile_s=20, graph_capture_s=0.4, graph_batch_max=8, connect_s=1.5)
    assert plan(with_cold("{graph_capture_s: 1}")).tests[0].cold_start == ColdStart(
        compile_s=0, graph_capture_s=1, graph_batch_max=16, connect_s=0
    )
    assert plan(SHORT).tests[0].cold_start is None


def test_a_tests_own_cold_start_takes_the_place_of_the_default_as_a_whole():
    default = edited("model: Llama-3.1-8B}", "model: Llama-3.1-8B, cold_start: {compile_s: 5, connect_s: 2}}")
    a, b = plan(default).tests
    assert a.cold_start == b.cold_start == ColdStart(compile_s=5, connect_s=2)
    own = default.replace("  - name: A\n", "  - name: A\n    cold_start: {connect_s: 1}\n")
    assert plan(own).tests[0].cold_start == ColdStart(connect_s=1)
    none = default.replace("  - name: A\n", "  - name: A\n    cold_start: null\n")
    assert [test.cold_start for test in plan(none).tests] == [None, ColdStart(compile_s=5, connect_s=2)]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{compiles: 3}", "p.yaml:7: cold_start: unknown key 'compiles'; did you mean 'compile_s'?"),
        ("{}", "p.yaml:7: cold_start: says nothing; give one of compile_s, graph_capture_s, connect_s, or remove it"),
        ("20", "p.yaml:7: cold_start: expected a mapping, got '20'"),
        ("{compile_s: -1}", "p.yaml:7: compile_s: expected a number of seconds from 0 to 3600, got '-1'"),
        ("{compile_s: 3600.5}", "p.yaml:7: compile_s: expected a number of seconds from 0 to 3600, got '3600.5'"),
        ("{compile_s: 20s}", "p.yaml:7: compile_s: expected a number of seconds from 0 to 3600, got '20s'"),
        ("{compile_s: '20'}", "p.yaml:7: compile_s: expected a number of seconds from 0 to 3600, got '20'"),
        ("{compile_s: 1e2}", "p.yaml:7: compile_s: expected a number of seconds from 0 to 3600, got '1e2'"),
        ("{compile_s: .nan}", "p.yaml:7: compile_s: expected a number of seconds from 0 to 3600, got '.nan'"),
        ("{compile_s: [1]}", "p.yaml:7: compile_s: expected a number of seconds from 0 to 3600, got a list"),
        ("{graph_capture_s: 21}", "p.yaml:7: graph_capture_s: expected a number of seconds from 0 to 20, got '21'"),
        ("{connect_s: 601}", "p.yaml:7: connect_s: expected a number of seconds from 0 to 600, got '601'"),
        ("{connect_s: 1, connect_s: 2}", "p.yaml:7: cold_start: 'connect_s' is given twice; remove one"),
        (
            "{graph_capture_s: 1, graph_batch_max: 0}",
            "p.yaml:7: graph_batch_max: expected a whole number from 1 to 256, got '0'",
        ),
        (
            "{compile_s: 1, graph_batch_max: 8}",
            "p.yaml:7: graph_batch_max: says nothing without `graph_capture_s`; add that, or remove it",
        ),
    ],
)
def test_a_wrong_cold_start_is_told_with_its_line(written, message):
    assert message in refusal(with_cold(written))


@given(st.decimals(0, 3600, allow_nan=False, places=3))
def test_seconds_are_read_as_they_are_written(seconds):
    assert plan(with_cold(f"{{compile_s: {seconds:f}}}")).tests[0].cold_start == ColdStart(compile_s=float(seconds))
