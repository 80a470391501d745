"""Two sides that were measured at any time, anywhere: may they be compared, by how much do they differ, and where
does the difference arise. Pure.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from kvgauge.compare import deployments
from kvgauge.compare.blocks import Blocks, Units, Wanted, in_time, units_of
from kvgauge.compare.differences import NOTED, PLACE, Difference, check_varied, differences, left_out, noted, refusal
from kvgauge.compare.gains import Asked, ask, pair
from kvgauge.compare.values import GainRow, Key, Stay, TestValues
from kvgauge.failures import UsageError
from kvgauge.stats.cells import PHASES
from kvgauge.stats.estimate import Estimate
from kvgauge.stats.runs import CONFIDENCE, change, over_runs

THROTTLED_FROM = 0.02  # request rates of a closed loop that differ by less are not worth a word


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One test as it was measured somewhere.

    label    how it is called: the test's name, the folder's too where names are equal
    source   where its results lie; sides of one source ran interleaved, so their repetitions are pairs
    cells    the plan's cells, by name, as results.json has them
    machine  what is known of where it ran, and of how its client behaved
    primary  cell and metric its plan declared before anything ran; None: none
    limits   of imported results: what they lack
    """

    label: str
    source: str
    values: TestValues
    cells: Mapping[str, Mapping[str, Any]]
    machine: Mapping[str, Any]
    primary: Key | None
    rehearsal: bool = False
    limits: tuple[str, ...] = ()


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of a cell on both sides (means over valid runs), and its gain."""

    before: Estimate
    after: Estimate
    row: GainRow


class Arose(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the TTFT on both sides. change: after - before, in ms."""

    cell: str
    phase: str
    before: Estimate
    after: Estimate
    change: Estimate


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What `after` is beside `before`.

    unit         what is replicated: n counts these
    blocks       the deployments in time, where several a side were compared; None: they were not
    scope        whom its verdicts are about, where deployments were not repeated; None: no such limit
    differences  the ones that were allowed
    remarks      what a reader must know
    """

    before: str
    after: str
    paired: bool
    primary: Key
    differences: tuple[Difference, ...]
    remarks: tuple[str, ...]
    rows: tuple[Row, ...]
    arose: tuple[Arose, ...]
    unit: str = "run"
    scope: str | None = None
    blocks: Blocks | None = None


def compare(
    before: Side,
    after: Side,
    *,
    primary: Key | None = None,
    vary: Collection[str] = (),
    asked: Asked | None = None,
    wanted: Wanted = "auto",
) -> Comparison:
    """Everything that can be said of two sides.

    primary  the metric that decides; None: the one both plans declared
    vary     fields whose difference is the experiment
    asked    the primary metric's answer where several pairs of sides are asked; None: this is the only one
    wanted   whether deployments are compared in blocks; auto: where their times show some

    raises  UsageError when they may not be compared, naming every field that differs
    """
    check_varied(vary)
    _refuse_halves(before, after)
    key = _primary(before, after, primary)
    if why := refusal(before, after, key, vary):
        raise UsageError(why)
    found = differences(before, after)
    apart = left_out(found, vary)
    units = _units(before, after, wanted, apart)
    rows = pair(units.before, units.after, key, paired=units.paired, asked=asked)
    named = [(side.label, side.values) for side in (before, after)]
    return Comparison(
        before=before.label,
        after=after.label,
        paired=units.paired,
        primary=key,
        unit=units.before.unit,
        scope=deployments.scope(named) if units.before.unit == "run" else None,
        blocks=units.blocks,
        differences=tuple(found),
        remarks=tuple(_remarks(before, after, found, key, vary, units=units, chosen=primary is not None)),
        rows=tuple(_with_both(units.before, units.after, row) for row in rows),
        arose=tuple(_arose(units.before, units.after, paired=units.paired)),
    )


def _units(before: Side, after: Side, wanted: Wanted, apart: Collection[str] = ()) -> Units:
    kept = [_without(side.values, apart) for side in (before, after)]
    labels = before.label, after.label
    return units_of(kept[0], kept[1], labels, one_source=before.source == after.source, wanted=wanted)


def _refuse_halves(before: Side, after: Side) -> None:
    """A test that stood beside another had half of a load: set beside anything else, its waits are not its own."""
    for side in (before, after):
        if before.source != after.source and side.values.beside is not None:
            raise UsageError(
                f"{side.label} was measured in mode paired, beside {side.values.beside} under one load: its latencies "
                "hold waits for the other's requests. Compare the two tests of that folder; for another run, measure "
                "in mode runs"
            )


def joined(sides: Sequence[Side], vary: Collection[str] = ()) -> Side:
    """Several folders of one test as one side; runs that name no deployment are of their folder's own.

    vary    fields that may differ between them too: hosts that conduct, where each start has a new name
    raises  UsageError when they do not measure the same, naming the first field
    """
    first = sides[0]
    offset, places, named = 0, dict[tuple[int, int], int](), dict[int, str]()
    for number, side in enumerate(sides):
        apart = [one for one in differences(first, side) if one.field not in NOTED and one.field not in vary]
        if apart or side.primary != first.primary:
            what = apart[0].words if apart else "the primary metric differs"
            what += f"; where it may, --vary {apart[0].field}" if apart and apart[0].field in PLACE else ""
            raise UsageError(f"{first.source} and {side.source} are not one side: {what}")
        if side.values.counted_by != first.values.counted_by or side.values.beside != first.values.beside:
            alike = side.values.beside == first.values.beside
            what = "their tokens were counted by different tokenizers" if alike else "one is of mode paired"
            raise UsageError(f"{first.source} and {side.source} are not one side: {what}")
        known = {k for of in side.values.values.values() for k in of} | {k for _, k in side.values.left_out}
        for k in sorted(known):
            places[number, k] = offset + k
            named[offset + k] = side.values.deployments.get(k, side.source)
        offset += max(known, default=0)
    values: dict[Key, dict[int, float]] = {}
    left_out: dict[tuple[str | None, int], str] = {}
    stays: dict[int, Stay] = {}
    for number, side in enumerate(sides):
        for key, of in side.values.values.items():
            values.setdefault(key, {}).update({places[number, k]: value for k, value in of.items()})
        left_out |= {(cell, places[number, k]): why for (cell, k), why in side.values.left_out.items()}
        stays |= {places[number, k]: stay for k, stay in _stays(side).items() if (number, k) in places}
    entering = {k for of in values.values() for k in of}
    merged = msgspec.structs.replace(
        first.values,
        values=values,
        left_out=left_out,
        no_verdict={key: why for side in sides for key, why in side.values.no_verdict.items()},
        units={key: unit for side in sides for key, unit in side.values.units.items()},
        confidence=max(side.values.confidence for side in sides),
        deployments={k: name for k, name in named.items() if k in entering},
        stays=stays,
    )
    return msgspec.structs.replace(first, source="; ".join(side.source for side in sides), values=merged)


def _stays(side: Side) -> dict[int, Stay]:
    """When its runs were made; one that failed before it named its deployment was of the folder's."""
    names = dict.fromkeys(stay.deployment for stay in side.values.stays.values() if stay.deployment is not None)
    own = next(iter(names)) if len(names) == 1 else None if names else side.source
    return {
        k: msgspec.structs.replace(stay, deployment=stay.deployment or own) for k, stay in side.values.stays.items()
    }


