"""The live line: what it says on a terminal, what it leaves in a log, and how the time left follows what runs took."""

import io

import pytest
from rich.console import Console

from kvgauge.plan.expand import expand
from kvgauge.plan.records import Plan, Primary
from kvgauge.report import live as module
from kvgauge.report.live import Live
from kvgauge.report.records import RunResult
from scene import make_cell, make_test


def make_plan(*names, repetitions=2):
    return Plan(
        name="p", source="s", tests=tuple(make_test(name=name) for name in names or ("A", "B")), cells=(make_cell(),),
        repetitions=repetitions, primary=Primary(metric="ttft_ms_mean", cell="c"),
    )  # fmt: skip


def result(run, status="valid", cell="c", *reasons):
    return RunResult(
        run_id=run.run_id, repetition=run.repetition, cell=cell, concurrency=2, seed=1, status=status, reasons=reasons,
        metrics={},
    )  # fmt: skip


@pytest.fixture
def clock(clock_class, monkeypatch):
    made = clock_class(0)
    monkeypatch.setattr(module, "time", made)
    return made


def shown(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None)


def test_a_log_gets_one_line_for_each_run_and_nothing_that_moves(clock):
    console, plan = shown(terminal=False), make_plan("A")
    with Live(plan, 10.0, console) as live:
        for run in expand(plan):
            live.on_run(run, 2)
            live.on_cell(run, run.cells[0], 0)
            live.on_exchange(None)
            live.on_tick()
            clock.now_ns += 1_500_000_000
            live.on_run_over(run, [result(run, cell=None), result(run), result(run)])
    assert console.file.getvalue().splitlines() == [
        "[1/2] A #1: 2 valid cells in 1.5 s",
        "[2/2] A #2: 2 valid cells in 1.5 s",
    ]


def test_a_run_that_did_not_go_well_says_why_in_its_line(clock):
    console, plan = shown(terminal=False), make_plan("A", repetitions=1)
    (run,) = expand(plan)
    with Live(plan, 10.0, console) as live:
        live.on_run(run, 1)
        live.on_run_over(run, [result(run), result(run, "invalid", "d", "wrong KV in 2 of 9 transfers")])
    assert console.file.getvalue() == "[1/1] A #1: 1 valid, 1 invalid cells in 0.0 s: wrong KV in 2 of 9 transfers\n"


def test_a_terminal_sees_test_repetition_cell_requests_and_the_time_left(clock):
    console, plan = shown(terminal=True), make_plan("A", repetitions=3)
    with Live(plan, 180.0, console) as live:
        run = expand(plan)[0]
        live.on_run(run, 3)
        assert "A, repetition 1 of 3: starting the target" in str(live._status.status)
        live.on_cell(run, run.cells[0], 0)
        for _ in range(7):
            live.on_exchange(None)
        clock.now_ns += 60_000_000_000
        live.on_tick()
        assert str(live._status.status) == "[1/3] A, repetition 1 of 3: cell c (1 of 1) · 7 requests · about 2:00 left"


def test_brackets_in_names_are_not_markup(clock):
    console, plan = shown(terminal=True), make_plan("[red]x[/red] [link", repetitions=1)
    (run,) = expand(plan)
    with Live(plan, 1.0, console) as live:
        live.on_run(run, 1)
        assert "[red]x[/red] [link, repetition" in str(live._status.status)
        live.on_run_over(run, [result(run, "failed", "c", "[bold]why")])
    assert "[1/1] [red]x[/red] [link #1: 1 failed cells in 0.0 s: [bold]why" in console.file.getvalue()


def test_the_line_is_drawn_five_times_a_second_at_most(clock):
    console, plan = shown(terminal=True), make_plan("A", repetitions=1)
    (run,) = expand(plan)
    with Live(plan, 100.0, console) as live:
        live.on_run(run, 1)
        drawn = []
        live._status.update = drawn.append
        for _ in range(100):
            clock.now_ns += 10_000_000
            live.on_tick()
    assert 4 <= len(drawn) <= 5


def test_the_time_left_starts_at_the_estimate_and_goes_down_as_time_passes(clock):
    live = Live(make_plan("A", "B", repetitions=2), 40.0, shown(terminal=False))
    seen = [live.left_s()]
    for run in expand(make_plan("A", "B", repetitions=2)):
        live.on_run(run, 4)
        for _ in range(5):
            clock.now_ns += 2_000_000_000
            seen.append(live.left_s())
        live.on_run_over(run, [])
    assert seen[0] == 40.0
    assert seen == sorted(seen, reverse=True)
    live.on_run(expand(make_plan())[0], 4)
    assert live.left_s() == 0.0


def test_runs_that_take_longer_than_estimated_make_what_is_left_longer_too(clock):
    plan = make_plan("A", "B", repetitions=2)
    runs = expand(plan)
    live = Live(plan, 40.0, shown(terminal=False))
    live.on_run(runs[0], 4)
    clock.now_ns += 30_000_000_000  # three times the estimate of one run
    live.on_run_over(runs[0], [])
    live.on_run(runs[1], 4)
    assert live.left_s() == pytest.approx(90.0)
    clock.now_ns += 10_000_000_000
    live.on_run_over(runs[1], [])
    live.on_run(runs[2], 4)
    assert live.left_s() == pytest.approx(30.0 + 10.0)  # each test by its own runs


def test_a_run_beyond_its_time_never_shows_less_than_nothing(clock):
    live = Live(make_plan("A", repetitions=1), 5.0, shown(terminal=False))
    clock.now_ns += 600_000_000_000
    assert live.left_s() == 0.0
