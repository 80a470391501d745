"""What a finished run says of the next one: how many runs it takes, and how long."""

from collections.abc import Iterator, Mapping, Sequence
from math import log
from typing import TYPE_CHECKING

import msgspec

from kvgauge.compare.deployments import repetitions_of, shares
from kvgauge.compare.values import Key, TestValues, comparable, direction
from kvgauge.failures import TooFewSamples, UsageError
from kvgauge.report.against import all_values, primary_of
from kvgauge.report.records import Results
from kvgauge.stats.design import PILOT_MIN, Design, Levels, design, levels

if TYPE_CHECKING:
    from rich.console import RenderableType


ORDER_SHOWN = 24  # letters of an order


class Proposed(msgspec.Struct, frozen=True, kw_only=True):
    """Runs for one test beside one baseline; `reason` where the pilot cannot tell."""

    test: str
    baseline: str
    design: Design | None
    reason: str | None = None


def propose(pilot: Results, source: str, gain_pct: float, *, budget: int | None = None) -> list[Proposed]:
    """Every test of the pilot beside each of its baselines, by the pilot's own primary metric.

    raises  UsageError when it declares none, or has no test with a baseline
    """
    if pilot.plan.get("mode") == "paired":
        raise UsageError(f"{source} is of mode paired: its pairs are of requests, which say nothing of how runs spread")
    key = primary_of(pilot)
    better = direction(key[1]) if key else None
    if key is None or better is None:
        raise UsageError(f"{source} declares no primary metric that can be better or worse: it is no pilot")
    by_name = {values.test.name: values for values in all_values(pilot, source)}
    found = []
    for after in by_name.values():
        for name in after.test.baseline:
            before = by_name.get(name)
            if before is None or comparable(before.test, after.test) is not None:
                continue
            logs = _log_ratios(before.values.get(key, {}), after.values.get(key, {}))
            try:
                made, reason = design(logs, gain_pct, better, budget=budget), None
            except TooFewSamples as error:
                made, reason = None, str(error)
            found.append(Proposed(test=after.test.name, baseline=name, design=made, reason=reason))
    if not found:
        raise UsageError(f"{source} has no two tests that are compared: a pilot needs a test and its baseline")
    return found


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """deploy_s, run_s: what one more deployment, one more run takes; gpus: held meanwhile, 0: not said."""

    deploy_s: float
    run_s: float
    gpus: int = 0


class Deployments(msgspec.Struct, frozen=True, kw_only=True):
    """Deployments and runs on each, by the deployments of one test; `reason` where they cannot tell."""

    test: str
    pilot: dict[str, int]
    levels: Levels | None
    reason: str | None = None


def has_deployments(pilots: Sequence[tuple[Results, str]]) -> bool:
    """Whether runs of the pilot shared a deployment, so that there are two spreads to tell apart."""
    return any(shares(values) for pilot, source in pilots for values in all_values(pilot, source))


def propose_deployments(pilots: Sequence[tuple[Results, str]], gain_pct: float, cost: Cost) -> list[Deployments]:
    """What the deployments of each test say of how many would be enough. Folders of one deployment are put together.

    raises  UsageError when the folders do not declare the same primary metric
    """
    keys = {primary_of(pilot) for pilot, _ in pilots}
    key = next(iter(keys))
    better = direction(key[1]) if key else None
    if len(keys) > 1 or key is None or better is None:
        raise UsageError("the pilot's folders do not declare one primary metric that can be better or worse")
    groups: dict[str, dict[str, list[float]]] = {}
    for pilot, source in pilots:
        for values in all_values(pilot, source):
            _add(groups.setdefault(values.test.name, {}), values, key)
    found = []
    for test, deployed in groups.items():
        counts = {name: len(logs) for name, logs in deployed.items()}
        made, reason = None, None
        try:
            costs = {"deploy_s": cost.deploy_s, "run_s": cost.run_s}
            made = levels(list(deployed.values()), gain_pct, better, gpus=cost.gpus, **costs)
        except TooFewSamples as error:
            reason = str(error)
        found.append(Deployments(test=test, pilot=counts, levels=made, reason=reason))
    return found


def _add(deployed: dict[str, list[float]], values: TestValues, key: Key) -> None:
    known = values.values.get(key, {})
    for name, repetitions in repetitions_of(values).items():
        logs = [log(known[k]) for k in repetitions if known.get(k, 0) > 0]
        if logs:
            deployed.setdefault(name, []).extend(logs)


def render_deployments(
    found: Sequence[Deployments], key: Key | None, gain_pct: float, cost: Cost
) -> "Iterator[RenderableType]":
    """A few lines for each test."""
    from rich.text import Text

    what = f"{key[1]} of {key[0]}" if key else "the primary metric"
    yield Text(f"by the pilot's deployments, to show a gain of {gain_pct:g} % in {what} 9 times in 10:", style="bold")
    for one in found:
        yield Text(f"  {one.test}: {_levels_words(one, cost)}")


def _levels_words(one: Deployments, cost: Cost) -> str:
    seen = f"{len(one.pilot)} deployments of {sum(one.pilot.values())} runs"
    if one.levels is None:
        return f"not known from {seen} ({one.reason})"
    made = one.levels
    spreads = (
        f"spread {made.s2_deploy**0.5:.1%} between deployments, {made.s2_run**0.5:.1%} between runs of one ({seen})"
    )
    if made.deployments is None:
        return f"more than 1,000 deployments of each arm; {spreads}"
    gpu_hours = f", {made.gpu_hours:.1f} GPU-hours" if cost.gpus else ""
    order = made.order if len(made.order) <= ORDER_SHOWN else f"{made.order[:ORDER_SHOWN]}..."
    return (
        f"{made.deployments} deployments of each arm, {made.runs} runs on each, in the order {order}: "
        f"about {made.hours:.1f} h{gpu_hours}; {spreads}"
    )


def _log_ratios(before: Mapping[int, float], after: Mapping[int, float]) -> list[float]:
    both = sorted(before.keys() & after.keys())
    return [log(after[k] / before[k]) for k in both if min(before[k], after[k]) > 0]


def render(
    proposed: Sequence[Proposed], key: Key | None, gain_pct: float, repetition_s: float
) -> "Iterator[RenderableType]":
    """A line for each pair of tests, and the number that would do for all of them."""
    from rich.text import Text

    what = f"{key[1]} of {key[0]}" if key else "the primary metric"
    yield Text(f"by the pilot, to show a gain of {gain_pct:g} % in {what} 9 times in 10:", style="bold")
    for one in proposed:
        yield Text(f"  {one.test} beside {one.baseline}: {_words(one, gain_pct)}")
    runs = [one.design.runs for one in proposed if one.design is not None]
    if runs and len(runs) == len(proposed) and None not in runs:
        most = max(run for run in runs if run is not None)
        yield Text(f"repetitions: {most} in this plan, about {most * repetition_s / 3600:.1f} h", style="bold")


def _words(one: Proposed, gain_pct: float) -> str:
    if one.design is None:
        return f"not known ({one.reason}; give the pilot at least {PILOT_MIN} repetitions)"
    made = one.design
    said = "more than 1,000 repetitions" if made.runs is None else f"{made.runs} repetitions"
    said += f" (spread of a pair {made.spread:.1%} in {made.pilot} pairs, planned with up to {made.spread_upper:.1%})"
    if made.budget is not None and (made.runs is None or made.runs > made.budget):
        said += f"; {made.budget} repetitions show {made.detectable_pct:.1f} % or more, not {gain_pct:g} %"
    return said
