"""Goodput against cases worked out by hand."""

import pytest

from kvgauge.plan.records import Goodput
from kvgauge.samples.records import Exchange
from kvgauge.stats.goodput import goodput_metrics, meets

MS = 1_000_000


def exchange(ttft_ms, *, gap_ms=10, events=5, tokens=None, failure=None, source="usage", warmup=False):
    return Exchange(
        seq=0, run_id="r", cell="c", warmup=warmup, slot=0, worker=0, host="h", clock="monotonic", stamp_source="user",
        due_ns=0, sent_ns=MS, arrivals_ns=tuple((ttft_ms + gap_ms * i) * MS for i in range(events)), done_ns=999 * MS,
        tokens_in=1, tokens_out=events if tokens is None else tokens, tokens_source=source, status=200, failure=failure,
    )  # fmt: skip


def test_a_request_is_good_only_within_every_objective():
    both = Goodput(ttft_ms=200, tpot_ms=10)
    assert meets(both, exchange(200, gap_ms=10))
    assert not meets(both, exchange(201, gap_ms=10))
    assert not meets(both, exchange(200, gap_ms=11))
    assert not meets(both, exchange(1, gap_ms=1, failure="stall"))
    assert meets(Goodput(e2e_latency_ms=240), exchange(200))
    assert not meets(Goodput(e2e_latency_ms=239), exchange(200))


def test_an_answer_of_one_token_has_a_tpot_of_0():
    assert meets(Goodput(tpot_ms=0.001), exchange(50, events=1))


def test_goodput_counts_failed_requests_as_not_good_and_leaves_warm_up_out():
    given = [exchange(10), exchange(10), exchange(300), exchange(10, failure="timeout"), exchange(10, warmup=True)]
    found = goodput_metrics(Goodput(ttft_ms=100), given, 4_000 * MS)
    assert found["goodput_req_s"].point == pytest.approx(0.5)
    assert (found["goodput_share_pct"].point, found["goodput_share_pct"].n) == (50.0, 4)


def test_without_objectives_there_is_no_goodput():
    assert goodput_metrics(None, [exchange(10)], MS) == {}


@pytest.mark.parametrize(
    ("objectives", "given", "streamed", "why"),
    [
        (Goodput(ttft_ms=1), [], True, "no request was measured"),
        (Goodput(ttft_ms=1), [exchange(1)], False, "not streamed"),
        (Goodput(tpot_ms=1), [exchange(1, source="events")], True, "no usage"),
        (Goodput(tpot_ms=1), [exchange(1, events=1, tokens=8)], True, "all in one event"),
    ],
)
def test_what_cannot_be_known_is_missing_with_the_reason(objectives, given, streamed, why):
    found = goodput_metrics(objectives, given, 1_000 * MS, streamed=streamed)
    assert {value.point for value in found.values()} == {None}
    assert all(why in value.reason for value in found.values())


def test_the_end_of_an_answer_is_known_without_streaming():
    assert goodput_metrics(Goodput(e2e_latency_ms=90), [exchange(80, events=1)], 1_000 * MS, streamed=False)[
        "goodput_req_s"
    ].point == pytest.approx(1.0)
