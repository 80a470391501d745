"""Open cells whose rate is a share of what the slower arm can do: pilots say how much that is. Pure.

A closed loop asks the slower arm less, because it waits for its answers; an open load asks all arms the same. At
which rate, no plan can know: a share of the requests per second that the slowest of the tests that may be compared
answered in a closed cell, in a pilot of its own, which counts for nothing else.
"""

from collections.abc import Mapping, Sequence

import msgspec

from kvgauge.compare.values import comparable
from kvgauge.plan.expand import pilot_cells
from kvgauge.plan.records import Cell, Plan, Run, Test
from kvgauge.report.records import RunResult

METRIC = "request_throughput_req_s"
FILE = "rates.json"
PILOT = -1  # of a run's order: before all of the plan's


class Pilot(msgspec.Struct, frozen=True, kw_only=True):
    """What one test answered in one closed cell. req_s: None where it gave no valid value, and `reason` says why."""

    test: str
    cell: str
    req_s: float | None
    reason: str | None = None


def pilots(plan: Plan) -> list[Run]:
    """A run of each test through the closed cells that others take their rate from; none where no cell does."""
    cells = pilot_cells(plan)
    if not cells:
        return []
    return [
        Run(run_id=f"pilot-{number}", test=test, repetition=1, order=PILOT, seed=plan.seed, cells=cells)
        for number, test in enumerate(plan.tests, start=1)
    ]


def is_pilot(run: Run) -> bool:
    return run.order == PILOT


def pilot_of(test: Test, result: RunResult) -> Pilot:
    found = result.metrics.get(METRIC)
    req_s = found.point if found is not None and result.status == "valid" else None
    why = None if req_s else "; ".join(result.reasons) or f"its pilot was {result.status}"
    return Pilot(test=test.name, cell=result.cell or "", req_s=req_s or None, reason=why)


def rate_of(test: Test, cell: Cell, tests: Sequence[Test], found: Sequence[Pilot]) -> tuple[float | None, str]:
    """(requests per second, a sentence about where they come from) of one open cell for this test.

    The slowest decides of all tests that may be compared with this one, so that these get the same rate.
    """
    assert cell.capacity is not None
    arms = {each.name for each in tests if comparable(test, each) is None}
    mine = [pilot for pilot in found if pilot.cell == cell.capacity.of and pilot.test in arms]
    known = {pilot.test: pilot.req_s for pilot in mine if pilot.req_s is not None}
    if not known:
        why = next((pilot.reason for pilot in mine if pilot.reason), "no pilot was run")
        return (
            None,
            f"its rate is {cell.capacity.share:.0%} of what {cell.capacity.of} answers, which is not known: {why}",
        )
    slowest = min(known, key=lambda name: known[name])
    rate = float(f"{cell.capacity.share * known[slowest]:.3g}")
    answered = f"the {known[slowest]:.3g} req/s that {slowest}, the slowest of {len(known)}, answered"
    silent = [f"{pilot.test} gave none ({pilot.reason})" for pilot in mine if pilot.req_s is None]
    said = f"offered at {rate:g} req/s: {cell.capacity.share:.0%} of {answered} in a pilot of {cell.capacity.of}"
    return rate, "; ".join((said, *silent))


def with_rates(
    run: Run, tests: Sequence[Test], found: Sequence[Pilot]
) -> tuple[Run, Mapping[str, str], Mapping[str, str]]:
    """(the run with its rates, a remark for each such cell, why for each cell that has none and is left out)"""
    cells, remarks, without = [], {}, {}
    for cell in run.cells:
        if cell.capacity is None:
            cells.append(cell)
            continue
        rate, why = rate_of(run.test, cell, tests, found)
        if rate is None:
            without[cell.name] = why
        else:
            remarks[cell.name] = why
            cells.append(msgspec.structs.replace(cell, rate=rate))
    return msgspec.structs.replace(run, cells=tuple(cells)), remarks, without
