"""Deployments of two sides in time: whether each two in turn are one of each side, so that they are pairs. Pure.

What a block shares, as the state of a machine that drifts, cancels in the difference of its two. Only times decide
whether there are blocks: values that did would choose the analysis which they like.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Literal

import msgspec

from kvgauge.compare import deployments
from kvgauge.compare.values import Stay, TestValues
from kvgauge.failures import UsageError

Wanted = Literal["auto", "yes", "no"]
LETTERS_SHOWN, NAMES_SHOWN = 24, 4
ABBA = "deployments made in the order ABBA are compared in blocks of two, in which it cancels"


class Blocks(msgspec.Struct, frozen=True, kw_only=True):
    """The deployments of two sides in the order of time.

    order    A: one of the side before, B: one of the side after; empty where times do not tell
    pairs    of each block the deployment before and the one after; empty: no blocks
    why_not  why there are none; None: there are
    """

    order: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    why_not: str | None = None

    @property
    def order_shown(self) -> str:
        return _shortened(self.order)


def _shortened(order: str) -> str:
    return order if len(order) <= LETTERS_SHOWN else f"{order[:LETTERS_SHOWN]}..."


class Units(msgspec.Struct, frozen=True, kw_only=True):
    """Two sides with a value for each unit of replication. blocks: None where there are no deployments to order."""

    before: TestValues
    after: TestValues
    paired: bool
    blocks: Blocks | None = None

    @property
    def blocked(self) -> bool:
        return self.blocks is not None and self.blocks.why_not is None


def units_of(
    before: TestValues, after: TestValues, labels: tuple[str, str], *, one_source: bool, wanted: Wanted = "auto"
) -> Units:
    """By run, by deployment or by block of two deployments: by what the sides are, whatever they measured.

    one_source  the runs of one folder: repetition k of both ran close together

    raises  UsageError when blocks are asked for and cannot be
    """
    replicated = deployments.replicated(before, after)
    if one_source and not replicated:
        if wanted != "auto":
            raise UsageError(
                f"--blocks {wanted}: the tests of one plan ran interleaved, so that their runs are pairs already; "
                "leave --blocks away"
            )
        return Units(before=before, after=after, paired=True)
    few = [
        label for label, side in zip(labels, (before, after), strict=True) if len(deployments.repetitions_of(side)) < 2
    ]
    if few:
        if wanted == "yes":
            raise UsageError(
                f"--blocks yes: {few[0]} has fewer than two deployments with valid runs, and a block is one of each "
                "side. Name several folders, --before A1 A2 .. --after B1 B2 .., each made with its own `kvgauge run "
                "--deployment NAME`"
            )
        return Units(before=before, after=after, paired=False)
    found = blocks_of(before, after, labels)
    if wanted == "yes" and found.why_not is not None:
        raise UsageError(f"--blocks yes: {found.why_not}. Leave --blocks away to compare without blocks; {ABBA}")
    if wanted == "no":
        found = msgspec.structs.replace(found, pairs=(), why_not=found.why_not or "--blocks no was given")
    if found.why_not is None:
        kept = [
            deployments.by_deployment(side, names) for side, names in zip((before, after), _names(found), strict=True)
        ]
        before, after = (msgspec.structs.replace(side, unit="block") for side in kept)
    elif replicated:
        before, after = map(deployments.by_deployment, (before, after))
    return Units(before=before, after=after, paired=found.why_not is None, blocks=found)


def _names(found: Blocks) -> tuple[list[str], list[str]]:
    return [name for name, _ in found.pairs], [name for _, name in found.pairs]


def blocks_of(before: TestValues, after: TestValues, labels: tuple[str, str]) -> Blocks:
    """Whether the deployments, by time, are blocks. One whose runs are all invalid has a place too."""
    for values in (before, after):
        if (why := _untimed(values)) is not None:
            return Blocks(why_not=why)
    if (why := _clocks([*before.stays.values(), *after.stays.values()])) is not None:
        return Blocks(why_not=why)
    ordered = sorted(
        (began, ended, letter, name)
        for letter, values in (("A", before), ("B", after))
        for name, (began, ended) in _windows(values).items()
    )
    names = {"A": labels[0], "B": labels[1]}
    for (_, ended, letter, name), (began, _, other_letter, other) in pairwise(ordered):
        if began < ended:
            return Blocks(
                why_not=f"deployments {name} ({names[letter]}) and {other} ({names[other_letter]}) overlap in time"
            )
    order = "".join(letter for _, _, letter, _ in ordered)
    if (why := _no_couples(order, labels)) is not None:
        return Blocks(order=order, why_not=why)
    couples = [sorted(ordered[k : k + 2], key=lambda one: one[2]) for k in range(0, len(ordered), 2)]
    return Blocks(order=order, pairs=tuple((first[3], second[3]) for first, second in couples))


def _untimed(values: TestValues) -> str | None:
    """Runs that enter and whose times are not on record."""
    unknown = dict.fromkeys(name for k, name in sorted(values.deployments.items()) if k not in values.stays)
    if not unknown:
        return None
    named = ", ".join(list(unknown)[:NAMES_SHOWN]) + (", ..." if len(unknown) > NAMES_SHOWN else "")
    return f"when the runs of {named} were made is not on record (imported, or of an earlier kvgauge)"


def _clocks(stays: Sequence[Stay]) -> str | None:
    """What keeps these times from being put into one order."""
    hosts = {stay.host for stay in stays}
    if None in hosts:
        return "the host that conducted some of the runs is not on record, so that its clock is not known"
    if len(hosts) > 1:
        return f"conducted from {' and '.join(sorted(map(str, hosts)))}, whose clocks may differ"
    back = next((stay for stay in stays if stay.ended < stay.began), None)
    return None if back is None else f"the clock of {back.host} was set back during a run of {back.deployment}"


def _windows(values: TestValues) -> dict[str, tuple[datetime, datetime]]:
    """From the start of a deployment's first run to the end of its last."""
    found: dict[str, tuple[datetime, datetime]] = {}
    for stay in values.stays.values():
        if stay.deployment is not None:
            began, ended = found.get(stay.deployment, (stay.began, stay.ended))
            found[stay.deployment] = min(began, stay.began), max(ended, stay.ended)
    return found


