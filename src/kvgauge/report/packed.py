"""A table that never loses a number: columns that do not fit go into a further table under the same row names."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from kvgauge.report.numbers import plain, superscript

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

LABEL_WIDTH = 38  # a stand-in's name fits on one line
MAX_OF = re.compile(r"max of n=(\d+): ([^;]*)")


class Value(msgspec.Struct, frozen=True):
    """What stands in one place of a table: lines under one another, and how they are to look."""

    lines: tuple[str, ...]
    style: str = ""


class Column(msgspec.Struct, frozen=True):
    """head lines under one another; `text` columns are set left and may fold at `width`, numbers never do."""

    head: tuple[str, ...]
    values: tuple[Value, ...]
    text: bool = False
    width: int | None = None


class Packed:
    """Renders as one table where the width allows, as several stacked ones where it does not."""

    def __init__(self, label: Column, columns: Sequence[Column], *, lines: bool = False) -> None:
        """lines  an empty one after each row"""
        self.label, self.columns, self.lines = label, list(columns), lines

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        for place, columns in enumerate(self._groups(console, options)):
            if place:
                yield Text("")
            yield self._table(columns)

    def _groups(self, console: "Console", options: "ConsoleOptions") -> list[list[Column]]:
        """As few tables as fit, and of about as many columns each, so that none holds a lone column."""

        def fits(columns: Sequence[Column]) -> bool:
            unbounded = options.update(width=10_000)
            return console.measure(self._table(columns), options=unbounded).maximum <= options.max_width

        groups: list[list[Column]] = [[]]
        for column in self.columns:
            if groups[-1] and not fits([*groups[-1], column]):
                groups.append([])
            groups[-1].append(column)
        size = -(-len(self.columns) // len(groups))
        even = [self.columns[start : start + size] for start in range(0, len(self.columns), size)]
        return even if all(fits(columns) for columns in even) else groups

    def _table(self, columns: Sequence[Column]) -> "Table":
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column in (self.label, *columns):
            is_text = column.text or column is self.label
            table.add_column(
                Text("\n".join(plain(line) for line in column.head), style="bold"),
                justify="left" if is_text else "right",
                vertical="top",
                no_wrap=not is_text,
                overflow="fold",
                max_width=column.width or (LABEL_WIDTH if column is self.label else None),
            )
        for row in range(len(self.label.values)):
            cells = [column.values[row] for column in (self.label, *columns)]
            texts = [Text("\n".join(plain(line) for line in cell.lines), style=cell.style) for cell in cells]
            if self.lines and row < len(self.label.values) - 1:
                texts[0].append("\n")
            table.add_row(*texts)
        return table


class Footnotes:
    """Reasons, numbered as they come up; one number for the same reason, and for "max of n" whatever the n."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._largest_of: dict[str, set[int]] = {}

    def mark(self, reason: str) -> str:
        """The superscript that stands beside the value."""
        found = MAX_OF.match(reason)
        key = found[2] if found else reason
        if found:
            self._largest_of.setdefault(key, set()).add(int(found[1]))
        if key not in self._keys:
            self._keys.append(key)
        return superscript(self._keys.index(key) + 1)

    def texts(self) -> list[str]:
        """One line each, in order."""
        return [f"{superscript(index)} {self._spelled(key)}" for index, key in enumerate(self._keys, start=1)]

    def _spelled(self, key: str) -> str:
        sizes = self._largest_of.get(key)
        if not sizes:
            return key
        return f"max of n={', '.join(str(size) for size in sorted(sizes))}: {key}"
