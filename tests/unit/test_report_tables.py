"""The tables of a finished, half-finished or broken plan, as they come out of a recorded console."""

import io
import random
import re

import msgspec
import pytest
from rich.console import Console

from kvgauge.plan.records import Cell, ColdStart, Plan, Primary, Test
from kvgauge.report.packed import Footnotes
from kvgauge.report.published import published
from kvgauge.report.records import Results, RunResult
from kvgauge.report.results import build
from kvgauge.report.text import print_results
from kvgauge.stats.cells import PHASES
from kvgauge.stats.estimate import Estimate, bare, counted, missing

NO_EFA = "no EFA device on this machine: there is nothing to count"
NO_GPU = "no NVIDIA GPU on this machine"


def made_up_cell(name, load, concurrency, requests, **more):
    return Cell(name=name, load=load, concurrency=concurrency, requests=requests, warmup_requests=2, **more)


CELLS = (
    made_up_cell("single", "single", 1, 10, prompt="Hello", output_tokens=100),
    *(made_up_cell(f"wave-{c}", "wave", c, c, prompt="Explain AI", output_tokens=50) for c in (1, 5, 10, 20)),
    *(made_up_cell(f"closed-{c}", "closed", c, 4 * c, prompt="Explain AI", output_tokens=50) for c in (1, 5, 10, 20)),
    made_up_cell("512-128", "closed", 10, 320, input_tokens=512, output_tokens=128),
)


def made_up_test(name, backend="LIBFABRIC", **more):
    defaults = {
        "name": name,
        "backend": backend,
        "fabric": "tcp",
        "build": "NIXL 1.4.0",
        "patches": "none",
        "stand_in": None,
        "model": "Qwen3-0.6B",
        "prefill_tp": 1,
        "decode_tp": 1,
    }
    return Test(**(defaults | more))


SIX = (
    made_up_test("Baseline UCX", "UCX"),
    made_up_test("Baseline LIBFABRIC", baseline=("Baseline UCX",)),
    made_up_test(
        "Patched LIBFABRIC",
        build="NIXL 1.5.0",
        patches="11 stability",
        stand_in="stand-in: NIXL 1.5.0, not the patches",
        baseline=("Baseline LIBFABRIC", "Baseline UCX"),
    ),
    made_up_test(
        "Optimized LIBFABRIC",
        build="NIXL 1.6.0",
        patches="11 stability + 3 performance",
        stand_in="stand-in: NIXL 1.6.0, not the patches",
        baseline=("Baseline LIBFABRIC", "Baseline UCX"),
    ),
    made_up_test("Multi-GPU", build="NIXL 1.6.0", stand_in="stand-in: NIXL 1.6.0, not the patches", model="Llama-3.1-8B"),
    made_up_test("Production", build="NIXL 1.6.0", stand_in="NIXL 1.6.0, not the patches", model="Llama-3.1-70B", prefill_tp=8, decode_tp=8),
)  # fmt: skip


def made_up_plan(tests=SIX, cells=CELLS, repetitions=5, **more):
    primary = Primary(metric="ttft_ms_mean", cell=cells[-1].name)
    return Plan(
        name="reference", source="built in", tests=tests, cells=cells, repetitions=repetitions, primary=primary, rehearsal=True, **more
    )  # fmt: skip


def within(point, unit, n):
    return Estimate(point=point, low=point * 0.97, high=point * 1.03, n=n, unit=unit)


