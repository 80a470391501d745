"""`warmup: steady` as a whole, on servers whose truth is known, with fixed seeds: when it begins to measure, and what is
said of what was measured. overhead/steady.py --online is the same with more replicates."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from kvgauge.plan.records import UntilSteady

spec = importlib.util.spec_from_file_location("steady_bench", Path(__file__).parents[2] / "overhead" / "steady.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

REPLICATES = 12


def outcomes(kind, seed=3, **steady):
    rng = np.random.default_rng(seed)
    rows = [bench.online(kind, rng, UntilSteady(**({"limit_s": 120} | steady))) for _ in range(REPLICATES)]
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("kind", ["warm", "step of 4 s", "step of 12 s", "exponential decay", "compile of 10 s"])
def test_what_settles_is_measured_after_it_has_and_its_mean_is_that_of_a_warm_server(kind):
    began_s, holds, bias_pct, marked, _ = outcomes(kind)
    assert np.all(began_s >= bench.ONLINE[kind][1])
    assert abs(np.mean(bias_pct)) < 3 * 2.2 / np.sqrt(REPLICATES), "2.2 %: of one mean of 200 such requests"
    assert np.mean(holds) >= 0.75
    assert np.mean(marked) <= 0.25


def test_a_step_that_looks_steady_for_long_is_measured_into_and_then_found_out():
    began_s, _, bias_pct, marked, invalid = outcomes("step of 30 s")
    assert np.mean(began_s < 30) > 0.5, "nothing before the step tells of it"
    assert np.mean(bias_pct) > 5
    assert np.mean(marked) >= 0.75
    assert np.mean(invalid) >= 0.75


def test_with_at_least_s_it_is_not_measured_into():
    began_s, _, bias_pct, marked, _ = outcomes("step of 30 s", at_least_s=40)
    assert np.all(began_s >= 40)
    assert abs(np.mean(bias_pct)) < 2
    assert np.mean(marked) <= 0.25


def test_a_limit_below_what_ten_batches_take_ends_unsteady_and_says_how_much_is_needed():
    world = bench.World(bench.ONLINE["warm"][0], np.random.default_rng(1), UntilSteady(limit_s=6))
    settled, found = world.settled, world.judged()
    assert (settled.state, found.warm_up.state) == ("unsteady", "unsteady")
    assert "raise limit_s to 1" in settled.reason
    assert 6 <= settled.took_ns / 1e9 < 7
    assert "not steady after 6 s" in found.metrics["ttft_ms_mean"].note
