"""Which part of a dataset each cell sends, so that no cell meets prompts that one before it left in a prefix cache.
Pure: the plan alone decides, so that every test of a repetition sends the same.
"""

from collections.abc import Sequence
from typing import TypeVar

from kvgauge.plan.open import offered, starts
from kvgauge.plan.records import Cell

Item = TypeVar("Item")


def first_prompts(cells: Sequence[Cell], *, round_number: int = 0) -> dict[str, int]:
    """Cell -> place in its dataset of the first prompt it sends; of cells with one only.

    Parts follow one another and begin again where the dataset ends. Cells that end by the clock, of which nobody knows
    how many prompts they send, share equally what the others leave.

    round_number  how often all the cells were sent before on the same target: the parts go on from there
    """
    found: dict[str, int] = {}
    for sha256 in dict.fromkeys(cell.dataset.sha256 for cell in cells if cell.dataset is not None):
        here = [cell for cell in cells if cell.dataset is not None and cell.dataset.sha256 == sha256]
        prompts = next(cell.dataset.prompts for cell in here if cell.dataset is not None)
        counted = [cell for cell in here if _count(cell) is not None]
        known = sum(_count(cell) or 0 for cell in counted)
        share = max(1, (prompts - known) // max(1, len(here) - len(counted)))
        sizes = [_count(cell) or share for cell in here]
        at = round_number * sum(sizes)
        for cell, size in zip(here, sizes, strict=True):
            found[cell.name] = at % prompts
            at += size
    return found


def _count(cell: Cell) -> int | None:
    """Prompts that a cell sends, warm-up included; None where its end does not say."""
    if cell.until is not None or cell.steady is not None or (cell.duration_s is not None and not cell.is_open):
        return None
    sent = starts(cell) if cell.sessions is not None else offered(cell)
    return None if cell.duration_s is not None and cell.sessions is not None else cell.warmup_requests + sent


def turned(items: tuple[Item, ...], first: int) -> tuple[Item, ...]:
    """The items from `first` on, then those before it."""
    return items[first:] + items[:first] if first else items


class Seen:
    """Which prompts of each dataset the target has been sent."""

    def __init__(self) -> None:
        self._sent: dict[str, set[int]] = {}

    def repeated(self, sha256: str, places: Sequence[int]) -> int:
        """How many of these were sent before, to this target or earlier among them; from now on all were."""
        sent, count = self._sent.setdefault(sha256, set()), 0
        for place in places:
            count += place in sent
            sent.add(place)
        return count

    def forget(self) -> None:
        """A fresh target."""
        self._sent.clear()
