"""Whether one test differs from another: may they be compared, by how much, and how surely. Pure.

The run is the unit of replication: every value here is one run's, and pairs are runs of one repetition.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from kvgauge.plan.metrics import METRICS
from kvgauge.plan.records import ColdStart, Plan, Test
from kvgauge.stats.estimate import Estimate, bare, missing
from kvgauge.stats.paired import SHOWN_PCT as PAIRS_SHOWN_PCT
from kvgauge.stats.paired import UNIT as PAIRS
from kvgauge.stats.paired import LogRatio, pairs_needed
from kvgauge.stats.runs import (
    CONFIDENCE,
    LEVEL,
    PRIMARY_SHARE,
    RUNS_MAX,
    RUNS_MIN,
    SHOWN_PCT,
    STOPPING_EXTRA,
    Better,
    Gain,
    gain,
    gain_of_pairs,
    holm,
    point_gain,
    runs_needed,
    unpaired_gain,
)

Verdict = Literal["better", "worse", "equivalent", "no difference shown", "cannot tell", "invalid"]
Key = tuple[str | None, str]  # cell (None: the whole run) and metric

MARGIN_PCT = 3.0  # a gain that lies within +- this with its whole interval is no gain
RUNS = "runs"

# fields of a test that must agree before its numbers may be set against another's
MUST_AGREE = (
    "model", "prefill_tp", "decode_tp", "kv_dtype", "operation", "prefill_workers", "decode_workers", "gpu", "fabric",
    "full_check", "progress_thread", "cold_start",
)  # fmt: skip

RUN_LEVEL: dict[str, Better] = {  # beside the metrics a plan can decide by
    "connection_ms_max": "lower",
    "connection_ms_mean": "lower",
    **dict.fromkeys(("bandwidth_gb_s", "bandwidth_aggregate_gb_s"), "higher"),  # of transfers by themselves: nixlbench
    **dict.fromkeys(("descriptor_us_mean", "prep_us_mean", "post_us_mean", "wait_us_mean"), "lower"),
}


class TestValues(msgspec.Struct, frozen=True, kw_only=True):
    """A test and its run-level values.

    values      (cell, metric) -> repetition -> value, of valid runs only
    left_out    (cell, repetition) -> why that run does not enter: "invalid", "failed", "interrupted", "pending"
    no_verdict  (cell, metric) -> why this metric gives no verdict, as a P99 of few requests does
    units       (cell, metric) -> its unit
    confidence  of its gains' intervals: more than 95 % where the plan stopped once they were narrow
    counted_by  (cell, metric) -> which tokenizer counted the tokens it rests on; absent: the server did
    beside      the test that stood beside it under one load; None: it had its target's machine to itself
    pairs       (cell, metric) -> repetition -> how this test differs from the one beside it, pair by pair of requests;
                one of the two has it
    deployments  repetition -> the deployment it was measured on, of valid runs that name one
    unit        what a repetition stands for
    """

    __test__ = False  # pytest: not a test class

    test: Test
    values: Mapping[Key, Mapping[int, float]]
    left_out: Mapping[tuple[str | None, int], str] = {}
    no_verdict: Mapping[Key, str] = {}
    units: Mapping[Key, str] = {}
    confidence: float = CONFIDENCE
    counted_by: Mapping[Key, str] = {}
    beside: str | None = None
    pairs: Mapping[Key, Mapping[int, LogRatio]] = {}
    deployments: Mapping[int, str] = {}
    unit: Literal["run", "deployment"] = "run"


class GainRow(msgspec.Struct, frozen=True, kw_only=True):
    """What `test` gained over `baseline` in one metric of one cell (None: of whole runs).

    gain     percent, positive is better
    p_value  two-sided, of the paired t test; Holm-adjusted: primary rows over all pairs of tests, others over
             the secondary metrics of their pair
    reason   why the verdict is not better or worse, or what was left out
    of       what n counts
    """

    test: str
    baseline: str
    cell: str | None
    metric: str
    primary: bool
    gain: Estimate
    verdict: Verdict
    p_value: float | None = None
    reason: str | None = None
    of: str = RUNS


def direction(metric: str) -> Better | None:
    """Which way is better; None for what is neither (counts, bytes, phases: they can move into one another)."""
    known = METRICS.get(metric)
    return known.better if known is not None else RUN_LEVEL.get(metric)


def comparable(test_a: Test, test_b: Test, vary: Sequence[str] = ()) -> str | None:
    """The first field that keeps these tests from being compared, None when they may be.

    vary  fields whose difference is the experiment
    """
    for field in MUST_AGREE:
        if field not in vary and getattr(test_a, field) != getattr(test_b, field):
            return field
    return None


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
    return None if _no_verdict(before, after, key, gained) is not None else gained.p_value


class Family(msgspec.Struct, frozen=True):
    """Which answers share a correction.

    size    primary: pairs of tests; secondary: metrics
    others  primary: how many secondary metrics have the rest of its level
    gated   secondary: the primary metric shows nothing, so that they share what is left beside it
    """

    size: int
    kind: Literal["primary", "secondary"]
    others: int = 0
    gated: bool = False

    def lost(self) -> str:
        """Why a p-value below the level does not count."""
        if self.kind == "primary" and self.size == 1:
            mine = f"{100 * LEVEL * PRIMARY_SHARE:g} % of the {100 * LEVEL:g} %"
            return f"alone it would count; beside {self.others} others, with {mine} for it, it does not"
        if self.kind == "primary":
            return f"alone it would count; among {self.size} pairs of tests it does not (Holm)"
        left = f", with {100 * LEVEL * (1 - PRIMARY_SHARE):g} % for all while the primary one shows nothing,"
        return f"alone it would count; among {self.size} secondary metrics{left * self.gated} it does not (Holm)"


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
    """One test against one other: of equal tests any metric is named better or worse 5 times in 100 at most.

    paired  whether repetition k of one ran beside repetition k of the other
    asked   the primary metric's answer among several pairs of tests; None: this is the only one

    The primary metric has PRIMARY_SHARE of the level, the others (Holm) what is left of it; once the primary metric
    shows a gain its share is the others' too. B. L. Wiens, A fixed sequence Bonferroni procedure for testing multiple
    endpoints, Pharmaceutical Statistics 2 (2003) 211-215.
    """
    keys = [key for key in after.values if key in before.values and direction(key[1]) is not None and key != primary]
    found = {key: gain_of(before, after, key, paired=paired) for key in keys}
    judged = [key for key in keys if _no_verdict(before, after, key, found[key]) is None]
    asked = asked or ask([(before, after, paired)], primary)[0]
    p_value = _shared(asked.p_value, PRIMARY_SHARE if judged else 1.0)
    of_primary = Family(asked.pairs, "primary", others=len(judged))
    gated = asked.p_value is not None and not _shown(p_value)
    share = 1 - PRIMARY_SHARE if gated else 1.0
    holms = holm([_p_value(found[key]) for key in judged])
    adjusted = {key: _shared(one, share) for key, one in zip(judged, holms, strict=True)}
    rows = [_primary_row(before, after, primary, (p_value, of_primary), paired=paired)]
    family = Family(len(judged), "secondary", gated=gated)
    return rows + [row_of(before, after, key, found[key], adjusted.get(key), family) for key in keys]


def _shared(p_value: float | None, share: float) -> float | None:
    """A p-value that has only this share of the level, made comparable with the whole of it."""
    return None if p_value is None else min(1.0, p_value / share)


def _shown(p_value: float | None) -> bool:
    return p_value is not None and p_value < LEVEL


def _p_value(gained: Gain) -> float:
    return 1.0 if gained.p_value is None else gained.p_value


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


def may_stop(tests: Sequence[TestValues], plan: Plan, reached: int) -> bool:
    """Whether a plan with `gain_within` ends after repetition `reached`: its gains were known well enough
    STOPPING_EXTRA repetitions before. Those more are what luck does not choose.
    """
    if plan.gain_within_pct is None:
        return False
    key: Key = (plan.primary.cell, plan.primary.metric)
    seen = [
        msgspec.structs.replace(
            one, values={key: {k: v for k, v in one.values.get(key, {}).items() if k <= reached - STOPPING_EXTRA}}
        )
        for one in tests
    ]
    return known_within(gains(seen, plan), plan.gain_within_pct)


def known_within(rows: Sequence[GainRow], half_width_pct: float) -> bool:
    """Whether every primary gain that has an interval is known within so many percentage points; False without any."""
    widths = [
        (row.gain.high - row.gain.low) / 2
        for row in rows
        if row.primary and row.gain.low is not None and row.gain.high is not None
    ]
    counts = [row.gain.n for row in rows if row.primary and row.gain.low is not None]
    return bool(widths) and min(counts) >= RUNS_MIN and max(widths) <= half_width_pct


def _primary_row(
    before: TestValues, after: TestValues, key: Key, judged: tuple[float | None, Family], *, paired: bool
) -> GainRow:
    if direction(key[1]) is None:
        return _no_gain(after, before.test.name, key, "cannot tell", f"{key[1]} has no better and worse")
    gained = gain_of(before, after, key, paired=paired)
    if gained.estimate.n == 0:
        verdict: Verdict = "invalid" if _none_can_count(before, after, key[0]) else "cannot tell"
        without = "no repetition has this value on both sides" if paired else "one side has no run with this value"
        why = _dropped(before, after, key[0]) or without
        return _no_gain(after, before.test.name, key, verdict, why)
    return row_of(before, after, key, gained, *judged)


def _none_can_count(before: TestValues, after: TestValues, cell: str | None) -> bool:
    """Whether every run of one side is invalid or failed."""
    for side in (before, after):
        states = {why for (at, _), why in side.left_out.items() if at == cell}
        counts = any(values for (at, _), values in side.values.items() if at == cell)
        if not counts and states and states <= {"invalid", "failed"}:
            return True
    return False


def _no_verdict(before: TestValues, after: TestValues, key: Key, gained: Gain) -> str | None:
    """Why no verdict can be given, None when one can."""
    why = before.no_verdict.get(key) or after.no_verdict.get(key)
    if why is not None:
        return why
    there, here = before.counted_by.get(key), after.counted_by.get(key)
    if there != here:
        return f"tokens were counted by {there or 'the server'} there and by {here or 'the server'} here: two measures"
    n = gained.estimate.n
    if gained.pairs is not None:
        return gained.pairs.reason if gained.pairs.error is None else None
    if n >= RUNS_MIN:
        return None
    unit = before.unit
    pairs = (
        f"{n} pair{'' if n == 1 else 's'} of {unit}s"
        if gained.paired
        else f"{n} {unit}{'' if n == 1 else 's'} on a side"
    )
    advice = "" if gained.log_spread is None else f"; {_advised(gained)} would be enough at the spread seen"
    return f"{pairs}: a verdict needs n of at least {RUNS_MIN} {unit}s{advice}"


def _advised(gained: Gain) -> str:
    needed = runs_needed(gained)
    return f"{RUNS_MAX} or more" if needed >= RUNS_MAX else f"{needed}"


def row_of(
    before: TestValues, after: TestValues, key: Key, gained: Gain, p_value: float | None, family: Family
) -> GainRow:
    why = _no_verdict(before, after, key, gained)
    verdict: Verdict = "cannot tell" if why is not None else verdict_of(gained, p_value)
    if why is None and verdict == "no difference shown":
        why = _why_not_shown(gained, family)
    scope = None if gained.pairs is None else f"n counts {PAIRS}"
    said = (scope, why, _dropped(before, after, key[0]), _no_logarithm(before, after, key))
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
        of=RUNS if gained.pairs is None else PAIRS,
    )


def _why_not_shown(gained: Gain, family: Family) -> str:
    if _p_value(gained) < LEVEL:
        return family.lost()
    if gained.pairs is not None:
        needed = pairs_needed(gained.pairs)
        what = f"a gain of this size, or {PAIRS_SHOWN_PCT:g} % if that is more"
        return f"about {needed:,} pairs would show {what}" if needed else f"more pairs would show {what}"
    if runs_needed(gained) <= gained.estimate.n:
        return f"these runs would most likely have shown a gain of {SHOWN_PCT:g} %; what was seen is less"
    return f"about {_advised(gained)} runs would show a gain of this size, or {SHOWN_PCT:g} % if that is more"


def _no_logarithm(before: TestValues, after: TestValues, key: Key) -> str | None:
    """Repetitions that both sides have and that a ratio cannot use."""
    sides = before.values.get(key, {}), after.values.get(key, {})
    unusable = sorted(k for k in sides[0].keys() | sides[1].keys() if min(side.get(k, 1) for side in sides) <= 0)
    if not unusable:
        return None
    return f"repetition {', '.join(map(str, unusable))} left out: a value of 0 or below has no ratio"


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


def _dropped(before: TestValues, after: TestValues, cell: str | None) -> str | None:
    """Which repetitions do not enter, and because of which side."""
    said = []
    for side in (before, after):
        by_state: dict[str, list[int]] = {}
        for (at, repetition), why in sorted(side.left_out.items(), key=lambda item: item[0][1]):
            if at == cell:
                by_state.setdefault(why, []).append(repetition)
        for why, repetitions in by_state.items():
            numbers = ", ".join(str(repetition) for repetition in repetitions)
            said.append(f"repetition {numbers} left out: {why} in {side.test.name}")
    return "; ".join(said) or None


def published_gain(before: float, after: float, metric: str) -> tuple[Estimate, Verdict, str]:
    """The gain of two published numbers that came without n: a point, and nothing that could be told from it."""
    why = "as published, no interval: the numbers carry no n"
    estimate = bare(point_gain(before, after, direction(metric) or "lower"), "%", 0, why)
    return estimate, "cannot tell", why
