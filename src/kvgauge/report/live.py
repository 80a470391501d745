"""What happens while a plan runs: test, cell, time left. On a terminal a line that moves; else a line for each run."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kvgauge.plan.records import Cell, Plan, Run
from kvgauge.report.numbers import plain
from kvgauge.report.records import RunResult
from kvgauge.samples.records import Exchange

if TYPE_CHECKING:
    from rich.console import Console

REDRAW_S = 0.2


class Live:
    """Shows progress on standard error. The time left follows what runs of each test took so far."""

    def __init__(self, plan: Plan, estimate_s: float, console: "Console") -> None:
        self._plan, self._console = plan, console
        self._estimate_s = estimate_s
        self._began = self._run_began = time.monotonic()
        self._took: dict[str, list[float]] = {}
        self._runs_over = 0
        self._runs = len(plan.tests) * plan.repetitions
        self._where = ""
        self._requests = 0
        self._drawn = 0.0
        self._status: Any = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def on_run(self, run: Run, runs: int) -> None:
        self._runs = runs
        self._run_began = time.monotonic()
        self._requests = 0
        self._where = f"{self._named(run)}: starting the target"
        self._draw(force=True)

    def on_cell(self, run: Run, cell: Cell, index: int) -> None:
        place = f"cell {cell.name} ({index + 1} of {len(run.cells)})"
        self._where = f"{self._named(run)}: {place}"
        self._draw(force=True)

    def _named(self, run: Run) -> str:
        if run.order < 0:
            return f"{run.test.name}, pilot"
        return f"{run.test.name}, repetition {run.repetition} of {self._plan.repetitions}"

    def on_exchange(self, _exchange: Exchange) -> None:
        self._requests += 1

    def on_tick(self) -> None:
        self._draw(force=False)

    def on_run_over(self, run: Run, given: Sequence[RunResult]) -> None:
        took_s = time.monotonic() - self._run_began
        if run.order >= 0:
            self._took.setdefault(run.test.name, []).append(took_s)
            self._runs_over += 1
        statuses: dict[str, int] = {}
        for result in given:
            if result.cell is not None:
                statuses[result.status] = statuses.get(result.status, 0) + 1
        counted = ", ".join(f"{count} {status}" for status, count in statuses.items())
        reason = next((reason for result in given for reason in result.reasons), None)
        which = f"[{self._runs_over}/{self._runs}] {run.test.name} #{run.repetition}"
        line = f"{f'pilot of {run.test.name}' if run.order < 0 else which}: {counted} cells in {took_s:.1f} s"
        text = plain(line if reason is None else f"{line}: {reason}")
        self._console.print(text, markup=False, highlight=False)

    def left_s(self) -> float:
        """Time left: what each test took so far on average; what has not run yet, by the estimate's share."""
        each = self._estimate_s / max(1, self._runs)
        scale = 1.0
        known = [sum(took) / len(took) for took in self._took.values()]
        if known:
            scale = sum(known) / len(known) / max(each, 0.001)
        left = 0.0
        for test in self._plan.tests:
            took = self._took.get(test.name, [])
            expected = sum(took) / len(took) if took else each * scale
            left += expected * (self._plan.repetitions - len(took))
        if self._plan.mode == "paired":  # both at once
            left /= len(self._plan.tests)
        return max(0.0, left - (time.monotonic() - self._run_began))

    def _draw(self, *, force: bool) -> None:
        now = time.monotonic()
        if self._status is None or (not force and now - self._drawn < REDRAW_S):
            return
        from rich.text import Text

        self._drawn = now
        left_s = self.left_s()
        minutes, seconds = divmod(round(left_s), 60)
        passed = f"[{self._runs_over + 1}/{self._runs}]"
        line = f"{passed} {self._where} · {self._requests} requests · about {minutes}:{seconds:02d} left"
        self._status.update(Text(plain(line)))
