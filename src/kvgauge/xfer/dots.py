"""Rows that are no sweep: each a dot with its interval, under the name of what was moved, its number beside. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from kvgauge.report.axes import Axis, Bar, bar_of
from kvgauge.report.marks import CROSS, INK, LINE, QUIET, SHAPES, TICK, Layer, layer, quantity, text, ticked
from kvgauge.report.numbers import NONE, elided, with_interval
from kvgauge.stats.estimate import Estimate
from kvgauge.xfer.figures import Ratio, RowResult
from kvgauge.xfer.panels import BANDWIDTH, MEASURES, Measure, axis_of, colour_of, title
from kvgauge.xfer.series import is_blocks
from kvgauge.xfer.workload import size_text

WIDTH, LINE_HEIGHT = 250, 19
LEFT, HEADING_MAX = 84, 82  # pixels before the first panel; letters
TITLE_UP = 30
VALUES_LEFT = 10
LIMIT_MARKS = ((TICK, 110), ("diamond", 220))  # of a stream, of a copy: shape, and where above the panel it is named


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What stands on one line: a heading with the ratio of two backends, or a row."""

    at: int
    heading: str = ""
    ratio: str = ""
    row: RowResult | None = None


def dots(rows: Sequence[RowResult], ratios: Sequence[Ratio], backends: Sequence[str]) -> Layer:
    """Bandwidth and P50 latency beside one another, one line a row."""
    lines = lines_of(rows, ratios)
    drawings = [
        _Drawing(lines=lines, measure=measure, x=axis_of(rows, measure), backends=backends).chart()
        for measure in MEASURES
    ]
    return {"hconcat": drawings, "spacing": 22}


def lines_of(rows: Sequence[RowResult], ratios: Sequence[Ratio]) -> list[Written]:
    found: list[Written] = []
    said = {ratio.name: ratio_said(ratio) for ratio in ratios}
    for name in dict.fromkeys(row.name for row in rows):
        members = [row for row in rows if row.name == name]
        heading = elided(heading_of(members[0]), HEADING_MAX)
        found.append(Written(at=len(found), heading=heading, ratio=said.get(name, "")))
        found += [Written(at=len(found) + number, row=row) for number, row in enumerate(members)]
    return found


def heading_of(row: RowResult) -> str:
    """Its name, and how many bytes those are; blocks of no model are named after them already."""
    work = row.workload
    blocks = "" if is_blocks(row) else f"{work.transfer_blocks:,} x {size_text(work.block_bytes)} = "
    return f"{row.name}: {blocks}{size_said(work.transfer_bytes)} a transfer"


def size_said(size: int) -> str:
    for unit, width in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << width:
            return f"{size / (1 << width):.4g} {unit}"
    return f"{size} B"


def ratio_said(ratio: Ratio) -> str:
    """Of one round each: a point without an interval, which says so by having none."""
    found = ratio.ratio
    if found.point is None:
        return ""
    said = f"{ratio.numerator} / {ratio.denominator} = {found.point:.2f}"
    return said if found.low is None or found.high is None else f"{said}, {found.low:.2f} to {found.high:.2f}"


def value_said(row: RowResult, measure: Measure) -> str:
    """The number as the table has it; times in a unit of their size."""
    figure = row.figures[measure.key]
    if figure.point is None:
        return NONE if row.rounds else "FAILED"
    said = with_interval(figure) if measure is BANDWIDTH else time_said(figure)
    return said if row.valid else f"{said} INVALID"


