"""What the chart of `kvgauge xfer` encodes: every row, its interval, its limits, and what is wrong with it."""

import json
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

import altair as alt
import jsonschema
import msgspec
import pytest

from kvgauge.report import charts
from kvgauge.report.marks import CROSS, WRONG
from kvgauge.stats.estimate import Estimate, bare, missing
from kvgauge.xfer.asked import Asked, workloads_of
from kvgauge.xfer.chart import chart
from kvgauge.xfer.dots import time_said
from kvgauge.xfer.figures import Ratio, RowResult
from kvgauge.xfer.results import Saved
from kvgauge.xfer.seen import Integrity
from kvgauge.xfer.series import DASHES_MAX, bytes_of, sweep_of

REHEARSAL = "rehearsal: fabric tcp; what is measured here does not transfer to EFA"
TIMES = "\N{MULTIPLICATION SIGN}"
HOSTILE = (
    "</text></svg><script>alert(1)</script><a href=\"javascript:x\" onload='y'>&amp;]]>\x1b[31m\x00\ud800 {signal: 1}"
)


def estimate(point, rounds):
    if rounds == 1:
        return bare(point, "x", 1, "one round: an interval needs at least 2")
    return Estimate(point=point, low=point * 0.9, high=point * 1.1, n=rounds, unit="x")


