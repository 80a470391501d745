"""In what two sides differ that were measured anywhere: what may, what is noted, what is refused. Pure."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import msgspec

from kvgauge.compare.values import MUST_AGREE, Key
from kvgauge.failures import UsageError
from kvgauge.plan.records import Cell

if TYPE_CHECKING:
    from kvgauge.compare.sides import Side

# of the machine, and of what a cluster adds to it: two places differ in more than what was switched
PLACE = ("target", "host", "machine", "cores", "namespaces", "nodes", "nic", "zone", "instance_type", "gpu")
CLIENT = ("quick_ack", "tool")  # how its client behaved, and which tool that was where results are imported
# differing, these are said and not refused: of the machine and the plan, and of the deciding cell
NOTED = ("kernel", "python", "kvgauge", "seed", "warmup_requests", "steady", "requests")
SWITCHED = ("backend", "build", "patches")  # what a comparison is about
RATE_SHARE = 0.02  # by which the rates of two sides may differ and still be one load
CELL_FIELDS = tuple(field for field in Cell.__struct_fields__ if field != "name")
VARIABLE = tuple(dict.fromkeys((*MUST_AGREE, *PLACE, *CLIENT, *(f for f in CELL_FIELDS if f not in NOTED))))


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A field in which two sides differ; cell None: of the test or the place."""

    field: str
    before: Any
    after: Any
    cell: str | None = None

    @property
    def words(self) -> str:
        where = f" of cell {self.cell}" if self.cell else ""
        return f"{self.field}{where} is {_shown(self.before)} there and {_shown(self.after)} here"


def check_varied(vary: Collection[str]) -> None:
    """raises UsageError for a field that no comparison knows"""
    if unknown := sorted(set(vary) - set(VARIABLE)):
        raise UsageError(f"--vary {unknown[0]}: no such field; there are {', '.join(VARIABLE)}")


def differences(before: "Side", after: "Side") -> list[Difference]:
    """Every field in which they differ, what was switched first. What one side does not know does not differ."""
    found = []
    tests = before.values.test, after.values.test
    for field in (*SWITCHED, *MUST_AGREE):
        values = getattr(tests[0], field), getattr(tests[1], field)
        if values[0] != values[1]:
            found.append(Difference(field=field, before=values[0], after=values[1]))
    for field in (*PLACE, *CLIENT, *NOTED):
        values = before.machine.get(field), after.machine.get(field)
        if None not in values and values[0] != values[1]:
            found.append(Difference(field=field, before=values[0], after=values[1]))
    for name in before.cells.keys() & after.cells.keys():
        cells = before.cells[name], after.cells[name]
        found += [
            Difference(field=field, before=cells[0][field], after=cells[1][field], cell=name)
            for field in sorted(cells[0].keys() & cells[1].keys() - {"name"})
            if cells[0][field] != cells[1][field]
        ]
        there, here = _offered(before, name), _offered(after, name)
        if cells[0].get("capacity") and there and here and abs(here - there) > RATE_SHARE * there:
            found.append(Difference(field="rate", before=there, after=here, cell=name))
    return found


def _offered(side: "Side", cell: str) -> float | None:
    """The rate that a cell's runs offered, on average: where a pilot found it, the plan does not hold it."""
    values = side.values.values.get((cell, "offered_rate_req_s"), {})
    return sum(values.values()) / len(values) if values else None


def refusal(before: "Side", after: "Side", primary: Key, vary: Collection[str]) -> str | None:
    """Why they may not be compared, every field and what to add if that is the experiment; None: they may."""
    refused = [one for one in differences(before, after) if _refused(one, vary, primary)]
    if not refused:
        return None
    fields = " ".join(f"--vary {field}" for field in dict.fromkeys(one.field for one in refused))
    return (
        f"{before.label} and {after.label} cannot be compared: {'; '.join(one.words for one in refused)}. "
        f"Where that difference is the experiment: {fields}"
    )


def _refused(one: Difference, vary: Collection[str], primary: Key) -> bool:
    if one.field in vary or one.field in SWITCHED or one.field in NOTED:
        return False
    return one.cell is None or one.cell == primary[0]


def left_out(found: Collection[Difference], vary: Collection[str]) -> set[str]:
    """Cells that are not the same load on both sides."""
    return {one.cell for one in found if one.cell is not None and one.field not in (*vary, *NOTED)}


def noted(found: Collection[Difference], primary: Key) -> list[str]:
    """What differs and is said only: of machine and plan, and of the cell that decides."""
    some = [one for one in found if one.field in NOTED and one.cell in (None, primary[0])]
    return [f"{one.words}: noted, not refused" for one in some]


def _shown(value: Any) -> str:
    line = getattr(value, "line", None)
    return f"'{line}'" if isinstance(line, str) else "nothing" if value is None else str(value)