def compare_all(
    pairs: Sequence[tuple[Side, Side]],
    *,
    primary: Key | None = None,
    vary: Collection[str] = (),
    wanted: Wanted = "auto",
) -> list[Comparison]:
    """Every pair of sides. Asked of several, the primary metric's p-values are Holm-adjusted together."""
    keys = {_primary(before, after, primary) for before, after in pairs}
    if len(pairs) < 2 or len(keys) > 1:
        return [compare(before, after, primary=primary, vary=vary, wanted=wanted) for before, after in pairs]
    found = [_units(before, after, wanted) for before, after in pairs]
    asked = ask([(one.before, one.after, one.paired) for one in found], keys.pop())
    return [
        compare(before, after, primary=primary, vary=vary, asked=one, wanted=wanted)
        for (before, after), one in zip(pairs, asked, strict=True)
    ]


def _primary(before: Side, after: Side, chosen: Key | None) -> Key:
    if chosen is not None:
        return chosen
    if before.primary is None or before.primary != after.primary:
        said = [_key_text(side.primary) if side.primary else "none" for side in (before, after)]
        raise UsageError(
            f"{before.label} decides by {said[0]} and {after.label} by {said[1]}: a comparison has one primary metric. "
            "Name it: --primary METRIC@CELL"
        )
    return before.primary


def _key_text(key: Key) -> str:
    return f"{key[1]}@{key[0]}" if key[0] else key[1]


