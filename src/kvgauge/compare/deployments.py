"""Deployments above runs: which runs share one, what is the unit of replication then, whom a verdict is about. Pure.

A deployment that was measured several times was drawn once: its runs tell how it runs, not how the next one would.
"""

from collections.abc import Mapping, Sequence
from math import exp, fsum, log

import msgspec

from kvgauge.compare.values import Key, TestValues


def repetitions_of(values: TestValues) -> dict[str, list[int]]:
    """Valid repetitions by their deployment; those that name none are not in it."""
    found: dict[str, list[int]] = {}
    for repetition, name in sorted(values.deployments.items()):
        found.setdefault(name, []).append(repetition)
    return found


def shares(values: TestValues) -> bool:
    """Whether several runs were made on one deployment."""
    return any(len(runs) > 1 for runs in repetitions_of(values).values())


def replicated(before: TestValues, after: TestValues) -> bool:
    """Whether the deployment is the unit: runs share deployments, and both sides have several of those."""
    return (shares(before) or shares(after)) and min(len(repetitions_of(one)) for one in (before, after)) > 1


def by_deployment(values: TestValues, names: Sequence[str] | None = None) -> TestValues:
    """One value for each deployment: the mean of its runs' logs, or of the values where one has no logarithm.

    names  in which order; None: as they come. Repetition k is then the k-th deployment.
    """
    known = repetitions_of(values)
    groups = [known.get(name, []) for name in (known if names is None else names)]
    found: dict[Key, Mapping[int, float]] = {}
    for key, of in values.values.items():
        lists = [[of[k] for k in group if k in of] for group in groups]
        found[key] = {place: _mean(listed) for place, listed in enumerate(lists, 1) if listed}
    return msgspec.structs.replace(values, values=found, unit="deployment")


def _mean(values: Sequence[float]) -> float:
    if min(values) <= 0:
        return fsum(values) / len(values)
    return exp(fsum(log(value) for value in values) / len(values))


def scope(sides: Sequence[tuple[str, TestValues]]) -> str | None:
    """Whom a verdict is about, where runs share deployments that were not repeated; None: deployments at large.

    sides  label and values
    """
    if not any(shares(values) for _, values in sides):
        return None
    said = []
    for label, values in sides:
        named = [f"{name} ({_runs(len(runs))})" for name, runs in repetitions_of(values).items()]
        said.append(f"{label}: {', '.join(named) or 'none is named'}")
    return "these deployments only, which new ones may differ from: " + "; ".join(said)


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def unit_remark(before: TestValues, after: TestValues, unit: str) -> str:
    """What is replicated, for a page. unit: "deployment", or "block" of two"""
    counts = [(len(repetitions_of(one)), sum(map(len, repetitions_of(one).values()))) for one in (before, after)]
    said = " and ".join(f"{deployments} of {runs} runs" for deployments, runs in counts)
    return f"the {unit} is the unit of replication ({said}): a deployment's value is the mean of its runs"
