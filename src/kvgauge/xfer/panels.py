"""A sweep of block sizes or counts, small multiples: bandwidth and P50 latency over the bytes of a transfer. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from kvgauge.report.axes import Axis, Bar, axis_over, bar_of, spread, thinned
from kvgauge.report.marks import (
    BYTES,
    COLOURS,
    CROSS,
    DASHES,
    INK,
    MICROSECONDS,
    PLAIN,
    QUIET,
    SHAPES,
    TITLE_PX,
    WRONG,
    Layer,
    layer,
    quantity,
    text,
    ticked,
)
from kvgauge.xfer.figures import RowResult
from kvgauge.xfer.series import Line, Panel, bytes_of

WIDTH, HEIGHT, LEFT = 260, 210, 34
TITLE_UP, HEADING_UP = 14, 32  # pixels above a panel
LABEL_GAP, TICK_GAP = 13, 52
SAMPLE_LEFT, LABEL_LEFT = (8, 28), 32  # right of a panel: a piece of the line, then its name
DODGE, DODGES = 5, 16  # pixels between lines and over all of them: one's intervals must not hide another's


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """key: of a figure; limits: of the same rounds, that belong beside it; words: of numbers on its axis"""

    key: str
    said: str
    words: str
    limits: tuple[tuple[str, str], ...] = ()
    log: bool | None = None


BANDWIDTH = Measure(
    key="aggregate_gb_s",
    said="bandwidth, GB/s",
    words=PLAIN,
    limits=(("stream_gb_s", "plain TCP stream"), ("copy_gb_s", "memory copy")),
)
LATENCY = Measure(key="latency_us_p50", said="latency of a transfer, P50", words=MICROSECONDS, log=True)
MEASURES = (BANDWIDTH, LATENCY)


def axis_of(rows: Sequence[RowResult], measure: Measure) -> Axis:
    """One for every panel, so that they can be compared."""
    marks = [point for row in rows for key, _ in measure.limits if (point := row.figures[key].point) is not None]
    return axis_over([row.figures[measure.key] for row in rows], marks, log=measure.log)


def colour_of(row: RowResult, backends: Sequence[str]) -> str:
    return COLOURS[backends.index(row.backend) % len(COLOURS)] if row.valid else WRONG


def title(said: str, up: int = TITLE_UP) -> Layer:
    """Above a panel, at its left: a title of Vega-Lite's own would stand higher where a label does."""
    place = {"x": {"value": 0}, "y": {"value": -up}}
    return text([{"said": said}], place, align="left", color=INK, fontWeight="bold", fontSize=TITLE_PX)