def cell_run(test, cell, repetition, rng, status="valid", reasons=()):
    slower = 1.0 if test.backend == "LIBFABRIC" else 1.4
    base = 20 * slower * cell.concurrency**0.4 * rng.lognormvariate(0, 0.02)
    n, kv_bytes = cell.requests, cell.requests * 114_688 * 512
    p99 = (
        within(base * 9.5, "ms", n)
        if n >= 299
        else bare(base * 9.5, "ms", n, f"max of n={n}: a P99 interval needs 299 requests")
    )
    metrics = {
        "ttft_ms_mean": within(base, "ms", n),
        "e2e_latency_ms_mean": within(base + 4.7 * cell.output_tokens, "ms", n),
        "e2e_latency_ms_p99": p99,
        "tpot_ms_mean": within(4.7 * rng.lognormvariate(0, 0.01), "ms", n),
        "transfer_ms_mean": within(base * 0.11, "ms", n),
        "output_token_throughput_tok_s": bare(
            cell.concurrency * 210 * rng.lognormvariate(0, 0.01), "tok/s", 1, "one value"
        ),
        "kv_pieces_checked": counted(56 * 33 * n, "pieces", n),
        "kv_pieces_wrong": counted(0, "pieces", n),
        **{f"phase_{name}_ms_mean": within(base / 6, "ms", n) for name in PHASES},
        "phase_client_ms_mean": bare(0.1, "ms", n, ""),
        "phases_of_ttft_pct": bare(99.2, "%", n, "a ratio of two means"),
        "failures": counted(0, "requests", n),
        "kv_bytes_expected": counted(kv_bytes, "B", n),
        "kv_bytes_moved": counted(kv_bytes, "B", n),
    }
    return RunResult(
        run_id=f"{test.name}-{repetition}", repetition=repetition, cell=cell.name, concurrency=cell.concurrency,
        seed=repetition, status=status, reasons=tuple(reasons), metrics=metrics,
    )  # fmt: skip


def whole_run(test, repetition, rng, status="valid", reasons=()):
    metrics = {
        "handshake_count_nixl": counted(8, "handshakes", 1),
        "handshake_count_efa": missing("handshakes", NO_EFA),
        "connection_ms_max": bare(12.3 * rng.lognormvariate(0, 0.1), "ms", 2, "the slowest pair"),
        "connection_ms_mean": bare(9.9, "ms", 2, "pairs of one run share its start"),
        "first_request_penalty_s": bare(0.034, "s", 1, "one"),
        "machine_busy_pct": bare(81.0, "%", 1, "one"),
        "machine_steal_pct": bare(0.4, "%", 1, "one"),
        "gpu_memory_bytes": missing("B", NO_GPU),
    }
    proved = {
        "backend": f"{test.backend} (734 transfers)",
        "provider": "tcp" if test.backend == "LIBFABRIC" else "tcp/lo",
    }
    return RunResult(
        run_id=f"{test.name}-{repetition}", repetition=repetition, cell=None, concurrency=None, seed=repetition,
        status=status, reasons=tuple(reasons), metrics=metrics, proved=proved,
    )  # fmt: skip


def made_up_runs(plan, repetitions=None, bad=()):
    """bad: (test name, repetition, status, reasons)"""
    rng, given = random.Random(5), {}
    states = {(name, repetition): (status, reasons) for name, repetition, status, reasons in bad}
    for test in plan.tests:
        for repetition in range(1, (repetitions or plan.repetitions) + 1):
            status, reasons = states.get((test.name, repetition), ("valid", ()))
            runs = [whole_run(test, repetition, rng, status, reasons)]
            runs += [cell_run(test, cell, repetition, rng, status, reasons) for cell in plan.cells]
            given.setdefault(test.name, []).extend(runs)
    return given


def printed(results: Results, width: int, **more) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, record=True, force_terminal=True)
    print_results(results, console, **more)
    return console.export_text()


BAD = (
    ("Patched LIBFABRIC", 2, "invalid", ("bytes moved 57,671,680 differ from bytes expected 58,720,256: rerun with --test and look at kv.log",)),
    ("Production", 4, "failed", ("decode-0 died (out of memory, 61.2 GiB of 64): use a machine with 128 GiB",)),
)  # fmt: skip


