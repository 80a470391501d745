"""May tests be compared, what do they gain, and which word says so."""

from math import exp

import msgspec
import pytest

from kvgauge.compare.gains import gains, pair, published_gain, verdict_of
from kvgauge.compare.ranks import rank, winner
from kvgauge.compare.values import MUST_AGREE, TestValues, comparable, direction
from kvgauge.plan.records import Cell, ColdStart, Plan, Primary, Test
from kvgauge.stats.paired import LogRatio
from kvgauge.stats.runs import gain, over_runs

KEY, GOODPUT = ("deciding", "ttft_ms_mean"), ("deciding", "goodput_req_s")


def row(name, **more):
    defaults = {
        "name": name, "backend": "UCX", "fabric": "tcp", "build": "1.2.0", "patches": "none", "stand_in": None,
        "model": "Qwen3-0.6B", "prefill_tp": 1, "decode_tp": 1,
    }  # fmt: skip
    return Test(**(defaults | more))


A, B = row("A"), row("B", backend="LIBFABRIC", build="1.4.1", baseline=("A",))


def plan(*tests, metric="ttft_ms_mean"):
    cell = Cell(
        name="deciding",
        load="closed",
        concurrency=10,
        requests=300,
        output_tokens=128,
        warmup_requests=1,
        input_tokens=512,
    )
    return Plan(
        name="p",
        source="here",
        tests=tests,
        cells=(cell,),
        repetitions=5,
        primary=Primary(metric=metric, cell="deciding"),
    )


def about(level, n=5, spread=0.01, shift=0):
    """n runs near a level, up and down in a fixed pattern."""
    pattern = (0.3, -1.1, 0.9, -0.6, 0.5)
    return {k: level * exp(spread * pattern[(k + shift) % 5] * (1 + k / 50)) for k in range(1, n + 1)}


def only(before, after, *, plan_of=(A, B), **more):
    rows = gains(
        [TestValues(test=A, values={KEY: before}), TestValues(test=B, values={KEY: after}, **more)], plan(*plan_of)
    )
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("model", "Llama-3.1-8B"), ("prefill_tp", 2), ("decode_tp", 2), ("kv_dtype", "fp8"), ("operation", "WRITE"),
        ("prefill_workers", 2), ("decode_workers", 3), ("gpu", "A100"), ("fabric", "efa"),
        ("cold_start", ColdStart(compile_s=1)),
    ],
)  # fmt: skip
def test_tests_that_differ_in_what_must_agree_are_refused_with_the_field(field, other):
    changed = msgspec.structs.replace(B, **{field: other})
    assert field in MUST_AGREE
    assert comparable(A, changed) == field
    assert comparable(A, changed, vary=[field]) is None


def test_backend_build_and_patches_may_differ():
    assert comparable(A, B) is None


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(100, 90, "better"), (100, 111, "worse"), (100, 100.2, "equivalent"), (100, 99.9, "equivalent")],
)
def test_five_pairs_give_the_verdict_their_interval_allows(before, after, verdict):
    found = only(about(before), about(after, shift=2))
    assert found.verdict == verdict
    assert found.primary
    assert found.gain.n == 5
    assert found.reason is None


def test_a_wide_interval_around_nothing_shows_no_difference_and_says_how_many_runs_would():
    found = only(about(100, spread=0.2), about(98, spread=0.2, shift=2))
    assert found.verdict == "no difference shown"
    assert "runs would show a gain of this size, or 5 % if that is more" in found.reason


def test_runs_that_would_have_shown_five_percent_say_so():
    found = only(about(100, spread=0.018), about(99, spread=0.018, shift=1))
    assert found.verdict == "no difference shown"
    assert found.reason == "these runs would most likely have shown a gain of 5 %; what was seen is less"


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_fewer_than_five_pairs_cannot_tell_however_clear_the_gain(n):
    found = only(about(100, n), about(10, n))
    assert found.verdict == "cannot tell"
    assert found.gain.point == pytest.approx(90, abs=1)
    assert "n of at least 5 runs" in found.reason
    assert found.p_value is None


def test_higher_is_better_for_throughput_and_positive_means_better():
    key = ("deciding", "output_token_throughput_tok_s")
    tests = [TestValues(test=A, values={key: about(300)}), TestValues(test=B, values={key: about(480, shift=1)})]
    found = gains(tests, plan(A, B, metric=key[1]))[0]
    assert found.verdict == "better"
    assert found.gain.point == pytest.approx(60, abs=2)


def test_runs_that_do_not_count_drop_their_pair_and_are_named():
    after = about(90, 6, shift=1)
    del after[3]
    found = only(about(100, 6), after, left_out={("deciding", 3): "invalid"})
    assert found.gain.n == 5
    assert found.verdict == "better"
    assert found.reason == "repetition 3 left out: invalid in B"


def test_a_side_whose_runs_are_all_invalid_makes_the_verdict_invalid():
    found = only(about(100), {}, left_out={("deciding", k): "invalid" for k in range(1, 6)})
    assert found.verdict == "invalid"
    assert found.gain.point is None
    assert found.reason == "repetition 1, 2, 3, 4, 5 left out: invalid in B"