def _without(values: TestValues, cells: Collection[str]) -> TestValues:
    if not cells:
        return values
    kept = {key: by_run for key, by_run in values.values.items() if key[0] not in cells}
    return msgspec.structs.replace(values, values=kept)


def _with_both(before: TestValues, after: TestValues, row: GainRow) -> Row:
    key = (row.cell, row.metric)
    return Row(before=_mean(before, key), after=_mean(after, key), row=row)


def _mean(values: TestValues, key: Key) -> Estimate:
    return over_runs(list(values.values.get(key, {}).values()), values.units.get(key, ""))


def _arose(before: TestValues, after: TestValues, *, paired: bool) -> "list[Arose]":
    cells = [cell for cell, metric in after.values if metric == "ttft_ms_mean" and cell is not None]
    found = []
    for cell in dict.fromkeys(cells):
        for phase in PHASES:
            key: Key = (cell, f"phase_{phase}_ms_mean")
            sides = before.values.get(key), after.values.get(key)
            if sides[0] and sides[1]:
                changed = change(sides[0], sides[1], "ms", paired=paired)
                both = _mean(before, key), _mean(after, key)
                found.append(Arose(cell=cell, phase=phase, before=both[0], after=both[1], change=changed))
    return found


def _remarks(
    before: Side,
    after: Side,
    found: Sequence[Difference],
    primary: Key,
    vary: Collection[str],
    *,
    units: Units,
    chosen: bool,
) -> "list[str]":
    said = in_time(units, (before.label, after.label))
    if before.values.beside is not None:
        said.append(
            "mode paired: both stood side by side under one load; this is their difference under what they shared, of "
            "these deployments, and no capacity"
        )
    said += [
        f"planted in {side.label}: {side.values.test.planted.line}"
        for side in (before, after)
        if side.values.test.planted is not None
    ]
    if deployments.replicated(before.values, after.values):
        said.append(deployments.unit_remark(before.values, after.values, units.before.unit))
    confidence = max(before.values.confidence, after.values.confidence)
    if confidence > CONFIDENCE:
        said.append(
            f"intervals are at {confidence:.0%}, so that they hold the truth 95 times in 100 although the plan could "
            "stop once they were narrow (gain_within)"
        )
    if chosen:
        said.append("the primary metric was chosen for this comparison; a plan declares it before anything runs")
    if before.rehearsal or after.rehearsal:
        said.append("rehearsal over tcp or shm: nothing here transfers to EFA or InfiniBand")
    said += noted(found, primary)
    said += [f"varied: {one.words}" for one in found if one.field in vary]
    said += [
        f"cell {cell} is left out: "
        + "; ".join(one.words for one in found if one.cell == cell and one.field not in NOTED)
        for cell in sorted(left_out(found, vary))
    ]
    alone = [sorted(side.cells.keys() - other.cells.keys()) for side, other in ((before, after), (after, before))]
    for names, side in zip(alone, (before, after), strict=True):
        if names:
            said.append(f"only {side.label} has {', '.join(names)}")
    return said + _limits(before, after) + _throttled(before, after)


def _limits(before: Side, after: Side) -> list[str]:
    """What results that another tool measured cannot tell."""
    sides = (before, after)
    told = {limit: [side.label for side in sides if limit in side.limits] for side in sides for limit in side.limits}
    return [f"imported ({'both sides' if len(of) == 2 else of[0]}): {limit}" for limit, of in told.items()]


def _throttled(before: Side, after: Side) -> "list[str]":
    """A closed loop sends its next request when the last one has ended: who is slower is asked less."""
    said = []
    for name in before.cells.keys() & after.cells.keys():
        if before.cells[name].get("load") not in ("closed", "single"):
            continue
        key: Key = (name, "request_throughput_req_s")
        rates = [_mean(side.values, key).point for side in (before, after)]
        if None in rates or not rates[0] or abs(rates[1] / rates[0] - 1) < THROTTLED_FROM:  # type: ignore[operator]
            continue
        if before.cells[name].get("concurrency", 1) == 1:
            continue
        slower = before.label if rates[0] < rates[1] else after.label  # type: ignore[operator]
        said.append(
            f"cell {name} is a closed loop: {slower} was also asked less ({rates[0]:.3g} and {rates[1]:.3g} req/s), "
            "which flatters its latencies; an open load at one rate for both does not"
        )
    return said