@pytest.fixture(scope="module")
def six():
    plan = made_up_plan()
    return build(plan, made_up_runs(plan, bad=BAD), {"cpu": "2 cores", "kernel": "6.1"})


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_console_and_no_number_is_cut(six, width):
    text = printed(six, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text


def numbers_in_tables(text):
    return sorted(word for word in text.replace("│", " ").split() if word.startswith("±"))


def test_a_narrow_console_shows_the_same_numbers_as_a_wide_one(six):
    assert numbers_in_tables(printed(six, 80)) == numbers_in_tables(printed(six, 200))


@pytest.mark.parametrize("width", [80, 120])
def test_every_page_of_a_rehearsal_says_that_it_does_not_transfer_to_efa(six, width):
    text = " ".join(printed(six, width).split())
    assert text.count("rehearsal: fabric tcp; what is measured here does not transfer to EFA") == 1 + len(SIX) + 1


def test_a_stand_in_is_named_beside_the_test_in_its_own_table_and_across_tests(six):
    text = printed(six, 160)
    assert text.count("stand-in: NIXL 1.5.0, not the") == 4  # its table, the values, two gains
    assert text.count("stand-in: NIXL 1.6.0, not the") == 2 * 3 + 2


def test_a_modelled_cold_start_is_named_in_its_tests_table_beside_its_connection_and_across_tests():
    cold = msgspec.structs.replace(SIX[0], cold_start=ColdStart(compile_s=20, connect_s=1.5))
    plan = made_up_plan(tests=(cold, SIX[1]))
    text = printed(build(plan, made_up_runs(plan), {}), 200)
    assert text.count("cold start modelled: compile 20 s a worker, first connection 1.5 s a pair") == 1
    assert text.count("connection (1.5 s of each modelled): slowest pair") == 1
    assert text.count("connection: slowest pair") == 1
    assert text.count("cold start modelled") == 2


def test_ttft_is_taken_apart_in_the_deciding_cell_and_checked_blocks_are_counted(six):
    text = printed(six, 200)
    assert text.count("TTFT in 512-128: client ") == len(SIX)
    assert "ms = 99.2 % of it (n=5)" in text
    assert "wrong 0" in text


def test_an_invalid_run_is_shown_marked_with_its_reason_and_does_not_count(six):
    text = printed(six, 120)
    assert "run 2: INVALID" in text
    assert "bytes moved 57,671,680 differ from bytes expected 58,720,256: rerun with --test" in " ".join(text.split())
    assert "decode-0 died (out of memory" in text
    assert "4/5 (1 invalid)" in text
    assert "4/5 (1 failed)" in text


def test_a_missing_value_is_a_dash_whose_footnote_gives_the_reason(six):
    text = printed(six, 120)
    line = next(line for line in text.splitlines() if line.startswith("handshakes:"))
    assert "NIXL 8 (n=5)" in line
    mark = line.split("EFA \N{EN DASH}")[1]
    assert f"{mark} {NO_EFA}" in text


def test_gains_have_interval_n_and_verdict_and_too_few_pairs_say_how_many_are_enough(six):
    text = " ".join(printed(six, 200).split())
    assert re.search(r"Baseline LIBFABRIC Baseline UCX \+2\d\.\d % \+\d+\.\d to \+\d+\.\d % 5 better", text)
    assert re.search(r"Patched LIBFABRIC Baseline UCX \+2\d\.\d % \S+ to \S+ % 4 cannot tell", text)
    assert "4 pairs of runs: a verdict needs n of at least 5 runs" in text
    assert "repetition 2 left out: invalid in Patched LIBFABRIC" in text


def test_the_largest_of_few_requests_is_not_called_a_p99(six):
    text = " ".join(printed(six, 120).split())
    assert "max of n=1, 4, 5, 10, 20, 40, 80: a P99 interval needs 299 requests" in text


def test_bytes_that_do_not_agree_are_visible():
    plan = made_up_plan(tests=SIX[:1], repetitions=1)
    given = made_up_runs(plan)
    wrong = {**given["Baseline UCX"][1].metrics, "kv_bytes_moved": counted(1_048_576, "B", 10)}
    given["Baseline UCX"][1] = msgspec.structs.replace(given["Baseline UCX"][1], metrics=wrong)
    text = printed(build(plan, given, {}), 120)
    assert "≠ 1.000 moved" in text
    assert text.count("= moved") == len(CELLS) - 1


def test_one_run_has_no_interval_and_says_so_once_a_row():
    plan = made_up_plan(tests=SIX[:2], repetitions=1)
    text = printed(build(plan, made_up_runs(plan), {}), 120)
    assert "±" not in text
    assert text.count("n=1 run: no interval") == 2 * len(CELLS)


@pytest.mark.parametrize("given", [{}, {"Baseline UCX": []}])
@pytest.mark.parametrize("width", [80, 120])
def test_a_plan_of_which_nothing_has_run_prints_as_pending(given, width):
    text = printed(build(made_up_plan(), given, {}), width)
    assert text.count("run 1, 2, 3, 4, 5: pending") == len(SIX)
    assert "0/5 (5" in text


EVIL = "[red]evil[/red]"


def test_markup_in_names_is_printed_and_not_obeyed():
    tests = (
        made_up_test(EVIL, stand_in="[bold]x[/bold]", build="[link=http://a]b", patches="[/]", model="[on red]m"),
        made_up_test("after", baseline=(EVIL,)),
    )
    cells = (made_up_cell("[blink]cell[/blink]", "closed", 1, 5, prompt="a", output_tokens=9),)
    plan = made_up_plan(tests=tests, cells=cells, repetitions=2)
    bad = ((EVIL, 1, "invalid", ("[/nonsense] reason",)),)
    text = printed(build(plan, made_up_runs(plan, bad=bad), {"host": "[red]h[/red]"}), 160)
    for written in (
        EVIL,
        "[bold]x[/bold]",
        "[link=http://a]b",
        "patches [/]",
        "[on red]m",
        "[blink]cell[/blink]",
        "[/nonsense] reason",
        "[red]h[/red]",
    ):
        assert written in text


def test_escape_sequences_in_names_do_not_reach_the_terminal():
    tests = (made_up_test("\x1b[2Jwiped\x07"),)
    plan = made_up_plan(tests=tests, repetitions=1)
    console = Console(file=io.StringIO(), width=120, highlight=False)
    print_results(build(plan, made_up_runs(plan), {}), console)
    assert "\x1b" not in console.file.getvalue()
    assert "\\x1b[2Jwiped\\x07" in console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_earlier_results_print_in_the_same_form_without_any_interval(six, width):
    text = printed(six, width, published=published())
    page = " ".join(text[text.index("earlier results") :].split())
    assert "As published, no interval" in page
    assert "±" not in page
    for number in ("403", "337", "632", "366", "3,517", "2,092", "301", "487", "3,333", "104"):
        assert number in page
    assert page.count("cannot tell") == 8


def test_footnotes_number_reasons_as_they_come_and_join_the_largest_of_n():
    notes = Footnotes()
    marks = [notes.mark(r) for r in ("a", "max of n=20: b", "a", "max of n=5: b; one run: c")]
    assert marks == ["¹", "²", "¹", "²"]
    assert notes.texts() == ["¹ a", "² max of n=5, 20: b"]


OPEN_CELL = made_up_cell("steady", "poisson", 64, 400, prompt="Hello", output_tokens=50, rate=40.0)


def open_results(test):
    plan = made_up_plan(tests=(test,), cells=(CELLS[0], OPEN_CELL), repetitions=2)
    rates = {"offered_rate_req_s": bare(40.5, "req/s", 400, ""), "sent_rate_req_s": bare(37.25, "req/s", 400, "")}
    given = {
        name: [
            msgspec.structs.replace(run, metrics=run.metrics | rates) if run.cell == OPEN_CELL.name else run
            for run in runs
        ]
        for name, runs in made_up_runs(plan).items()
    }
    return build(plan, given, {})


@pytest.mark.parametrize("width", [80, 160])
def test_an_open_cell_shows_the_rate_it_offered_and_the_rate_that_left(width):
    text = printed(open_results(made_up_test("A")), width)
    assert "offered" in text
    assert text.count("40.5") == text.count("37.2") == 1
    assert " ".join(text.split()).count("a closed load: requests follow answers, at no rate of their own") == 1


def test_the_line_of_a_loaded_server_says_both_rates():
    text = " ".join(printed(open_results(made_up_test("m", "unobserved", fabric="unobserved")), 200).split())
    assert "offered requests/s 40.5" in text
    assert "sent requests/s 37.2" in text


def test_without_open_loads_there_are_no_columns_of_rates(six):
    assert "offered" not in printed(six, 160)