def test_a_side_that_has_not_run_yet_cannot_tell():
    found = only(about(100), {}, left_out={("deciding", k): "pending" for k in range(1, 6)})
    assert found.verdict == "cannot tell"


def test_the_largest_of_few_requests_gives_no_verdict_but_a_point():
    found = only(about(100), about(50), no_verdict={KEY: "max of n=20: a P99 interval needs 299 requests"})
    assert found.verdict == "cannot tell"
    assert found.gain.point == pytest.approx(50)
    assert found.reason == "max of n=20: a P99 interval needs 299 requests"


def test_tokens_that_were_counted_by_two_give_no_verdict_between_them():
    found = only(about(100), about(50), counted_by={KEY: "Qwen3 (bundled)"})
    assert found.verdict == "cannot tell"
    assert found.reason == "tokens were counted by the server there and by Qwen3 (bundled) here: two measures"


def test_incomparable_tests_and_absent_baselines_cannot_tell_and_say_why():
    other = row("C", model="Llama-3.1-8B", baseline=("A", "gone"))
    rows = gains(
        [TestValues(test=A, values={KEY: about(1)}), TestValues(test=other, values={KEY: about(2)})], plan(A, other)
    )
    assert [r.verdict for r in rows] == ["cannot tell", "cannot tell"]
    assert rows[0].reason == "not comparable: model is 'Qwen3-0.6B' there and 'Llama-3.1-8B' here"
    assert rows[1].reason == "'gone' has no results here"
    assert all(r.gain.point is None for r in rows)


def test_a_cold_start_that_differs_is_told_in_words():
    cold = row("C", cold_start=ColdStart(compile_s=20), baseline=("A",))
    rows = gains(
        [TestValues(test=A, values={KEY: about(1)}), TestValues(test=cold, values={KEY: about(2)})], plan(A, cold)
    )
    assert [r.reason for r in rows] == ["not comparable: cold_start is None there and 'compile 20 s a worker' here"]


def many(secondary):
    """The primary metric unchanged, and secondary ones, each with its own shift."""
    values = {
        ("deciding", f"{family}_{s}"): None
        for family in ("e2e_latency_ms", "tpot_ms")
        for s in ("mean", "p50", "p90", "p95")
    }
    before, after = {KEY: about(100)}, {KEY: about(100, shift=1)}
    for place, key in enumerate(values):
        before[key], after[key] = about(100), about(secondary[place % len(secondary)], shift=2)
    return gains([TestValues(test=A, values=before), TestValues(test=B, values=after)], plan(A, B))


def test_the_primary_metric_comes_first_and_the_others_are_corrected_for_being_many():
    barely = gain(about(100), about(98, shift=2), "lower")
    assert verdict_of(barely, barely.p_value) == "better"  # alone it would count
    rows = many([98])
    assert [r.primary for r in rows] == [True] + [False] * 8
    assert {r.verdict for r in rows[1:]} <= {"no difference shown", "equivalent"}
    assert {r.reason for r in rows[1:]} == {
        "alone it would count; among 8 secondary metrics, with 1 % for all while the primary one shows nothing, it does "
        "not (Holm)"
    }
    assert {r.verdict for r in many([80])[1:]} == {"better"}


def test_metrics_without_a_direction_have_no_gains():
    for metric in (
        "kv_bytes_moved",
        "requests",
        "failures",
        "phase_queue_ms_mean",
        "late_ms_max",
        "handshake_count_nixl",
    ):
        assert direction(metric) is None
    keys = {("deciding", "kv_bytes_moved"): about(5), KEY: about(100)}
    rows = gains([TestValues(test=A, values=keys), TestValues(test=B, values=keys)], plan(A, B))
    assert [r.metric for r in rows] == ["ttft_ms_mean"]


def test_published_numbers_without_n_cannot_tell():
    estimate, verdict, reason = published_gain(403, 337, "e2e_latency_ms_mean")
    assert estimate.point == pytest.approx(16.4, abs=0.05)
    assert (estimate.low, estimate.n, verdict) == (None, 0, "cannot tell")
    assert "no interval" in reason


def test_runs_that_served_nothing_in_time_are_not_dropped_for_a_verdict_over_the_others():
    """Ten runs each: the later side's first five had no request within its objectives, the others are as before."""
    before, after = about(10, n=10), about(10, n=10, shift=2) | dict.fromkeys(range(1, 6), 0.0)
    of = plan(A, B, metric="goodput_req_s")
    found = gains([TestValues(test=A, values={GOODPUT: before}), TestValues(test=B, values={GOODPUT: after})], of)
    assert found[0].verdict == "cannot tell"
    assert "repetition 1, 2, 3, 4, 5: a value of 0 or below has no ratio" in found[0].reason


def test_a_difference_without_any_spread_is_no_verdict_and_no_difference_without_one_is_equivalence():
    """Five results rounded to two digits: 0.11 each time, then 0.12."""
    flat = dict.fromkeys(range(1, 6), 0.11)
    assert only(flat, dict.fromkeys(range(1, 6), 0.12)).verdict == "cannot tell"
    apart = pair(
        *(TestValues(test=A, values={KEY: side}) for side in (flat, dict.fromkeys(flat, 0.12))), KEY, paired=False
    )
    assert "agree to the last digit" in apart[0].reason
    assert only(flat, flat).verdict == "equivalent"


