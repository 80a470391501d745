"""When a load may be measured, told as its answers come in."""

import subprocess
import sys

import msgspec
import pytest

from kvgauge.plan.records import Until, UntilSteady
from kvgauge.samples.records import Exchange
from kvgauge.stats.batches import Narrow
from kvgauge.stats.settling import Settling

MS, SECOND = 1_000_000, 1_000_000_000


def exchange(seq, sent_ns, takes_ms=500, failure=None):
    return Exchange(
        seq=seq, run_id="r", cell="c", warmup=True, slot=0, worker=0, host="h", clock="monotonic",
        stamp_source="user", due_ns=sent_ns, sent_ns=sent_ns,
        arrivals_ns=() if failure else (sent_ns + takes_ms * MS // 2, sent_ns + takes_ms * MS),
        done_ns=sent_ns + takes_ms * MS, tokens_in=1, tokens_out=2, tokens_source="usage", status=200, failure=failure,
    )  # fmt: skip


def ended_after(settling, seconds, *, every_ms=100, takes_ms=lambda _at_s: 500, hold=None, from_s=0.0):
    """Feeds requests that end in order of their ends and asks 20 times a second; when it said to measure (s), or None.
    hold: this request's answer is not handed over."""
    sent = [
        (number, int((from_s + number * every_ms / 1e3) * SECOND)) for number in range(int(seconds * 1e3 / every_ms))
    ]
    ends = sorted((at + takes_ms(at / SECOND) * MS, number, at) for number, at in sent)
    for now_ns in range(0, int((from_s + seconds) * SECOND), 50 * MS):
        while ends and ends[0][0] <= now_ns:
            _, number, at = ends.pop(0)
            if number != hold:
                settling.add(exchange(number, at, takes_ms(at / SECOND)))
        if (begin_ns := settling.measure_from(now_ns)) is not None:
            return begin_ns / SECOND
    return None


def test_ten_batches_of_three_requests_each_are_waited_for():
    settling = Settling(UntilSteady(limit_s=120))
    assert ended_after(settling, 60) == pytest.approx(15.5, abs=0.6)
    assert settling.outcome.state == "steady"
    assert (settling.outcome.width_ns, settling.outcome.batches) == (1_500 * MS, 10)


def test_a_batch_counts_only_once_all_that_was_sent_in_it_has_ended():
    settling = Settling(UntilSteady(limit_s=120))
    assert ended_after(settling, 60, hold=30) is None, "request 30 has not ended: no batch after 3 s is whole"
    assert settling.outcome.batches <= 2


def test_at_least_s_is_kept_though_it_looks_steady():
    assert ended_after(Settling(UntilSteady(limit_s=120, at_least_s=33)), 60) == pytest.approx(34.5, abs=2.5)


def test_what_never_settles_is_measured_at_the_limit_and_said_to_be_unsteady():
    settling = Settling(UntilSteady(limit_s=25))
    assert ended_after(settling, 60, takes_ms=lambda at_s: int(300 + 20 * at_s)) == pytest.approx(25, abs=0.3)
    assert settling.outcome.state == "unsteady"
    assert "no end of the transient" in settling.outcome.reason


def test_a_server_that_answers_nothing_is_not_waited_for():
    settling = Settling(UntilSteady(limit_s=120))
    for seq in range(19):
        settling.add(exchange(seq, seq * MS, failure="connect"))
    assert settling.measure_from(SECOND) is None
    settling.add(exchange(19, 19 * MS, failure="connect"))
    assert settling.measure_from(2 * SECOND) == 2 * SECOND
    assert (settling.outcome.state, settling.outcome.reason) == ("unsteady", "the first 20 requests failed")


def test_a_stretch_of_silence_at_the_start_is_no_batch_of_values():
    settling = Settling(UntilSteady(limit_s=120))
    began_s = ended_after(settling, 80, takes_ms=lambda at_s: 10_000 if at_s < 1 else 500)
    assert began_s is not None
    assert settling.outcome.state == "steady"


def test_stopped_before_it_was_decided_it_says_so():
    settling = Settling(UntilSteady(limit_s=120))
    ended_after(settling, 5)
    assert (settling.outcome.state, settling.outcome.took_ns) == ("interrupted", 0)


def test_answers_that_come_whole_are_judged_by_their_latency_alone():
    settling = Settling(UntilSteady(limit_s=120), streamed=False)
    assert ended_after(settling, 60) is not None
    assert "latency: settled" in settling.outcome.reason


def test_an_end_by_the_mean_counts_from_where_measuring_began_also_where_warm_up_lies_between():
    narrow = Narrow(Until(metric="ttft_ms_mean", half_width=0.05), first_seq=0)
    for seq in range(120):
        warm_up = seq < 19 or seq == 50  # one that was due before the edge and begun after it
        narrow.add(msgspec.structs.replace(exchange(seq, seq * SECOND, 9_000 if warm_up else 500), warmup=warm_up))
        assert narrow.met == (seq == 119), "100 measured ones, and none of the slow warm-up among them"
    assert narrow.outcome().point == 0


def test_what_a_look_needs_is_loaded_before_the_load_begins():
    code = (
        "import sys\nfrom kvgauge.stats.settling import Settling\nfrom kvgauge.plan.records import UntilSteady\n"
        "Settling(UntilSteady(limit_s=9))\nprint('scipy.special' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True", "a look would import it, for a second or more, while sockets wait"
