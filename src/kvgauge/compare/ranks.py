"""A plan's tests in the order of its primary metric, and which of them can be told apart. Pure."""

from collections.abc import Sequence
from itertools import combinations

import msgspec

from kvgauge.compare.gains import gain_of
from kvgauge.compare.reasons import no_verdict, pairs_counted
from kvgauge.compare.values import Key, TestValues, comparable, direction
from kvgauge.stats.estimate import Estimate
from kvgauge.stats.runs import LEVEL, holm, over_runs


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """A test in its place.

    behind        gain of the first one over it, in percent; None: it is the first, or they cannot be compared
    apart         whether that gain is shown, and one (Holm over all pairs of tests)
    reason        why it has no gain or no verdict
    differs       the field that keeps it from being compared with the first one; None: they may be
    """

    test: str
    value: Estimate
    behind: Estimate | None
    apart: bool
    reason: str | None = None
    differs: str | None = None


def rank(tests: Sequence[TestValues], key: Key, *, vary: Sequence[str] = ()) -> list[Ranked]:
    """Best first; tests without a valid run come last.

    vary  fields whose difference is the experiment

    The first one is found by looking, so that every pair is a question: p-values are Holm-adjusted over all of them.
    """
    better = direction(key[1]) or "lower"
    means = {t.test.name: over_runs(list(t.values.get(key, {}).values()), t.units.get(key, "")) for t in tests}
    sign = 1 if better == "lower" else -1

    def place(test: TestValues) -> tuple[bool, float]:
        point = means[test.test.name].point
        return (point is None, sign * (point or 0.0))

    ordered = sorted(tests, key=place)
    adjusted = _adjusted(ordered, key, vary)
    first = ordered[0] if ordered else None
    ranked = []
    for test in ordered:
        name = test.test.name
        if first is None or test is first or means[name].point is None:
            reason = "no valid run" if means[name].point is None else None
            ranked.append(Ranked(test=name, value=means[name], behind=None, apart=False, reason=reason))
            continue
        if field := comparable(first.test, test.test, vary):
            reason = f"not comparable with the first: {field} differs"
            found = Ranked(test=name, value=means[name], behind=None, apart=False, reason=reason, differs=field)
            ranked.append(found)
            continue
        gained = gain_of(test, first, key, paired=True)
        why, p_value = no_verdict(test, first, key, gained), adjusted.get((first.test.name, name))
        if why is None and gained.pairs is not None:
            why = pairs_counted(gained.pairs)
        apart = p_value is not None and p_value < LEVEL
        if apart and (gained.log_mean or 0.0) * sign > 0:
            apart, why = False, "repetition by repetition it is the better one, although its mean is not"
        ranked.append(Ranked(test=name, value=means[name], behind=gained.estimate, apart=apart, reason=why))
    return ranked


def winner(ranked: Sequence[Ranked], *, rehearsal: bool) -> tuple[str | None, str]:
    """The test that is better than every other one, if there is one, and a sentence."""
    if not ranked or ranked[0].value.point is None:
        return None, "no test has a valid run"
    others = ranked[1:]
    left = [one.test for one in others if not one.apart and one.differs is None]
    strange = [f"{one.test} ({one.differs} differs)" for one in others if one.differs is not None]
    if not others:
        return None, "one test: there is nothing to rank"
    if left or strange:
        said = [f"is not told apart from {', '.join(left)}"] if left else []
        said += [f"may not be compared with {', '.join(strange)}"] if strange else []
        return None, f"no winner: {ranked[0].test} comes first, and {'; it '.join(said)}"
    if rehearsal:
        return None, f"{ranked[0].test} comes first on this rehearsal fabric, which names no winner for EFA"
    return ranked[0].test, f"{ranked[0].test} is better than every other test"


def _adjusted(tests: Sequence[TestValues], key: Key, vary: Sequence[str]) -> dict[tuple[str, str], float]:
    judged, p_values = [], []
    for one, other in combinations(tests, 2):
        gained = gain_of(other, one, key, paired=True)
        may = comparable(one.test, other.test, vary) is None and no_verdict(other, one, key, gained) is None
        if may and gained.p_value is not None:
            judged.append((one.test.name, other.test.name))
            p_values.append(gained.p_value)
    return dict(zip(judged, holm(p_values), strict=True))
