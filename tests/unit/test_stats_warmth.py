"""What a warm-up makes of a cell: steady, widened, or invalid; and which batch sizes were met when."""

import numpy as np
import pytest

from kvgauge.load.continuous import Edges
from kvgauge.load.tally import CellLoad
from kvgauge.plan.records import UntilSteady
from kvgauge.samples.records import Exchange, Phases
from kvgauge.stats.cells import cell_metrics, counter_of
from kvgauge.stats.settling import Settled
from kvgauge.stats.sizes import held_ns_of, listed, reached, stays
from kvgauge.stats.steady import half_width, shift
from kvgauge.stats.warmth import judged
from scene import make_cell

MS, SECOND = 1_000_000, 1_000_000_000
BEGIN_NS = 20 * SECOND
CELL = make_cell(warmup_requests=0, steady=UntilSteady(limit_s=120))


def exchange(seq, due_ns, takes_ms, *, warmup=False, **changes):
    base = {
        "seq": seq, "run_id": "r", "cell": "c", "warmup": warmup, "slot": 0, "worker": 0, "host": "h",
        "clock": "monotonic", "stamp_source": "user", "due_ns": due_ns, "sent_ns": due_ns,
        "arrivals_ns": (due_ns + int(takes_ms * MS / 2), due_ns + int(takes_ms * MS)), "done_ns": None,
        "tokens_in": 1, "tokens_out": 3, "tokens_source": "usage", "status": 200,
    }  # fmt: skip
    return Exchange(**(base | changes))