def test_a_repetition_whose_value_one_side_lacks_is_named():
    after = about(80, n=8, shift=2)
    del after[3]
    found = only(about(100, n=8), after)
    assert (found.verdict, found.gain.n) == ("better", 7)
    assert found.reason == "repetition 3 left out: one side lacks this value"


def test_which_of_two_sides_of_one_name_lost_a_run_is_said():
    whole, short = (TestValues(test=A, values={KEY: about(level, n=6)}) for level in (100, 90))
    short = msgspec.structs.replace(
        short, values={KEY: dict(list(about(90, n=6).items())[1:])}, left_out={("deciding", 1): "failed"}
    )
    assert pair(whole, short, KEY, paired=False)[0].reason == "repetition 1 left out: failed in A (after)"


def test_what_would_be_enough_for_a_secondary_metric_counts_the_others_it_stands_among():
    """One small gain among many metrics needs a smaller p-value than alone, so more runs."""

    def runs_said(others):
        keys = [("deciding", name) for name in ("tpot_ms_mean", "itl_ms_mean", "itl_ms_p50", "tpot_ms_p50")[:others]]
        wide = ("deciding", "e2e_latency_ms_mean")
        before = {KEY: about(100), wide: about(100, spread=0.2)} | {key: about(100) for key in keys}
        after = {KEY: about(100, shift=2), wide: about(110, spread=0.2, shift=2)}
        after |= {key: about(100, shift=2) for key in keys}
        found = gains([TestValues(test=A, values=before), TestValues(test=B, values=after)], plan(A, B))
        reason = next(one.reason for one in found if one.metric == "e2e_latency_ms_mean")
        return int(reason.split()[1])

    assert runs_said(0) < runs_said(4)


def values(name, level, **more):
    return TestValues(test=row(name), values={KEY: about(level, n=7, shift=len(name))}, **more)


def test_ranks_do_not_tell_tests_apart_by_what_gives_no_verdict():
    why = {KEY: "P99 of 300 requests: a verdict needs 1,000 in each run"}
    ranked = rank([values("A", 100, no_verdict=why), values("Bee", 80, no_verdict=why)], KEY)
    assert (ranked[1].apart, ranked[1].reason) == (False, why[KEY])
    assert winner(ranked, rehearsal=False)[0] is None


def test_the_first_of_a_rank_is_no_winner_over_a_test_that_is_better_repetition_by_repetition():
    """Thirty runs: A is a little quicker in every one but one, in which it is so slow that its mean is worse."""
    pattern = (0.3, -1.1, 0.9, -0.6, 0.5)
    slow = {k: 20 * (1 + 0.01 * pattern[k % 5]) for k in range(1, 31)}
    quick = {k: 10 * (1 + 0.01 * pattern[k % 4]) for k in range(1, 31)} | {30: 900.0}
    ranked = rank([TestValues(test=row(n), values={KEY: v}) for n, v in (("A", quick), ("B", slow))], KEY)
    assert ranked[0].test == "B"
    assert ranked[1].behind.high < 0
    assert ranked[1].apart is False
    assert winner(ranked, rehearsal=False)[0] is None


def test_tests_that_may_not_be_compared_are_named_apart_from_those_that_are_not_told_apart():
    tests = [
        values("A", 100),
        values("Bee", 80),
        TestValues(test=row("C", model="Llama-3.1-8B"), values={KEY: about(9)}),
    ]
    named, sentence = winner(rank(tests[:2], KEY), rehearsal=False)
    assert named == "Bee"
    named, sentence = winner(rank(tests, KEY), rehearsal=False)
    assert (named, sentence) == (
        None,
        "no winner: C comes first, and may not be compared with Bee (model differs), A (model differs)",
    )
    assert winner(rank(tests, KEY, vary=["model"]), rehearsal=False)[0] == "C"


def test_pairs_of_requests_that_lost_a_value_are_counted_where_the_gain_is_and_in_ranks():
    ratio = LogRatio(mean=0.1, error=0.01, freedom=15, pairs=400, batches=20, lost=52)
    sides = [
        TestValues(test=A, values={KEY: {1: 100.0}}),
        TestValues(test=B, values={KEY: {1: 110.0}}, beside="A", pairs={KEY: {1: ratio}}),
    ]
    (found,) = gains(sides, plan(A, B))
    assert found.verdict == "worse"
    assert found.reason == "n counts pairs of requests, these deployments; 52 more lack this value on a side"
    ranked = rank(sides, KEY)
    assert (ranked[1].apart, ranked[1].reason) == (True, found.reason)


def test_values_that_no_clock_gives_make_a_row_and_no_error():
    far = {k: 1e300 if k % 2 else 1e-300 for k in range(1, 7)}
    assert only(about(100, n=6), far).verdict == "no difference shown"
    assert over_runs(list(far.values()), "ms").point == pytest.approx(5e299)