def sweep(panels: Sequence[Panel], backends: Sequence[str]) -> list[Layer]:
    """A pair of charts for each panel, under one another."""
    rows = [row for panel in panels for row in panel.rows]
    sizes = [bytes_of(row) for row in rows]
    room = max((max(sizes) / min(sizes)) ** 0.04, 1.02)
    x = Axis(low=min(sizes) / room, high=max(sizes) * room, log=True)
    axes = [axis_of(rows, measure) for measure in MEASURES]
    return [
        {
            "hconcat": [
                _Drawing(panel=panel, measure=measure, x=x, y=y, backends=backends).chart(headed=measure is BANDWIDTH)
                for measure, y in zip(MEASURES, axes, strict=True)
            ],
            "spacing": 22,
        }
        for panel in panels
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    said: str
    last: dict[str, float]
    at: float
    colour: str
    dash: int


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """Layers of one panel, from the back to the front."""

    panel: Panel
    measure: Measure
    x: Axis
    y: Axis
    backends: Sequence[str]

    def chart(self, *, headed: bool) -> Layer:
        layers = [*self._limits(), *self._leaders(), *self._lines()]
        for line in self.panel.lines:
            layers += [*self._bars(line), *self._points(line), *self._wrong(line)]
        layers += [*self._labels(), title(self.measure.said)]
        if headed and self.panel.said:
            layers.append(title(self.panel.said, HEADING_UP))
        return {"width": WIDTH, "height": HEIGHT, "layer": layers}

    @cached_property
    def _place(self) -> Layer:
        sizes = [bytes_of(row) for row in self.panel.rows]
        ticks = {"values": thinned(sizes, self.x, WIDTH, TICK_GAP), "labelExpr": BYTES, "labelOverlap": False}
        across = quantity(self.x, {**ticks, "grid": False, "title": "bytes of a transfer"}, "bytes")
        return {"x": across, "y": quantity(self.y, ticked(self.y, self.measure.words))}

    def _dodge(self, line: Line) -> float:
        count = len(self.panel.lines)
        return min(DODGE, DODGES / count) * (self.panel.lines.index(line) - (count - 1) / 2)

    def _point(self, row: RowResult) -> float | None:
        return row.figures[self.measure.key].point

    def _path(self, line: Line) -> list[dict[str, float | None]]:
        """No value where a row is invalid or failed: the line is broken there."""
        return [{"bytes": bytes_of(row), "value": self._point(row) if row.valid else None} for row in line.rows]

    def _valid(self, line: Line) -> list[dict[str, float]]:
        found = ((row, self._point(row)) for row in line.rows if row.valid)
        return [{"bytes": bytes_of(row), "value": point} for row, point in found if point is not None]

    def _limits(self) -> list[Layer]:
        lines = [limit_line(self.panel.rows, key) for key, _ in self.measure.limits]
        return [layer("line", line, self._place, color=WRONG, strokeWidth=1) for line in lines if line]

    def _lines(self) -> list[Layer]:
        return [
            layer(
                "line", self._path(line), self._place,
                color=self._colour(line), strokeWidth=1.5, strokeDash=DASHES[line.dash], xOffset=self._dodge(line),
            )
            for line in self.panel.lines
        ]  # fmt: skip

    def _bars(self, line: Line) -> list[Layer]:
        found = [
            (row, bar)
            for row in line.rows
            if self._point(row) is not None and (bar := bar_of(row.figures[self.measure.key], self.y)) is not None
        ]
        offset = self._dodge(line)

        def at(row: RowResult, value: float, bar: Bar) -> dict[str, object]:
            return {"bytes": bytes_of(row), "value": value, "high": bar.high, "colour": colour_of(row, self.backends)}

        rules = [at(row, bar.low, bar) for row, bar in found]
        lower = [at(row, bar.low, bar) for row, bar in found if bar.cut_low]
        upper = [at(row, bar.high, bar) for row, bar in found if bar.cut_high]
        ended = {**self._place, "y2": {"field": "high"}}
        head = {"filled": True, "opacity": 1, "size": 28, "xOffset": offset}
        return [
            *([layer("rule", rules, ended, strokeWidth=1.3, xOffset=offset)] if rules else []),
            *([layer("point", lower, self._place, shape="triangle-down", **head)] if lower else []),
            *([layer("point", upper, self._place, shape="triangle-up", **head)] if upper else []),
        ]

    def _points(self, line: Line) -> list[Layer]:
        values = [
            {"bytes": bytes_of(row), "value": point, "colour": colour_of(row, self.backends)}
            for row in line.rows
            if row.valid and (point := self._point(row)) is not None
        ]
        shape = SHAPES[self.backends.index(line.backend) % len(SHAPES)]
        style = {"shape": shape, "filled": True, "opacity": 1, "size": 38, "xOffset": self._dodge(line)}
        return [layer("point", values, self._place, **style)] if values else []

    def _wrong(self, line: Line) -> list[Layer]:
        """Invalid rows where they would stand; those without a figure on the ground, with a word."""
        wrong = [(row, self._point(row)) for row in line.rows if not row.valid]
        values = [
            {"bytes": bytes_of(row), "value": self.y.low if point is None else point, "colour": WRONG}
            for row, point in wrong
        ]
        failed = [
            {"bytes": bytes_of(row), "value": self.y.low, "said": "failed", "colour": WRONG}
            for row, point in wrong
            if point is None
        ]
        style = {"shape": CROSS, "filled": False, "opacity": 1, "size": 45, "strokeWidth": 2}
        crosses = layer("point", values, self._place, xOffset=self._dodge(line), **style)
        return ([crosses] if values else []) + ([text(failed, self._place, dy=-12)] if failed else [])

    # -- names at the right, instead of a legend

    @cached_property
    def _ends(self) -> list[_End]:
        """The last point of every line and limit, and where its name stands."""
        ends = [
            (line.said, valid[-1], self._colour(line), line.dash)
            for line in self.panel.lines
            if (valid := self._valid(line))
        ]
        for key, said in self.measure.limits:
            ends += [(said, line[-1], QUIET, 0) for line in [limit_line(self.panel.rows, key)] if line]
        places = spread([self.y.share(end["value"]) * HEIGHT for _, end, _, _ in ends], LABEL_GAP)
        return [
            _End(said=said, last=end, at=self.y.at(place / HEIGHT), colour=colour, dash=dash)
            for (said, end, colour, dash), place in zip(ends, places, strict=True)
        ]

    def _labels(self) -> list[Layer]:
        left, right = (WIDTH + pixels for pixels in SAMPLE_LEFT)
        samples = [
            layer(
                "rule", [{"value": end.at}], {"x": {"value": left}, "x2": {"value": right}, "y": self._place["y"]},
                color=end.colour, strokeWidth=1 if end.colour == QUIET else 1.5, strokeDash=DASHES[end.dash],
            )
            for end in self._ends
        ]  # fmt: skip
        names = [{"value": end.at, "said": end.said, "colour": end.colour} for end in self._ends]
        return [*samples, text(names, {"x": {"value": WIDTH + LABEL_LEFT}, "y": self._place["y"]}, align="left")]

    def _leaders(self) -> list[Layer]:
        """From a line that ends early to its name, and to a name that had to give way."""
        return [
            layer(
                "line", [end.last, {"bytes": self.x.high, "value": end.at}], self._place,
                color=end.colour, strokeWidth=0.7, opacity=0.5,
            )
            for end in self._ends
        ]  # fmt: skip

    def _colour(self, line: Line) -> str:
        return COLOURS[self.backends.index(line.backend) % len(COLOURS)]


def limit_line(rows: Sequence[RowResult], key: str) -> list[dict[str, float]]:
    """A limit against bytes, ascending: the mean over the rows of the same bytes."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if (point := row.figures[key].point) is not None:
            found.setdefault(bytes_of(row), []).append(point)
    return [{"bytes": size, "value": sum(points) / len(points)} for size, points in sorted(found.items())]