def time_said(time_us: Estimate) -> str:
    size = time_us.point or 0
    unit, factor = ("s", 1e-6) if size >= 1e6 else ("ms", 1e-3) if size >= 1e3 else ("us", 1.0)
    scaled = {name: None if (v := getattr(time_us, name)) is None else v * factor for name in ("point", "low", "high")}
    value, *interval = with_interval(msgspec.structs.replace(time_us, **scaled)).split(" ", 1)
    return " ".join([value, unit, *interval])


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """Layers of one panel, from the back to the front."""

    lines: Sequence[Written]
    measure: Measure
    x: Axis
    backends: Sequence[str]

    def chart(self) -> Layer:
        layers = [
            self._grid(),
            *self._limits(),
            *self._bars(),
            *self._points(),
            self._values(),
            title(self.measure.said, TITLE_UP),
        ]
        layers += self._names() if self.measure is BANDWIDTH else [self._ratios()]
        return {"width": WIDTH, "height": LINE_HEIGHT * len(self.lines), "layer": layers}

    @cached_property
    def _rows(self) -> list[tuple[int, RowResult]]:
        return [(line.at, line.row) for line in self.lines if line.row is not None]

    @cached_property
    def _up(self) -> Layer:
        up = quantity(Axis(low=-0.5, high=len(self.lines) - 0.5, log=False), None, "at")
        up["scale"]["reverse"] = True
        return up

    @cached_property
    def _place(self) -> Layer:
        return {"x": quantity(self.x, ticked(self.x, self.measure.words, orient="top", grid=False)), "y": self._up}

    def _colour(self, row: RowResult) -> str:
        return colour_of(row, self.backends)

    def _grid(self) -> Layer:
        """Behind rows alone: a heading is not crossed out."""
        values = [{"at": at - 0.5, "end": at + 0.5, "value": tick} for at, _ in self._rows for tick in self.x.ticks()]
        return layer("rule", values, {**self._place, "y2": {"field": "end"}}, color=LINE)

    def _limits(self) -> list[Layer]:
        """Of the same rounds as the row they stand in; what is which is said above."""
        made = []
        style = {"filled": False, "opacity": 1, "size": 60, "stroke": QUIET, "strokeWidth": 1.2}
        for (key, said), (shape, left) in zip(self.measure.limits, LIMIT_MARKS, strict=False):
            found = [(at, row.figures[key].point) for at, row in self._rows]
            values = [{"at": at, "value": point} for at, point in found if point is not None]
            if not values:
                continue
            above = {"x": {"value": left}, "y": {"value": -TITLE_UP}}
            made += [
                layer("point", values, self._place, shape=shape, **style),
                layer("point", [{}], above, shape=shape, **style),
                text([{"said": said}], {**above, "x": {"value": left + 8}}, align="left", color=QUIET),
            ]
        return made

    def _bars(self) -> list[Layer]:
        found = [
            (at, row, bar)
            for at, row in self._rows
            if row.figures[self.measure.key].point is not None
            and (bar := bar_of(row.figures[self.measure.key], self.x)) is not None
        ]

        def one(at: int, row: RowResult, bar: Bar, value: float) -> dict[str, object]:
            return {"at": at, "value": value, "high": bar.high, "colour": self._colour(row)}

        rules = [one(at, row, bar, bar.low) for at, row, bar in found]
        lower = [one(at, row, bar, bar.low) for at, row, bar in found if bar.cut_low]
        upper = [one(at, row, bar, bar.high) for at, row, bar in found if bar.cut_high]
        ended = {**self._place, "x2": {"field": "high"}}
        head = {"filled": True, "opacity": 1, "size": 28}
        return [
            *([layer("rule", rules, ended, strokeWidth=1.3)] if rules else []),
            *([layer("point", lower, self._place, shape="triangle-left", **head)] if lower else []),
            *([layer("point", upper, self._place, shape="triangle-right", **head)] if upper else []),
        ]

    def _points(self) -> list[Layer]:
        made = []
        for backend in self.backends:
            for valid in (True, False):
                values = [
                    {"at": at, "value": point, "colour": self._colour(row)}
                    for at, row in self._rows
                    if (row.backend, row.valid) == (backend, valid)
                    and (point := row.figures[self.measure.key].point) is not None
                ]
                style: dict[str, object] = {"shape": SHAPES[self.backends.index(backend) % len(SHAPES)], "filled": True}
                style = style if valid else {"shape": CROSS, "filled": False, "strokeWidth": 2}
                made += [layer("point", values, self._place, size=45, opacity=1, **style)] if values else []
        return made

    def _values(self) -> Layer:
        values = [
            {"at": at, "said": value_said(row, self.measure), "colour": self._colour(row)} for at, row in self._rows
        ]
        return text(values, {"x": {"value": WIDTH + VALUES_LEFT}, "y": self._up}, align="left")

    def _names(self) -> list[Layer]:
        headings = [{"at": line.at, "said": line.heading} for line in self.lines if line.heading]
        names = [{"at": at, "said": row.backend, "colour": self._colour(row)} for at, row in self._rows]
        return [
            text(headings, {"x": {"value": -LEFT}, "y": self._up}, align="left", color=INK),
            text(names, {"x": {"value": -VALUES_LEFT}, "y": self._up}, align="right"),
        ]

    def _ratios(self) -> Layer:
        values = [{"at": line.at, "said": line.ratio} for line in self.lines if line.ratio]
        return text(values, {"x": {"value": 0}, "y": self._up}, align="left", color=QUIET)
