"""Whether one test differs from another: may they be compared, by how much, and how surely. Pure.

The run is the unit of replication: every value here is one run's, and pairs are runs of one repetition.
"""

from collections.abc import Sequence

import msgspec

from kvgauge.compare.reasons import (
    Family,
    dropped,
    lacking,
    no_verdict,
    none_can_count,
    p_value_of,
    pairs_counted,
    why_not_shown,
)
from kvgauge.compare.values import GainRow, Key, TestValues, Verdict, comparable, direction
from kvgauge.plan.records import ColdStart, Plan
from kvgauge.stats.estimate import Estimate, bare, missing
from kvgauge.stats.paired import UNIT as PAIRS
from kvgauge.stats.paired import LogRatio
from kvgauge.stats.runs import (
    CONFIDENCE,
    LEVEL,
    PRIMARY_SHARE,
    Gain,
    gain,
    gain_of_pairs,
    holm,
    point_gain,
    unpaired_gain,
)

MARGIN_PCT = 3.0  # a gain that lies within +- this with its whole interval is no gain


def _said(value: object) -> str:
    return f"'{value.line}'" if isinstance(value, ColdStart) else repr(value)


def gains(tests: Sequence[TestValues], plan: Plan, *, vary: Sequence[str] = ()) -> list[GainRow]:
    """Every test against each of its baselines, in the plan's order; within a pair the primary metric first."""
    by_name = {values.test.name: values for values in tests}
    key: Key = (plan.primary.cell, plan.primary.metric)
    found: list[tuple[TestValues, TestValues] | GainRow] = []
    for after in tests:
        for name in after.test.baseline:
            before = by_name.get(name)
            if before is None:
                found.append(_no_gain(after, name, key, "cannot tell", f"{name!r} has no results here"))
                continue
            field = comparable(before.test, after.test, vary)
            if field is not None:
                there, here = (_said(getattr(values.test, field)) for values in (before, after))
                reason = f"not comparable: {field} is {there} there and {here} here"
                found.append(_no_gain(after, name, key, "cannot tell", reason))
                continue
            found.append((before, after))
    asked = iter(ask([(*one, True) for one in found if isinstance(one, tuple)], key))
    rows: list[GainRow] = []
    for one in found:
        rows += [one] if isinstance(one, GainRow) else pair(*one, key, asked=next(asked))
    return rows


class Asked(msgspec.Struct, frozen=True):
    """The primary metric's p-value, Holm-adjusted over so many pairs of tests; None: it gives no verdict here."""

    p_value: float | None
    pairs: int = 1


def ask(pairs: Sequence[tuple[TestValues, TestValues, bool]], key: Key) -> list[Asked]:
    """The primary metric is asked once for each pair of tests: those answers share a correction (Holm).

    pairs  before, after, and whether their repetitions are pairs
    """
    found = [_primary_p(*one, key) for one in pairs]
    judged = [p_value for p_value in found if p_value is not None]
    adjusted = iter(holm(judged))
    return [Asked(None if p_value is None else next(adjusted), len(judged)) for p_value in found]


def _primary_p(before: TestValues, after: TestValues, paired: bool, key: Key) -> float | None:
    if direction(key[1]) is None:
        return None
    gained = gain_of(before, after, key, paired=paired)
    return None if no_verdict(before, after, key, gained) is not None else gained.p_value


def _no_gain(after: TestValues, baseline: str, primary: Key, verdict: Verdict, reason: str) -> GainRow:
    return GainRow(
        test=after.test.name,
        baseline=baseline,
        cell=primary[0],
        metric=primary[1],
        primary=True,
        gain=missing("%", reason),
        verdict=verdict,
        reason=reason,
    )


def pair(
    before: TestValues, after: TestValues, primary: Key, *, paired: bool = True, asked: Asked | None = None
) -> list[GainRow]:
    """One test against one other: made so that of equal tests any metric is named better or worse
    5 times in 100 (counted: docs/calibration.md).

    paired  whether repetition k of one ran beside repetition k of the other
    asked   the primary metric's answer among several pairs of tests; None: this is the only one

    The primary metric has PRIMARY_SHARE of the level, the others (Holm) what is left of it; once the primary metric
    shows a gain its share is the others' too. B. L. Wiens, A fixed sequence Bonferroni procedure for testing multiple
    endpoints, Pharmaceutical Statistics 2 (2003) 211-215.
    """
    keys = [key for key in after.values if key in before.values and direction(key[1]) is not None and key != primary]
    found = {key: gain_of(before, after, key, paired=paired) for key in keys}
    judged = [key for key in keys if no_verdict(before, after, key, found[key]) is None]
    asked = asked or ask([(before, after, paired)], primary)[0]
    p_value = _shared(asked.p_value, PRIMARY_SHARE if judged else 1.0)
    of_primary = Family(asked.pairs, "primary", others=len(judged))
    gated = asked.p_value is not None and not _shown(p_value)
    share = 1 - PRIMARY_SHARE if gated else 1.0
    holms = holm([p_value_of(found[key]) for key in judged])
    adjusted = {key: _shared(one, share) for key, one in zip(judged, holms, strict=True)}
    rows = [_primary_row(before, after, primary, (p_value, of_primary), paired=paired)]
    family = Family(len(judged), "secondary", gated=gated)
    return rows + [row_of(before, after, key, found[key], adjusted.get(key), family) for key in keys]


