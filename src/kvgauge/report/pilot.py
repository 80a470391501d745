"""What a finished run says of the next one: how many runs it takes, and how long."""

from collections.abc import Iterator, Mapping, Sequence
from math import log
from typing import TYPE_CHECKING

import msgspec

from kvgauge.compare.blocks import blocks_of
from kvgauge.compare.deployments import repetitions_of, shares
from kvgauge.compare.sides import Side, joined
from kvgauge.compare.values import Key, TestValues, comparable, direction
from kvgauge.failures import TooFewSamples, UsageError
from kvgauge.plan.records import Test
from kvgauge.report.against import all_values, primary_of, side_of
from kvgauge.report.records import Results
from kvgauge.stats.design import (
    PILOT_MIN,
    Design,
    Levels,
    Spreads,
    design,
    levels,
    spreads_of_arm,
    spreads_of_arms,
    spreads_of_blocks,
)

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
    """Deployments and runs on each for one test beside another; `reason` where the pilot's cannot tell.

    baseline    None: the pilot has no other arm
    pilot       deployment -> its runs
    blocks      of two, one of each arm, in the pilot
    not_blocks  why its deployments were not taken in blocks; None: they were, or there is one arm
    """

    test: str
    baseline: str | None
    pilot: dict[str, int]
    levels: Levels | None
    reason: str | None = None
    blocks: int = 0
    not_blocks: str | None = None


def has_deployments(pilots: Sequence[tuple[Results, str]]) -> bool:
    """Whether runs of the pilot shared a deployment, so that there are two spreads to tell apart."""
    return any(shares(values) for pilot, source in pilots for values in all_values(pilot, source))


def propose_deployments(
    pilots: Sequence[tuple[Results, str]],
    gain_pct: float,
    cost: Cost,
    *,
    after: Sequence[tuple[Results, str]] = (),
    planned: Sequence[Test] = (),
) -> list[Deployments]:
    """What the pilot's deployments say of how many would be enough, in the blocks of two that `kvgauge compare` will
    find by their times. Folders of one deployment are put together.

    after    the pilot of the other arm, where names do not tell which is which
    planned  tests as the plan has them: which is compared with which

    raises  UsageError when the folders of a test do not measure the same, or do not declare one primary metric
    """
    keys = {primary_of(pilot) for pilot, _ in (*pilots, *after)}
    key = next(iter(keys))
    better = direction(key[1]) if key else None
    if len(keys) > 1 or key is None or better is None:
        raise UsageError("the pilot's folders do not declare one primary metric that can be better or worse")
    arms = _arms(pilots, after)
    found = []
    for name, baseline in _compared_after(arms) if after else _compared(arms, planned):
        one, spreads = _spreads({arm: arms[arm] for arm in (baseline, name) if arm is not None}, key)
        if spreads is not None:
            costs = {"deploy_s": cost.deploy_s, "run_s": cost.run_s}
            one = msgspec.structs.replace(one, levels=levels(spreads, gain_pct, better, gpus=cost.gpus, **costs))
        found.append(one)
    return found


def _arms(pilots: Sequence[tuple[Results, str]], after: Sequence[tuple[Results, str]]) -> dict[str, TestValues]:
    """Each test's folders together, by its name; of one that is in both arms "before" and "after" tell which."""
    groups = [
        [(test.name, pilot, source) for pilot, source in group for test in pilot.tests] for group in (pilots, after)
    ]
    both = {name for name, _, _ in groups[0]} & {name for name, _, _ in groups[1]}
    folders: dict[str, list[Side]] = {}
    for which, group in zip(("before", "after"), groups, strict=True):
        for name, pilot, source in group:
            label = f"{name} ({which})" if name in both else name
            folders.setdefault(label, []).append(side_of(pilot, source, name))
    return {label: joined(sides).values for label, sides in folders.items()}


def _compared_after(arms: Mapping[str, TestValues]) -> list[tuple[str, str | None]]:
    """Two arms as they were named. raises UsageError when there are not two, of tests that may be compared"""
    names = list(arms)
    if len(names) != 2:
        raise UsageError(
            f"--pilot-after tells two arms apart, and these folders hold {', '.join(names)}: one test each"
        )
    field = comparable(arms[names[0]].test, arms[names[1]].test)
    if field is not None:
        raise UsageError(f"{names[0]} and {names[1]} are not compared: {field} differs")
    return [(names[1], names[0])]


