"""Why a gain has no verdict, why it is not shown, and what was left out of it: the words. Pure."""

from typing import Literal

import msgspec

from kvgauge.compare.values import Key, TestValues
from kvgauge.stats.paired import SHOWN_PCT as PAIRS_SHOWN_PCT
from kvgauge.stats.paired import UNIT, LogRatio, pairs_needed
from kvgauge.stats.runs import (
    LEVEL,
    PRIMARY_SHARE,
    RUNS_MAX,
    RUNS_MIN,
    SHOWN_PCT,
    Gain,
    runs_needed,
)


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

    @property
    def level(self) -> float:
        """What a p-value has to stay below to count, where all others of its family say less: Holm's hardest case."""
        share = PRIMARY_SHARE if self.others else 1.0
        if self.kind == "secondary":
            share = 1 - PRIMARY_SHARE if self.gated else 1.0
        return LEVEL * share / max(1, self.size)

    def lost(self) -> str:
        """Why a p-value below the level does not count."""
        if self.kind == "primary" and self.size == 1:
            mine = f"{100 * LEVEL * PRIMARY_SHARE:g} % of the {100 * LEVEL:g} %"
            return f"alone it would count; beside {self.others} others, with {mine} for it, it does not"
        if self.kind == "primary":
            return f"alone it would count; among {self.size} pairs of tests it does not (Holm)"
        left = f", with {100 * LEVEL * (1 - PRIMARY_SHARE):g} % for all while the primary one shows nothing,"
        return f"alone it would count; among {self.size} secondary metrics{left * self.gated} it does not (Holm)"


def pairs_counted(pairs: LogRatio) -> str:
    """Whom a gain over pairs of requests is about, and how many of them it could not use."""
    lost = f"; {pairs.lost:,} more lack this value on a side" if pairs.lost else ""
    return f"n counts {UNIT}{lost}"


def p_value_of(gained: Gain) -> float:
    return 1.0 if gained.p_value is None else gained.p_value


def none_can_count(before: TestValues, after: TestValues, cell: str | None) -> bool:
    """Whether every run of one side is invalid or failed."""
    for side in (before, after):
        states = {why for (at, _), why in side.left_out.items() if at == cell}
        counts = any(values for (at, _), values in side.values.items() if at == cell)
        if not counts and states and states <= {"invalid", "failed"}:
            return True
    return False


def no_verdict(before: TestValues, after: TestValues, key: Key, gained: Gain) -> str | None:
    """Why no verdict can be given, None when one can."""
    why = before.no_verdict.get(key) or after.no_verdict.get(key)
    if why is None and gained.pairs is None:
        why = no_logarithm(before, after, key)
    if why is not None:
        return why
    there, here = before.counted_by.get(key), after.counted_by.get(key)
    if there != here:
        return f"tokens were counted by {there or 'the server'} there and by {here or 'the server'} here: two measures"
    n = gained.estimate.n
    if gained.pairs is not None:
        return gained.pairs.reason if gained.pairs.error is None else None
    if n >= RUNS_MIN and _rounded(before, after, key):
        return (
            f"all {before.unit}s of a side agree to the last digit: the spread is lost in rounding, or they are copies"
        )
    if n >= RUNS_MIN:
        return None
    unit = before.unit
    many = "" if n == 1 else "s"
    pairs = f"{n} pair{many} of {unit}s" if gained.paired else f"{n} {unit}{many} on a side"
    pairs = f"{n} block{many}" if unit == "block" else pairs
    advice = "" if gained.log_spread is None else f"; {_advised(gained)} would be enough at the spread seen"
    return f"{pairs}: a verdict needs n of at least {RUNS_MIN} {unit}s{advice}"


def _rounded(before: TestValues, after: TestValues, key: Key) -> bool:
    """Whether the two sides differ, and no run of either does: that is not what measurements do."""
    found = [set(side.values.get(key, {}).values()) for side in (before, after)]
    return all(len(values) == 1 for values in found) and found[0] != found[1]


def _advised(gained: Gain, level: float = LEVEL * PRIMARY_SHARE) -> str:
    needed = runs_needed(gained, level)
    return f"{RUNS_MAX} or more" if needed >= RUNS_MAX else f"{needed}"


def why_not_shown(gained: Gain, family: Family, unit: str) -> str:
    if p_value_of(gained) < LEVEL:
        return family.lost()
    if gained.pairs is not None:
        needed = pairs_needed(gained.pairs, family.level)
        what = f"a gain of this size, or {PAIRS_SHOWN_PCT:g} % if that is more"
        return f"about {needed:,} pairs would show {what}" if needed else f"more pairs would show {what}"
    if runs_needed(gained, family.level) <= gained.estimate.n:
        return f"these {unit}s would most likely have shown a gain of {SHOWN_PCT:g} %; what was seen is less"
    advised = _advised(gained, family.level)
    return f"about {advised} {unit}s would show a gain of this size, or {SHOWN_PCT:g} % if that is more"


def no_logarithm(before: TestValues, after: TestValues, key: Key) -> str | None:
    """Repetitions that a ratio cannot use. They are a side's worst ones (a goodput of 0): a verdict over what is left
    of it would flatter it.
    """
    sides = before.values.get(key, {}), after.values.get(key, {})
    unusable = sorted(k for k in sides[0].keys() | sides[1].keys() if min(side.get(k, 1) for side in sides) <= 0)
    if not unusable:
        return None
    what = "repetition" if before.unit == "run" else before.unit
    return f"{what} {', '.join(map(str, unusable))}: a value of 0 or below has no ratio, and the rest is no sample"


def lacking(before: TestValues, after: TestValues, key: Key, *, paired: bool) -> str | None:
    """Valid repetitions that are no pair, because one side lacks this value."""
    if not paired:
        return None
    sides = before.values.get(key, {}), after.values.get(key, {})
    gone = {k for side in (before, after) for at, k in side.left_out if at == key[0]}
    alone = sorted((sides[0].keys() ^ sides[1].keys()) - gone)
    what = "repetition" if before.unit == "run" else before.unit
    return f"{what} {', '.join(map(str, alone))} left out: one side lacks this value" if alone else None


def dropped(before: TestValues, after: TestValues, cell: str | None) -> str | None:
    """Which repetitions do not enter, and because of which side."""
    said = []
    names = [side.test.name for side in (before, after)]
    if names[0] == names[1]:
        names = [f"{names[0]} (before)", f"{names[1]} (after)"]
    for name, side in zip(names, (before, after), strict=True):
        by_state: dict[str, list[int]] = {}
        for (at, repetition), why in sorted(side.left_out.items(), key=lambda item: item[0][1]):
            if at == cell:
                by_state.setdefault(why, []).append(repetition)
        for why, repetitions in by_state.items():
            numbers = ", ".join(str(repetition) for repetition in repetitions)
            said.append(f"repetition {numbers} left out: {why} in {name}")
    return "; ".join(said) or None