def _shared(p_value: float | None, share: float) -> float | None:
    """A p-value that has only this share of the level, made comparable with the whole of it."""
    return None if p_value is None else min(1.0, p_value / share)


def _shown(p_value: float | None) -> bool:
    return p_value is not None and p_value < LEVEL


def gain_of(before: TestValues, after: TestValues, key: Key, *, paired: bool) -> Gain:
    """What one metric of one cell gained, over pairs of runs or over the two sides' runs.

    Where the confidence is more than 95 %, p-values grow with it, so that they go with the interval.
    """
    sides = before.values.get(key, {}), after.values.get(key, {})
    better = direction(key[1]) or "lower"
    confidence = max(before.confidence, after.confidence)
    ratios = ratios_between(before, after, key)
    if paired and ratios:
        found = gain_of_pairs(ratios, better)
    elif paired:
        found = gain(*sides, better, confidence=confidence)
    else:
        usable = [[value for value in side.values() if value > 0] for side in sides]
        found = unpaired_gain(usable[0], usable[1], better, confidence=confidence)
    if found.p_value is None or confidence == CONFIDENCE:
        return found
    return msgspec.structs.replace(found, p_value=min(1.0, found.p_value * LEVEL / (1 - confidence)))


def ratios_between(before: TestValues, after: TestValues, key: Key) -> dict[int, LogRatio]:
    """What pairs of requests said, of the repetitions that are valid on both sides; empty where there were no pairs."""
    both = before.values.get(key, {}).keys() & after.values.get(key, {}).keys()
    if after.beside == before.test.name and after.pairs.get(key):
        return {k: ratio for k, ratio in after.pairs[key].items() if k in both}
    if before.beside == after.test.name and before.pairs.get(key):
        turned = {k: ratio for k, ratio in before.pairs[key].items() if k in both and ratio.mean is not None}
        return {k: msgspec.structs.replace(ratio, mean=-(ratio.mean or 0.0)) for k, ratio in turned.items()}
    return {}


def _primary_row(
    before: TestValues, after: TestValues, key: Key, judged: tuple[float | None, Family], *, paired: bool
) -> GainRow:
    if direction(key[1]) is None:
        return _no_gain(after, before.test.name, key, "cannot tell", f"{key[1]} has no better and worse")
    gained = gain_of(before, after, key, paired=paired)
    if gained.estimate.n == 0:
        verdict: Verdict = "invalid" if none_can_count(before, after, key[0]) else "cannot tell"
        unit = "repetition" if before.unit == "run" else before.unit
        without = f"no {unit} has this value on both sides" if paired else "one side has no run with this value"
        why = dropped(before, after, key[0]) or without
        return _no_gain(after, before.test.name, key, verdict, why)
    return row_of(before, after, key, gained, *judged)


def row_of(
    before: TestValues, after: TestValues, key: Key, gained: Gain, p_value: float | None, family: Family
) -> GainRow:
    why = no_verdict(before, after, key, gained)
    verdict: Verdict = "cannot tell" if why is not None else verdict_of(gained, p_value)
    if why is None and verdict == "no difference shown":
        why = why_not_shown(gained, family, before.unit)
    scope = None if gained.pairs is None else pairs_counted(gained.pairs)
    said = (scope, why, dropped(before, after, key[0]), lacking(before, after, key, paired=gained.paired))
    reasons = [reason for reason in said if reason]
    return GainRow(
        test=after.test.name,
        baseline=before.test.name,
        cell=key[0],
        metric=key[1],
        primary=family.kind == "primary",
        gain=gained.estimate,
        verdict=verdict,
        p_value=None if verdict == "cannot tell" else p_value,
        reason="; ".join(reasons) or None,
        of=f"{before.unit}s" if gained.pairs is None else PAIRS,
    )


def verdict_of(gained: Gain, p_value: float | None, *, margin_pct: float = MARGIN_PCT) -> Verdict:
    """The words for a gain that has enough pairs.

    p_value  as it stands, or adjusted where the metric is one of many

    A difference that is shown is named even when it is smaller than the margin; the margin only says when
    "no difference shown" may be called "equivalent".
    """
    point, low, high = gained.estimate.point, gained.estimate.low, gained.estimate.high
    if point is None or low is None or high is None or p_value is None:
        return "cannot tell"
    if p_value < LEVEL:
        return "better" if point > 0 else "worse"
    if -margin_pct <= low and high <= margin_pct:
        return "equivalent"
    return "no difference shown"


def published_gain(before: float, after: float, metric: str) -> tuple[Estimate, Verdict, str]:
    """The gain of two published numbers that came without n: a point, and nothing that could be told from it."""
    why = "as published, no interval: the numbers carry no n"
    estimate = bare(point_gain(before, after, direction(metric) or "lower"), "%", 0, why)
    return estimate, "cannot tell", why