def _compared(arms: Mapping[str, TestValues], planned: Sequence[Test]) -> list[tuple[str, str | None]]:
    """Every test of the pilot beside its baseline, two that name none beside one another, what is left by itself."""
    tests = [*planned, *(values.test for values in arms.values())]
    pairs = dict.fromkeys(
        (test.name, name)
        for test in tests
        for name in test.baseline
        if {test.name, name} <= arms.keys() and comparable(arms[name].test, arms[test.name].test) is None
    )
    if not pairs and len(arms) == 2:
        before, after = arms
        pairs = {(after, before): None} if comparable(arms[before].test, arms[after].test) is None else {}
    known = {name for pair in pairs for name in pair}
    return [*pairs, *((name, None) for name in arms if name not in known)]


def _spreads(arms: Mapping[str, TestValues], key: Key) -> tuple[Deployments, Spreads | None]:
    """Within blocks where the pilot has them; else of both arms; else of the one that has enough deployments.

    arms  one, or the one before and the one after
    """
    names, given = list(arms), list(arms.values())
    logs = [_logs(values, key) for values in given]
    one = Deployments(
        test=names[-1],
        baseline=names[0] if len(names) == 2 else None,
        pilot={
            name if len(names) == 1 else f"{label}: {name}": len(runs)
            for label, arm in zip(names, logs, strict=True)
            for name, runs in arm.items()
        },
        levels=None,
    )
    try:
        if len(given) == 2:
            blocks = blocks_of(given[0], given[1], (names[0], names[1]))
            one = msgspec.structs.replace(one, blocks=len(blocks.pairs), not_blocks=blocks.why_not)
            if blocks.why_not is None:
                return one, spreads_of_blocks([(logs[0].get(a, []), logs[1].get(b, [])) for a, b in blocks.pairs])
            enough = [arm for arm in logs if sum(len(runs) > 1 for runs in arm.values()) > 1]
            if len(enough) == 2:
                return one, spreads_of_arms(list(enough[0].values()), list(enough[1].values()))
            logs = enough or logs
        return one, spreads_of_arm(list(logs[0].values()))
    except TooFewSamples as error:
        return msgspec.structs.replace(one, reason=str(error)), None


def _logs(values: TestValues, key: Key) -> dict[str, list[float]]:
    known = values.values.get(key, {})
    found = {
        name: [log(known[k]) for k in repetitions if known.get(k, 0) > 0]
        for name, repetitions in repetitions_of(values).items()
    }
    return {name: logs for name, logs in found.items() if logs}


def render_deployments(
    found: Sequence[Deployments], key: Key | None, gain_pct: float, cost: Cost
) -> "Iterator[RenderableType]":
    """A few lines for each test."""
    from rich.text import Text

    what = f"{key[1]} of {key[0]}" if key else "the primary metric"
    yield Text(f"by the pilot's deployments, to show a gain of {gain_pct:g} % in {what} 9 times in 10:", style="bold")
    for one in found:
        beside = "" if one.baseline is None else f" beside {one.baseline}"
        yield Text(f"  {one.test}{beside}: {_levels_words(one, cost)}")


def _levels_words(one: Deployments, cost: Cost) -> str:
    seen = f"{len(one.pilot)} deployments of {sum(one.pilot.values())} runs"
    if one.levels is None:
        return f"not known from {seen} ({one.reason})"
    made = one.levels
    spreads = f"{_planned_with(one, made)} ({seen})"
    if made.deployments is None:
        return f"more than 1,000 deployments of each arm; {spreads}"
    gpu_hours = f", {made.gpu_hours:.1f} GPU-hours" if cost.gpus else ""
    order = made.order if len(made.order) <= ORDER_SHOWN else f"{made.order[:ORDER_SHOWN]}..."
    arms = "" if one.baseline is None else f" (A {one.baseline}, B {one.test})"
    return (
        f"{made.deployments} deployments of each arm, {made.runs} runs on each, in the order {order}{arms}: "
        f"about {made.hours:.1f} h{gpu_hours}; {spreads}"
    )


def _planned_with(one: Deployments, made: Levels) -> str:
    """Which spread, and where it comes from."""
    if made.source == "blocks":
        where = f" in the pilot's {one.blocks} blocks"
    elif made.source == "both arms":
        where = f" by both arms' variances added up (the pilot is not in blocks: {one.not_blocks})"
    else:
        where = f" by twice the variance of {_only(one)}, as if the other arm's were the same"
    of_a_block = " of a block" if made.source == "blocks" else ""
    return (
        f"spread of a block's difference {made.spread:.1%}{where}, planned with up to {made.spread_upper:.1%}; "
        f"{made.s2_deploy**0.5:.1%} between deployments{of_a_block}, {made.s2_run**0.5:.1%} between runs of one"
    )


def _only(one: Deployments) -> str:
    return f"{one.test}'s deployments" if one.baseline is None else "the one arm that has enough deployments"


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