def outcome(takes_ms, *, state="steady", seconds=40, settled=True, graph_batch_max=None, exchanges=None):
    """Ten requests a second are measured; takes_ms(seconds since the edge)."""
    count = 10 * seconds
    before = [exchange(seq, seq * SECOND // 10, 200, warmup=True) for seq in range(200)]
    during = [exchange(200 + k, BEGIN_NS + k * SECOND // 10, takes_ms(k / 10)) for k in range(count)]
    after = [exchange(200 + count, BEGIN_NS + seconds * SECOND, 200, warmup=True)]
    exchanges = exchanges or [*before, *during, *after]
    load = CellLoad(
        cell="c", clock="monotonic", started_ns=BEGIN_NS, ended_ns=max(e.arrivals_ns[-1] for e in during),
        offered=count, completed=count, failed=0, warmups=201, cpu_s=0.1, late_ns_max=0, late_ns_mean=0.0, stagger_ns=0,
        interrupted=False, edges=Edges(offered_ns=0, begin_ns=BEGIN_NS, closed_ns=BEGIN_NS + seconds * SECOND),
    )  # fmt: skip
    metrics = cell_metrics(exchanges, [], BEGIN_NS, BEGIN_NS + load.measured_ns)
    how = Settled(state=state, reason="TTFT: said", took_ns=BEGIN_NS, batches=12, width_ns=SECOND, looks=2)
    given = {"earlier": (), "workers": {}, "graph_batch_max": graph_batch_max}
    return judged(CELL, load, exchanges, metrics, settled=how if settled else None, **given), metrics


def noisy(shape=lambda _at: 1.0):
    rng = np.random.default_rng(4)
    return lambda at: 200 * shape(at) * float(rng.normal(1, 0.05))


def test_a_cell_that_stood_still_is_steady_and_its_numbers_stay_as_they_are():
    found, metrics = outcome(noisy())
    assert (found.trouble, found.remarks, found.warm_up.state) == (None, (), "steady")
    assert {name: found.metrics[name] for name in metrics} == metrics
    assert (found.warm_up.took_s, found.warm_up.requests, found.warm_up.surplus) == (20, 200, 1)
    assert found.metrics["warmup_s"].point == 20
    assert found.metrics["warmup_requests"].point == 200
    drift = found.metrics["ttft_drift_pct"]
    assert drift.low < 0 < drift.high
    assert found.warm_up.drifts["ttft_ms"] == drift


@pytest.mark.parametrize("shape", [lambda at: 1 + at / 200, lambda at: 1.3 if at < 8 else 1.0])
def test_a_drift_beyond_the_margin_makes_a_cell_invalid_though_its_warm_up_had_settled(shape):
    found, _ = outcome(noisy(shape))
    assert "shows a drift of more than 3 %" in found.trouble
    assert "at_least_s" in found.trouble
    assert found.warm_up.state == "unsteady"


def test_never_steady_within_the_limit_is_widened_where_it_stood_still_while_measured():
    found, metrics = outcome(noisy(), state="unsteady")
    assert found.trouble is None
    (remark,) = found.remarks
    assert remark.startswith("unsteady: not steady after 20 s of warm-up (TTFT: said); while measured TTFT changed by")
    for name in ("ttft_ms_mean", "e2e_latency_ms_mean"):
        narrow, wide = metrics[name], found.metrics[name]
        assert wide.point == narrow.point
        assert wide.high - wide.low >= narrow.high - narrow.low
        assert wide.n <= 20
        assert wide.note.startswith("unsteady: ")
    assert found.metrics["output_token_throughput_tok_s"].note.startswith("unsteady: ")
    assert found.metrics["requests"].note is None


def test_never_steady_and_drifting_while_measured_is_invalid():
    found, _ = outcome(noisy(lambda at: 1 + at / 400), state="unsteady")
    assert "raise limit_s" in found.trouble


def test_never_steady_and_measured_too_short_has_no_interval():
    found, _ = outcome(noisy(), state="unsteady", seconds=2)
    assert found.trouble is None
    mean = found.metrics["ttft_ms_mean"]
    assert (mean.low, mean.reason) == (None, "unsteady, and too few batches for an interval")
    assert "needs 6, so measure for 3.6" in found.metrics["ttft_drift_pct"].reason


def test_the_note_leaves_who_counted_tokens_where_it_was():
    found, _ = outcome(noisy(), state="unsteady")
    value = found.metrics["tpot_ms_mean"]
    assert counter_of(value) is None


def test_a_number_of_requests_is_not_judged_and_nothing_is_said_of_it_where_no_graphs_are():
    found, metrics = outcome(noisy(), settled=False)
    assert (found.warm_up, found.metrics, found.remarks) == (None, metrics, ())


def test_batch_sizes_first_met_while_measured_are_named_and_those_above_the_largest_graph():
    before = [exchange(0, 0, 1000, warmup=True), exchange(1, 100 * MS, 900, warmup=True)]
    during = [exchange(2 + k, BEGIN_NS + k * MS, 2000 - k, tokens_out=101) for k in range(5)]
    found, _ = outcome(noisy(), settled=False, graph_batch_max=4, exchanges=[*before, *during])
    assert (found.warm_up.sizes_before, found.warm_up.sizes_above) == ("1-2", "5")
    assert found.warm_up.sizes_new == ""
    spread = [exchange(2 + k, BEGIN_NS + k * 1000 * MS, 9000, tokens_out=1001) for k in range(5)]
    found, _ = outcome(noisy(), settled=False, graph_batch_max=4, exchanges=[*before, *spread])
    assert (found.warm_up.sizes_new, found.warm_up.sizes_above) == ("3-4", "5")
    assert "batch sizes 3-4 were first met while it was measured" in found.remarks[0]
    assert "above the largest with a graph (4)" in found.remarks[0]


def test_a_request_counts_from_when_its_kv_had_arrived_on_its_decode_worker():
    phases = Phases(clock="monotonic", host="h", transferred_ns=700 * MS)
    told = exchange(0, 0, 1000, phases=phases, request_id="a")
    other = exchange(1, 0, 1000, request_id="b")
    elsewhere = exchange(2, 0, 1000, phases=Phases(clock="monotonic", host="x", transferred_ns=700 * MS))
    failed = exchange(3, 0, 1000, arrivals_ns=())
    found = stays([told, other, elsewhere, failed], {"a": 1})
    assert found == [(700 * MS, 1000 * MS, 1), (0, 1000 * MS, 0), (0, 1000 * MS, 0)]
    assert reached(found, from_ns=0, to_ns=SECOND, held_ns=MS) == {1, 2}


def test_a_size_that_lasted_less_than_a_step_does_not_count():
    found = [(0, 100 * MS, 0), (99 * MS, 200 * MS, 0)]
    assert reached(found, from_ns=0, to_ns=SECOND, held_ns=2 * MS) == {1}
    assert reached(found, from_ns=0, to_ns=SECOND, held_ns=MS) == {1, 2}
    assert held_ns_of([exchange(0, 0, 1000)]) == 250 * MS
    assert held_ns_of([]) == MS


def test_sizes_are_listed_in_runs():
    assert [listed(sizes) for sizes in ([], [3], [1, 2, 3, 7], [5, 4])] == ["none", "3", "1-3, 7", "4-5"]


def test_early_against_late_covers_a_step_as_often_as_it_claims_and_sees_none_where_none_is():
    rng, covered, seen = np.random.default_rng(8), 0, 0
    for _ in range(400):
        flat = rng.normal(100, 4, 20)
        stepped = flat + np.where(np.arange(20) < 5, 20, 0)
        found = shift(stepped)
        covered += found.low <= -100 * 20 / (100 + 5) <= found.high
        none = shift(flat)
        seen += not none.low <= 0 <= none.high
    assert covered / 400 >= 0.92
    assert seen / 400 <= 0.08


def test_the_interval_over_batches_covers_the_mean_also_where_neighbours_resemble_each_other():
    rng, covered = np.random.default_rng(9), 0
    for _ in range(400):
        values = [0.0]
        for step in rng.normal(0, 1, 40):
            values.append(0.5 * values[-1] + step)
        means = 100 + np.array(values[1:])
        covered += abs(means.mean() - 100) <= half_width(means)
    assert covered / 400 >= 0.90
