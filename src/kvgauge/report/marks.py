"""Layers of a Vega-Lite specification, as dicts. Pure.

What comes from outside is data or the text of a title, never an expression: the renderer escapes the former and would
carry out the latter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kvgauge.report.axes import Axis
from kvgauge.report.numbers import plain

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
# Arial's widths are Liberation Sans's, which the renderer brings and measures with: text fits with either.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
INK, QUIET, LINE, WRONG = "#1a1a1a", "#666666", "#e2e2e2", "#8c8c8c"
# Okabe and Ito's: told apart with any colour vision, and in print by their shapes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
SHAPES = ("circle", "square", "diamond", "triangle-up")
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3))
CROSS, TICK = "M-1,-1L1,1M-1,1L1,-1", "M0,-1L0,1"
TEXT_PX, TITLE_PX = 11, 12

Layer = dict[str, Any]
Values = Sequence[Mapping[str, object]]

# Numbers to words on an axis, in the renderer's own language.
PLAIN = "format(datum.value, ',.3~r')"
BYTES = (
    "datum.value >= 1073741824 ? format(datum.value / 1073741824, ',.3~r') + ' GiB' : "
    "datum.value >= 1048576 ? format(datum.value / 1048576, '.3~r') + ' MiB' : "
    "datum.value >= 1024 ? format(datum.value / 1024, '.3~r') + ' KiB' : format(datum.value, '.3~r') + ' B'"
)
MICROSECONDS = (
    "datum.value >= 1e6 ? format(datum.value / 1e6, ',.3~r') + ' s' : "
    "datum.value >= 1e3 ? format(datum.value / 1e3, '.3~r') + ' ms' : format(datum.value, '.3~r') + ' us'"
)


def look() -> Layer:
    """Vega-Lite's config: little ink that is not data."""
    return {
        "font": FONT,
        "background": "white",
        "padding": 12,
        "view": {"stroke": None},
        "text": {"fontSize": TEXT_PX},
        "axis": {
            "domain": False,
            "gridColor": LINE,
            "labelColor": QUIET,
            "labelFontSize": TEXT_PX,
            "labelPadding": 5,
            "tickColor": QUIET,
            "titleColor": QUIET,
            "titleFontSize": TEXT_PX,
            "titleFontWeight": "normal",
        },
        "title": {
            "anchor": "start",
            "color": INK,
            "fontSize": 15,
            "offset": 16,
            "subtitleColor": INK,
            "subtitleFontSize": TITLE_PX,
            "subtitleLineHeight": 16,
            "subtitlePadding": 6,
        },
    }


def layer(mark: str, values: Values, encoding: Mapping[str, object], **style: object) -> Layer:
    """One mark over values of its own. color: a field `colour` that holds colours, unless `style` names one."""
    own = {} if {"color", "stroke"} & style.keys() else {"color": {"field": "colour", "type": "nominal", "scale": None}}
    return {
        "data": {"values": [dict(value) for value in values]},
        "mark": {"type": mark, **style},
        "encoding": {**encoding, **own},
    }


def text(values: Values, encoding: Mapping[str, object], **style: object) -> Layer:
    """The field `said` of each, without control characters: XML has no place for them."""
    said = {"text": {"field": "said", "type": "nominal"}}
    shown = [{**value, "said": plain(str(value["said"]))} for value in values]
    return layer("text", shown, {**encoding, **said}, baseline="middle", **style)


def quantity(axis: Axis, shown: Mapping[str, object] | None, field: str = "value") -> Layer:
    """The encoding of a field on this axis. shown: the properties of its ticks and labels, None for none"""
    scale = {"type": "log" if axis.log else "linear", "domain": [axis.low, axis.high], "nice": False, "zero": False}
    if axis.log:
        del scale["zero"]
    return {"field": field, "type": "quantitative", "axis": None if shown is None else dict(shown), "scale": scale}


def ticked(axis: Axis, words: str, **more: object) -> Layer:
    """Ticks of a measured quantity, with its words."""
    return {"values": axis.ticks(), "labelExpr": words, "title": None, "ticks": False, **more}


def lines_of_text(lines: Sequence[str], left: int, line_px: int) -> Layer:
    """A block of lines under one another. left: of where it stands by itself, in pixels"""
    up = quantity(Axis(low=0, high=len(lines), log=False), None, "at")
    up["scale"]["reverse"] = True
    values = [{"at": number + 0.5, "said": line} for number, line in enumerate(lines)]
    written = text(values, {"x": {"value": -left}, "y": up}, align="left", color=QUIET)
    return {**written, "width": 1, "height": line_px * len(lines)}
