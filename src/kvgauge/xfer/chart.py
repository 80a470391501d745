"""The chart of a session of `kvgauge xfer`, a Vega-Lite specification of what its results.json says. Pure."""

import textwrap
from collections.abc import Iterator, Sequence

from kvgauge.report.marks import SCHEMA, Layer, lines_of_text, look
from kvgauge.report.numbers import elided, plain
from kvgauge.xfer import dots, panels
from kvgauge.xfer.figures import RowResult
from kvgauge.xfer.results import Saved
from kvgauge.xfer.series import common_of, sweep_of

FOOT_LINE = 15  # pixels
FOOT_LETTERS = 168
NAME_MAX, REASON_MAX, WRONG_MAX = 64, 280, 12
REHEARSAL = "rehearsal:"  # a note that begins so stands in the head
UNSAID = (REHEARSAL, "libfabric's tcp provider listens")  # the latter says nothing about figures


def chart(saved: Saved) -> Layer:
    """saved: with one row at least"""
    backends = list(dict.fromkeys(row.backend for row in saved.rows))
    swept, alone = sweep_of(saved.rows)
    parts = [dots.dots(alone, saved.ratios, backends)] if alone else []
    parts += panels.sweep(swept, backends) if swept else []
    lines = [line for said in foot_of(saved) for line in textwrap.wrap(said, FOOT_LETTERS, subsequent_indent="   ")]
    return {
        "$schema": SCHEMA,
        "description": plain(f"{head_of(saved)}. {'. '.join(under_of(saved))}"),
        "title": {"text": plain(head_of(saved)), "subtitle": [plain(line) for line in under_of(saved)]},
        "vconcat": [*parts, lines_of_text(lines, dots.LEFT if alone else panels.LEFT, FOOT_LINE)],
        "spacing": 24,
        "config": look(),
    }


def head_of(saved: Saved) -> str:
    name, version = str(saved.build.get("name", "?")), str(saved.build.get("version", "?"))
    fabric = f", fabric {saved.fabric}" if saved.fabric else ""
    return f"kvgauge xfer: NIXL {elided(name, NAME_MAX)}{'' if version in name else f' ({version})'}{fabric}"


def under_of(saved: Saved) -> list[str]:
    """The warning first: what a rehearsal shows must not travel without it."""
    machine = saved.machine
    host, processor, system = (elided(machine.get(name, "?"), NAME_MAX) for name in ("host", "processor", "system"))
    identity = f"build identity {str(saved.build.get('identity', '?'))[:12]}"
    how = f"{', '.join(common_of(saved.rows))}; {rounds_said(saved.rows, saved.rounds)}"
    warnings = [note for note in saved.notes if note.startswith(REHEARSAL)]
    return [*warnings, f"{how}; host {host}, {processor}, {system}; {identity}"]


def rounds_said(rows: Sequence[RowResult], asked: int) -> str:
    """Rounds that came to their end; where they are fewer than were asked for, so it stands."""
    counts = sorted({row.rounds for row in rows})
    said = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    said += "" if counts == [asked] else f" of {asked}"
    return f"{said} round{'' if said == '1' else 's'} a row"


def foot_of(saved: Saved) -> Iterator[str]:
    """How to read it, what is wrong in it, and what was noted."""
    rows = saved.rows
    if any(row.rounds > 1 for row in rows):
        yield (
            "Marks: mean over rounds; bars: its 95 % interval (Student's t over rounds), an arrowhead where it goes on "
            "beyond the frame. Limits were measured in the same rounds."
        )
    else:
        yield "Marks: one round, so there is no interval. Limits were measured in the same round."
    checked = sum(row.integrity.blocks_checked for row in rows)
    wrong = sum(row.integrity.blocks_wrong + row.integrity.blocks_outside for row in rows)
    yield f"Every byte was compared: {checked:,} blocks, {wrong:,} wrong."
    yield from wrong_of(rows)
    yield from (f"Note: {note}" for note in saved.notes if not note.startswith(UNSAID))


def wrong_of(rows: Sequence[RowResult]) -> Iterator[str]:
    said = [
        f"\N{MULTIPLICATION SIGN} {row.name}, {row.backend}: {elided(said, REASON_MAX)}"
        for row in rows
        for said in [*(f"INVALID: {why}" for why in row.against), *(f"FAILED {why}" for why in row.failures)]
    ]
    yield from said[:WRONG_MAX]
    if len(said) > WRONG_MAX:
        yield f"and {len(said) - WRONG_MAX} more: results.json"
