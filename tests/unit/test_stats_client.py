"""The client's own part of what was measured, and when it is too much."""

import msgspec
import pytest

from kvgauge.load.tally import CellLoad
from kvgauge.samples.records import Exchange
from kvgauge.stats.client import client_metrics, client_troubles
from scene import make_cell

MS = 1_000_000


def exchange(seq=0, *, late_ms=0.05, ttft_ms=50.0, lag_ms=0.03, shared=0, **changes):
    due = seq * 1000 * MS
    first = due + int(ttft_ms * MS)
    base = {
        "seq": seq, "run_id": "r", "cell": "c", "warmup": False, "slot": 0, "worker": 0, "host": "h",
        "clock": "monotonic", "stamp_source": "kernel", "due_ns": due, "sent_ns": due + int(late_ms * MS),
        "arrivals_ns": (first, first + 5 * MS, first + 10 * MS), "done_ns": first + 11 * MS, "tokens_in": 64,
        "tokens_out": 3, "tokens_source": "usage", "status": 200, "arrivals_shared": shared, "arrivals_user": 0,
        "lag_ns_max": None if lag_ms is None else int(3 * lag_ms * MS),
        "lag_ns_mean": None if lag_ms is None else int(lag_ms * MS),
    }  # fmt: skip
    return Exchange(**(base | changes))


def load_of(count, cpu_s=0.5):
    return CellLoad(
        cell="c", clock="monotonic", started_ns=0, ended_ns=1000 * MS, offered=count, completed=count, failed=0,
        warmups=0, cpu_s=cpu_s, late_ns_max=0, late_ns_mean=0.0, stagger_ns=0, interrupted=False,
    )  # fmt: skip


def test_the_clients_own_part_is_recorded():
    found = client_metrics([exchange(0, lag_ms=0.2, shared=1), exchange(1, lag_ms=0.4), exchange(2, warmup=True)],
                           load_of(2))  # fmt: skip
    assert found["client_lag_ms_mean"].point == pytest.approx(0.3)
    assert found["client_lag_ms_max"].point == pytest.approx(1.2)
    assert found["arrivals_shared_pct"].point == pytest.approx(100 / 6)
    assert found["client_cpu_pct"].point == pytest.approx(50)


def test_without_the_kernels_stamps_the_lag_is_missing_not_zero():
    found = client_metrics([exchange(lag_ms=None)], load_of(1))
    assert found["client_lag_ms_mean"].point is None
    assert "kernel" in found["client_lag_ms_mean"].reason


@pytest.mark.parametrize(
    ("late_ms", "lag_ms", "said"),
    [
        (0.05, 0.03, None),
        (1.9, 1.9, None),  # below 2 ms
        (4.9, 5.9, None),  # below a tenth of what is measured
        (5.5, 0.03, "left 5.5 ms after they were due, of a TTFT of 50.0 ms"),
        (0.05, 6.5, "waited 6.5 ms to be read, of answers that took 60.0 ms"),
        (0.05, None, None),
    ],
)
def test_a_client_whose_part_matters_is_the_bottleneck(late_ms, lag_ms, said):
    troubles = client_troubles(make_cell(), [exchange(seq, late_ms=late_ms, lag_ms=lag_ms) for seq in range(30)])
    assert troubles == [] if said is None else said in troubles[0]


def test_one_pause_of_the_machine_among_few_requests_is_no_bottleneck():
    paused = [exchange(0, late_ms=200, ttft_ms=250), *(exchange(seq) for seq in range(1, 6))]
    assert client_troubles(make_cell(), paused) == []


def test_lateness_of_an_open_load_is_judged_by_what_could_leave():
    late = [exchange(seq, late_ms=40) for seq in range(30)]
    assert client_troubles(make_cell(load="poisson", rate=5.0), late) == []


def test_failed_and_warmup_requests_say_nothing():
    others = [exchange(0, late_ms=40, warmup=True), exchange(1, late_ms=40, failure="status")]
    assert client_troubles(make_cell(), others) == []


@pytest.mark.parametrize(("waves", "judged"), [(1, False), (4, False), (6, True)])
def test_a_wave_is_one_send_and_a_few_of_them_are_recorded_but_not_judged(waves, judged):
    late = [exchange(wave, late_ms=40, ttft_ms=70) for wave in range(waves) for _ in range(20)]
    assert bool(client_troubles(make_cell(load="wave", concurrency=20), late)) is judged


def test_a_burst_that_was_sent_at_once_says_nothing_by_its_lag_either():
    at_once = [exchange(0, lag_ms=30, due_ns=0) for _ in range(100)]
    assert client_troubles(make_cell(concurrency=100), at_once) == []


def test_one_late_worker_of_several_is_the_bottleneck_though_their_mean_is_fine():
    late = [exchange(seq, late_ms=12 if seq % 8 == 5 else 0.05, worker=1 if seq % 8 == 5 else 0) for seq in range(240)]
    (said,) = client_troubles(make_cell(), late)
    assert said.startswith("load worker 1 of this client was the bottleneck: requests left 12.0 ms")
    assert client_troubles(make_cell(), [msgspec.structs.replace(each, worker=0) for each in late]) == []


def test_workers_that_sent_too_little_to_be_judged_alone_are_judged_together():
    late = [exchange(seq, late_ms=12, worker=seq % 3) for seq in range(9)]
    assert client_troubles(make_cell(), late)[0].startswith("this client was the bottleneck")


def test_the_clients_own_part_is_the_worst_workers():
    exchanges = [exchange(seq, lag_ms=4 if seq % 2 else 0.1, worker=seq % 2) for seq in range(10)]
    found = client_metrics(exchanges, msgspec.structs.replace(load_of(10), workers=2))
    assert found["client_lag_ms_mean"].point == pytest.approx(4)
    assert "worst load worker" in found["client_lag_ms_mean"].reason
    assert "busiest load worker" in found["client_cpu_pct"].reason