def _no_couples(order: str, labels: tuple[str, str]) -> str | None:
    """Why these letters are not one A and one B, two by two."""
    counts = order.count("A"), order.count("B")
    if order in ("A" * counts[0] + "B" * counts[1], "B" * counts[1] + "A" * counts[0]) and max(counts) > 1:
        first, last = labels if order[0] == "A" else labels[::-1]
        return f"all of {first} ran before all of {last}"
    if counts[0] != counts[1]:
        return f"{counts[0]} deployments of {labels[0]} and {counts[1]} of {labels[1]} do not pair off"
    for place in range(0, len(order), 2):
        if order[place] == order[place + 1]:
            label = labels[0] if order[place] == "A" else labels[1]
            return f"deployments {place + 1} and {place + 2} in time are both of {label} (order {_shortened(order)})"
    return None


def in_time(found: Units, labels: tuple[str, str]) -> list[str]:
    """How the sides were set against each other, for a page."""
    if found.blocks is None:
        return [] if found.paired else [
            "not interleaved: the two sides ran at different times, so that whatever drifted in between is in the "
            "gain; one plan with both tests pairs their runs"
        ]  # fmt: skip
    if found.blocked:
        said = [
            f"in blocks of two, by time: {found.blocks.order_shown} (A: {labels[0]}, B: {labels[1]}); a gain is over "
            f"the pairs of {len(found.blocks.pairs)} blocks, so that what drifted from block to block cancels"
        ]
        return said + _unturned(found.blocks)
    if found.blocks.order and _no_couples(found.blocks.order, labels) is None:
        return [
            f"not in blocks, as --blocks no was given, though times show them ({found.blocks.order_shown}): each side "
            "keeps its own spread, with whatever drifted from block to block in it"
        ]
    if found.before.unit == "run":
        return [
            f"not interleaved: {found.blocks.why_not}, so that whatever drifted in between is in the gain; one plan "
            f"with both tests pairs their runs, and {ABBA}"
        ]
    return [
        f"not in blocks: {found.blocks.why_not}. Each side keeps its own spread, and whatever drifted in between is in "
        f"the gain; {ABBA}"
    ]


def _unturned(found: Blocks) -> list[str]:
    """Blocks that begin with the same side more often than an odd one explains."""
    firsts = found.order[::2]
    often = max("AB", key=firsts.count)
    if firsts.count(often) - (len(firsts) - firsts.count(often)) <= 1:
        return []
    return [
        f"{often} came first in {firsts.count(often)} of {len(firsts)} blocks: a steady drift within a block does not "
        "cancel then; the order ABBA turns each block round"
    ]