def row(work, backend="UCX", rounds=3, *, share=0.5, **changes):
    """A row that moved its bytes at `share` GB/s."""
    figures = {
        "aggregate_gb_s": estimate(share, rounds),
        "latency_us_p50": estimate(work.transfer_bytes / share / 1e3, rounds),
        "stream_gb_s": estimate(0.9, rounds),
        "copy_gb_s": estimate(4.0, rounds),
    }
    whole = RowResult(
        name=work.name, backend=backend, workload=work, rounds=rounds, transfers=100, figures=figures,
        integrity=Integrity(blocks_checked=10, blocks_wrong=0, kinds={}, blocks_outside=0), descriptors={}, evidence={},
        valid=True, against=(), failures=(),
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def failed(work, backend="UCX", why="round 1: it hung"):
    gone = {name: missing("x", "no round came to its end") for name in row(work).figures}
    return row(work, backend, rounds=0, valid=False, failures=(why,), figures=gone)


def rows_of(backends=("UCX", "LIBFABRIC"), rounds=3, **asked):
    return [row(work, backend, rounds) for work in workloads_of(Asked(**asked)) for backend in backends]


def saved(rows, **changes):
    whole = Saved(
        schema=1, machine={"host": "h", "system": "6.1", "processor": "x86_64"}, rounds=3, notes=(REHEARSAL,),
        build={"name": "1.5.0", "version": "1.5.0", "identity": "7da970f65930aa"}, rows=tuple(rows), ratios=(),
        beside=(), fabric="tcp",
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def layers(spec, kind):
    """Every layer of a mark, with its style."""
    if isinstance(spec, dict):
        mark = spec.get("mark")
        if isinstance(mark, dict) and mark["type"] == kind:
            yield mark, spec["data"]["values"]
        for value in spec.values():
            yield from layers(value, kind)
    elif isinstance(spec, list):
        for value in spec:
            yield from layers(value, kind)


def said(spec):
    return [value["said"] for _, values in layers(spec, "text") for value in values]


def crosses(spec):
    return [value for mark, values in layers(spec, "point") if mark["shape"] == CROSS for value in values]


SWEEP = {"block_sizes": (4096, 65536, 1 << 20), "counts": (16,)}


def test_a_sweep_shows_bandwidth_and_time_of_every_row_against_its_bytes():
    rows = rows_of(**SWEEP)
    spec = chart(saved(rows))
    points = {
        (value["bytes"], value["value"])
        for mark, values in layers(spec, "point") if mark.get("filled") for value in values
    }  # fmt: skip
    assert points == {
        (bytes_of(one), one.figures[key].point) for one in rows for key in ("aggregate_gb_s", "latency_us_p50")
    }
    panels = spec["vconcat"][0]["hconcat"]
    assert len(panels) == 2
    up = [panel["layer"][0]["encoding"]["y"]["scale"]["type"] for panel in panels]
    across = {panel["layer"][0]["encoding"]["x"]["scale"]["type"] for panel in panels}
    assert (up[1], across) == ("log", {"log"})


def test_limits_of_the_same_rounds_stand_beside_bandwidth_and_not_beside_time():
    spec = chart(saved(rows_of(**SWEEP)))
    bandwidth, time = spec["vconcat"][0]["hconcat"]
    assert {"plain TCP stream", "memory copy"} <= set(said(bandwidth))
    assert not {"plain TCP stream", "memory copy"} & set(said(time))
    levels = {
        value["value"] for mark, values in layers(bandwidth, "line") if mark["color"] == WRONG for value in values
    }
    assert levels == {0.9, 4.0}


def test_an_interval_is_drawn_over_rounds_and_none_for_one_round():
    def bars(rounds):
        spec = chart(saved(rows_of(rounds=rounds, **SWEEP)))
        return [value for _, values in layers(spec, "rule") for value in values if "high" in value], said(spec)

    several, words = bars(3)
    assert len(several) == 2 * 6
    assert several[0]["value"] == pytest.approx(0.45)
    assert several[0]["high"] == pytest.approx(0.55)
    assert any("95 % interval" in line for line in words)
    none, words = bars(1)
    assert none == []
    assert any("one round, so there is no interval" in line for line in words)


def test_an_invalid_row_is_a_grey_cross_no_line_goes_through_it_and_its_reason_stands_below():
    rows = rows_of(backends=("UCX",), **SWEEP)
    rows[1] = msgspec.structs.replace(rows[1], valid=False, against=("3 of 10 blocks wrong (3 stale)",))
    spec = chart(saved(rows))
    assert [(cross["bytes"], cross["colour"]) for cross in crosses(spec)] == [(1 << 20, WRONG)] * 2
    paths = [values for mark, values in layers(spec, "line") if "strokeDash" in mark]
    assert [[value["value"] is None for value in path] for path in paths] == [[False, True, False]] * 2
    assert f"{TIMES} 16 x 64 KiB, UCX: INVALID: 3 of 10 blocks wrong (3 stale)" in said(spec)


def test_a_failed_row_is_a_cross_on_the_ground_with_its_word_and_its_reason():
    rows = rows_of(backends=("UCX",), **SWEEP)
    rows[2] = failed(rows[2].workload)
    spec = chart(saved(rows))
    assert {cross["bytes"] for cross in crosses(spec)} == {16 << 20}
    assert said(spec).count("failed") == 2
    assert f"{TIMES} 16 x 1 MiB, UCX: FAILED round 1: it hung" in said(spec)


def test_more_wrong_rows_than_there_is_room_for_are_counted():
    works = workloads_of(Asked(block_sizes=tuple(8 << n for n in range(15)), counts=(1,)))
    words = said(chart(saved([failed(work) for work in works])))
    assert len([line for line in words if line.startswith(TIMES)]) == 12
    assert "and 3 more: results.json" in words


def test_rows_of_models_are_dots_with_their_numbers_and_a_failed_one_keeps_its_line():
    works = workloads_of(Asked())
    rows = [row(works[0]), row(works[0], "LIBFABRIC"), row(works[1]), failed(works[1], "LIBFABRIC")]
    ratio = Ratio(name=works[0].name, numerator="LIBFABRIC", denominator="UCX",
                  ratio=Estimate(point=1.05, low=0.9, high=1.2, n=3, unit="x"))  # fmt: skip
    words = said(chart(saved(rows, ratios=(ratio,))))
    assert words.count("0.50 ±0.05") == 3
    assert words.count("FAILED") == 2
    assert "Qwen3-0.6B 512 tok: 1,792 x 32 KiB = 56 MiB a transfer" in words
    assert "117 ms ±12" in words
    assert "LIBFABRIC / UCX = 1.05, 0.90 to 1.20" in words
    assert (words.count("UCX"), words.count("LIBFABRIC")) == (2, 2)


def test_an_invalid_model_is_crossed_and_says_so_beside_its_number():
    (work,) = workloads_of(Asked(models=("Qwen3-0.6B",)))
    spec = chart(saved([row(work, valid=False, against=("0 bytes were moved",))]))
    assert "0.50 ±0.05 INVALID" in said(spec)
    assert {cross["colour"] for cross in crosses(spec)} == {WRONG}


def test_times_are_written_in_a_unit_of_their_size():
    whole = Estimate(point=1500.0, low=1000.0, high=2000.0, n=2, unit="us")
    assert time_said(whole) == "1.5 ms ±0.5"
    assert time_said(bare(42.0, "us", 1, "one round")) == "42.0 us"
    assert time_said(bare(3e6, "us", 1, "one round")) == "3.0 s"


def test_models_and_blocks_of_one_session_stand_under_one_another():
    rows = rows_of(models=("Qwen3-0.6B",), **SWEEP)
    spec = chart(saved(rows))
    assert len(spec["vconcat"]) == 3  # dots, sweep, the text below
    assert len([value for _, values in layers(spec, "point") for value in values if value.get("bytes")]) == 2 * 6


@pytest.mark.parametrize(
    ("asked", "panels", "lines"),
    [
        (SWEEP, [""], 2),
        ({"block_sizes": (4096, 65536), "counts": (1, 64)}, [""], 4),
        ({"block_sizes": (4096,), "counts": (1, 4, 64)}, [""], 2),
        ({**SWEEP, "operations": ("READ", "WRITE")}, [""], 4),
        ({**SWEEP, "depths": (1, 2, 4, 8, 16)}, [f"depth {n}" for n in (1, 2, 4, 8, 16)], 10),
        ({**SWEEP, "depths": (1, 4), "operations": ("READ", "WRITE")}, ["READ", "WRITE"], 8),
    ],
)
def test_what_is_swept_beside_bytes_is_dashes_or_panels_and_every_row_is_in_one_line(asked, panels, lines):
    rows = rows_of(**asked)
    found, alone = sweep_of(rows)
    assert [panel.said for panel in found] == panels
    assert alone == []
    drawn = [line for panel in found for line in panel.lines]
    assert len(drawn) == lines
    assert sorted((one.name, one.backend) for line in drawn for one in line.rows) == sorted(
        (one.name, one.backend) for one in rows
    )
    assert max(line.dash for line in drawn) < DASHES_MAX
    for line in drawn:
        assert [bytes_of(one) for one in line.rows] == sorted({bytes_of(one) for one in line.rows})


def test_blocks_of_one_size_and_count_are_no_sweep():
    rows = rows_of(block_sizes=(65536,), counts=(64,), depths=(1, 4))
    assert sweep_of(rows) == ([], rows)
    assert "64 x 64 KiB depth 4: 4 MiB a transfer" in said(chart(saved(rows)))


def test_the_head_says_build_fabric_host_and_the_rehearsal_in_the_pages_own_words():
    title = chart(saved(rows_of(**SWEEP)))["title"]
    assert title["text"] == "kvgauge xfer: NIXL 1.5.0, fabric tcp"
    assert title["subtitle"] == [
        REHEARSAL, "READ, scattered, DRAM; 3 rounds a row; host h, x86_64, 6.1; build identity 7da970f65930",
    ]  # fmt: skip
    efa = chart(saved(rows_of(**SWEEP), notes=("4 processes poll on 2 cores",), fabric="any"))
    assert efa["title"]["subtitle"][0].startswith("READ")
    assert "Note: 4 processes poll on 2 cores" in said(efa)


def test_rounds_that_are_fewer_than_asked_for_are_told():
    works = workloads_of(Asked(**SWEEP))
    under = chart(saved([row(works[0]), row(works[1], rounds=1), failed(works[2])]))["title"]["subtitle"]
    assert "0 to 3 of 3 rounds a row" in under[1]


@cache
def schema():
    path = Path(alt.__file__).parent / "vegalite" / "v6" / "schema" / "vega-lite-schema.json"
    return jsonschema.Draft7Validator(json.loads(path.read_text()))


@pytest.mark.parametrize("asked", [SWEEP, {}])
def test_the_specification_is_vega_lites(asked):
    rows = rows_of(**asked)
    rows[0] = failed(rows[0].workload)
    found = schema().iter_errors(json.loads(json.dumps(chart(saved(rows)))))  # tuples are lists there
    assert [error.message[:300] for error in found] == []


def hostile():
    """Everything that could come from elsewhere says something it must not be believed."""
    rows = []
    for asked in ({}, SWEEP):
        for work in workloads_of(Asked(**asked)):
            renamed = msgspec.structs.replace(work, name=work.name + HOSTILE)
            rows += [row(renamed), row(renamed, HOSTILE, valid=False, against=(HOSTILE,), failures=(HOSTILE,))]
    ratio = Ratio(name=rows[0].name, numerator=HOSTILE, denominator=HOSTILE, ratio=bare(1.0, "x", 1, HOSTILE))
    return saved(
        rows, ratios=(ratio,), notes=(f"rehearsal: {HOSTILE}", HOSTILE), fabric=HOSTILE,
        build=dict.fromkeys(("name", "version", "identity"), HOSTILE),
        machine=dict.fromkeys(("host", "system", "processor"), HOSTILE),
    )  # fmt: skip


def strings(value, key=""):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, key)
    elif isinstance(value, str):
        yield key, value


def test_words_from_elsewhere_stand_where_the_renderer_takes_text_and_nowhere_else():
    found = {key for key, value in strings(chart(hostile())) if "alert(1)" in value}
    assert found == {"said", "text", "subtitle", "description"}


def test_the_picture_is_xml_its_text_is_text_and_nothing_in_it_is_carried_out():
    made = charts.svg(chart(hostile()))
    root = ET.fromstring(made)
    elements = list(root.iter())
    assert {one.tag.removeprefix("{http://www.w3.org/2000/svg}") for one in elements} <= {
        "svg", "g", "path", "rect", "line", "text", "tspan",
    }  # fmt: skip
    names = {name for one in elements for name in one.attrib}
    assert not [name for name in names if name.startswith("on") or "href" in name or name == "style"]
    text = "".join(root.itertext())
    assert "<script>alert(1)</script>" in text  # shown, not obeyed
    assert "\\x1b[31m\\x00\\xd800" in text
    assert all("sans-serif" in family for one in elements if (family := one.get("font-family")))
    assert float(root.get("width")) > 600


def test_a_sweep_of_two_backends_is_about_900_pixels_wide():
    made = ET.fromstring(charts.svg(chart(saved(rows_of(block_sizes=(4096, 1 << 20), counts=(1, 64))))))
    assert 800 < float(made.get("width")) < 930
    labels = {one.text for one in made.iter() if one.tag.endswith("text")}
    assert {"UCX 64 blocks", "LIBFABRIC 1 block", "64 MiB", "4 KiB", "bandwidth, GB/s"} <= labels
