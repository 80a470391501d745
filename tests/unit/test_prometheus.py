"""Prometheus text, as servers write it and as they should not."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.evidence import prometheus
from kvgauge.evidence.known_metrics import KNOWN
from kvgauge.evidence.prometheus import labels_of, labels_text, parse
from kvgauge.serve.metrics import Metrics
from kvgauge.stats.server import metric_names

NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,20}", fullmatch=True)
LABEL_NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,10}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
LABELS = st.dictionaries(LABEL_NAMES, TEXTS, max_size=5)
VALUES = st.floats(allow_nan=True, allow_infinity=True)


def same(one, other):
    return one == other or (math.isnan(one) and math.isnan(other))


def test_a_counter_a_gauge_and_a_histogram_keep_their_kinds():
    read = parse(
        b"# HELP a_total As.\n# TYPE a_total counter\na_total 3\n"
        b'# TYPE b gauge\nb{x="1"} -2.5e3\n'
        b'# TYPE c histogram\nc_bucket{le="0.1"} 1\nc_bucket{le="+Inf"} 2\nc_sum 0.7\nc_count 2\nc_created 1.7e9\n'
        b"d 1\n"
    )
    assert read.values == {
        ("a_total", ""): 3, ("b", 'x="1"'): -2500, ("c_bucket", 'le="0.1"'): 1, ("c_bucket", 'le="+Inf"'): 2,
        ("c_sum", ""): 0.7, ("c_count", ""): 2, ("c_created", ""): 1.7e9, ("d", ""): 1,
    }  # fmt: skip
    assert read.kinds == {
        "a_total": "counter", "b": "gauge", "c_bucket": "histogram", "c_sum": "histogram", "c_count": "histogram",
        "c_created": "gauge", "d": "unknown",
    }  # fmt: skip
    assert (read.garbage, read.cut, read.ended) == (0, None, False)


def test_openmetrics_names_a_counter_without_its_ending_and_ends_with_eof():
    read = parse(b'# TYPE a counter\na_total{x="1"} 5 1700000000.123 # {trace_id="}"} 0.5 1700000000\n# EOF\nb 1\n')
    assert read.values == {("a_total", 'x="1"'): 5}
    assert read.kinds == {"a_total": "counter"}
    assert read.ended
    assert (read.garbage, read.first) == (1, "b 1")  # nothing may follow the end


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NaN", math.nan),
        ("Nan", math.nan),
        ("+Inf", math.inf),
        ("-Inf", -math.inf),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("5.", 5),
    ],
)
def test_values_are_read_as_go_and_c_write_them(text, value):
    assert same(parse(f"a {text}\n".encode()).values["a", ""], value)


@pytest.mark.parametrize(
    "line",
    [
        "<html>", "a", "a{", "a{} ", "a{x=1} 1", 'a{x="1" 1', 'a{x="1}', 'a{x="1",x="2"} 1', "a{,} 1", "a 1_000", "a 0x1", "a 1 2 3",
        "1a 1", "a\u0661 1", "a \u0661", "a1", 'a{x="1"}', "a one", 'a{x="1"} 1 # {y="1"}', '{"a.b"} 1', "a 1 # no",
    ],
)  # fmt: skip
def test_what_is_no_series_is_counted_and_the_rest_is_read(line):
    read = parse(f"before 1\n{line}\nafter 2\n".encode())
    assert read.values == {("before", ""): 1, ("after", ""): 2}
    assert (read.garbage, read.first) == (1, line.strip())


def test_labels_in_another_order_with_spaces_and_a_last_comma_are_the_same_series():
    read = parse(b'a{x="1",y="2"} 1\na{ y = "2" , x="1", } 2\n')
    assert read.values == {("a", 'x="1",y="2"'): 2}
    assert read.garbage == 1


def test_limits_cut_and_say_so():
    lines = b"".join(b"a%d 1\n" % number for number in range(100))
    few = parse(lines, series_max=10)
    assert len(few.values) == 10
    assert few.cut == "only the first 10 series were read"
    short = parse(lines, text_bytes_max=35)
    assert list(short.values) == [(f"a{number}", "") for number in range(7)]
    assert short.cut == f"only the first 35 of {len(lines)} bytes were read"
    long = parse(b'a{x="' + b"y" * prometheus.LINE_CHARACTERS_MAX + b'"} 1\nb 1\n')
    assert long.values == {("b", ""): 1}
    many = ",".join(f'l{number}="1"' for number in range(prometheus.LABELS_MAX + 1))
    assert parse(f"a{{{many}}} 1\n".encode()).garbage == 1


@given(st.binary(max_size=400))
def test_no_bytes_at_all_raise(data):
    read = parse(data)
    assert read.garbage >= 0
    assert all(name in read.kinds for name, _ in read.values)


@given(st.text(alphabet='ab{}="\\,# \t\n1.e+-NaInf', max_size=200))
def test_no_text_made_of_its_own_characters_raises(text):
    read = parse(text.encode())
    assert len(read.values) + read.garbage <= text.count("\n") + 1 + len(read.values)


@given(st.dictionaries(st.tuples(NAMES, LABELS.map(lambda labels: labels_text(labels.items()))), VALUES, max_size=20))
def test_what_is_written_as_prometheus_text_is_read_back(series):
    text = "".join(f"{name}{{{labels}}} {value}\n" for (name, labels), value in series.items())
    read = parse(text.encode())
    assert read.garbage == 0
    assert read.values.keys() == series.keys()
    assert all(same(read.values[key], value) for key, value in series.items())


@given(st.lists(st.text(alphabet='ab{}="\\,# \t\n1.e+-', max_size=120), min_size=2, max_size=4))
def test_what_was_learned_from_earlier_answers_changes_nothing(texts):
    heads = {}
    for text in texts:
        learned = parse(text.encode(), heads=heads)
        fresh = parse(text.encode())
        assert learned == fresh


def test_what_is_learned_is_used_and_stays_bounded():
    heads = {}
    parse(b'a{y="1",x="2"} 1\nb 2 1700000000\nc\t3\n', heads=heads)
    assert heads == {'a{y="1",x="2"}': ("a", 'x="2",y="1"')}
    assert parse(b'a{y="1",x="2"} 7\na{y="1",x="2"} x\n', heads=heads).values == {("a", 'x="2",y="1"'): 7}
    for number in range(100):
        parse(b"".join(b"n%d_%d 1\n" % (number, each) for each in range(10)), heads=heads, series_max=20)
    assert len(heads) <= 20 + 10


@given(LABELS)
def test_labels_survive_their_text(labels):
    assert labels_of(labels_text(labels.items())) == labels


def test_nixls_own_exporter_is_read_among_the_lines_of_a_log(samples_folder):
    read = parse((samples_folder / "nixl-1.5.1-prometheus.txt").read_bytes())
    labels = 'agent_name="init",hostname="vm"'
    assert read.values["agent_rx_bytes_total", labels] == 12_582_912
    assert read.values["agent_xfer_time_us_sum", labels] == 3_244_205
    assert read.values["agent_xfer_time_us_count", labels] == 3
    assert math.isnan(read.values["exposer_request_latencies", 'quantile="0.5"'])
    assert read.kinds["agent_rx_bytes_total"] == "counter"
    assert read.kinds["agent_xfer_time_us_bucket"] == "histogram"
    assert read.kinds["exposer_request_latencies"] == "summary"
    buckets = [value for (name, _), value in read.values.items() if name == "agent_xfer_time_us_bucket"]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 3
    assert read.garbage > 0  # the log's own lines


def test_everything_our_frontend_exports_is_read_and_known():
    read = parse(Metrics("m").text())
    assert read.garbage == 0
    theirs = {name for name, _ in read.values if name.startswith("vllm:") and not name.endswith("_bucket")}
    assert theirs - metric_names() == set()


def test_the_table_says_each_thing_once_and_in_full():
    rows = [(known.engine, known.name, known.take, known.labels) for known in KNOWN]
    assert len(rows) == len(set(rows))
    assert {known.engine for known in KNOWN} == {"vLLM", "SGLang", "Dynamo", "NIXL"}
    for known in KNOWN:
        assert known.means
        assert known.unit
        assert known.quantity.endswith("_max") == (known.take == "max"), known
    polled = [known for known in KNOWN if "xfer_time" in known.name and known.take == "mean"]
    assert len(polled) == 2
    assert all("asks NIXL whether" in known.note for known in polled)
