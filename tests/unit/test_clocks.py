"""A wall clock that is stepped, a machine that sleeps, and neither."""

import msgspec
import pytest

from kvgauge.evidence import clocks
from kvgauge.evidence.clocks import Clocks, changes, read_clocks

BEFORE = Clocks(wall_ns=1_700_000_000_000_000_000, boot_ns=9_000_000_000, monotonic_ns=5_000_000_000)
RUN_NS = 600_000_000_000


def later(*, stepped_ns=0, slept_ns=0):
    return Clocks(
        wall_ns=BEFORE.wall_ns + RUN_NS + slept_ns + stepped_ns,
        boot_ns=BEFORE.boot_ns + RUN_NS + slept_ns,
        monotonic_ns=BEFORE.monotonic_ns + RUN_NS,
    )


@pytest.mark.parametrize("stepped_ns", [0, clocks.STEP_NS, -clocks.STEP_NS])
def test_clocks_that_went_on_alike_are_nothing_to_tell(stepped_ns):
    assert changes(BEFORE, later(stepped_ns=stepped_ns)) == []


@pytest.mark.parametrize(("stepped_ns", "said"), [(3_600_000_000_000, "+3600.000"), (-clocks.STEP_NS - 1, "-0.100")])
def test_a_step_is_told_with_its_direction_and_that_no_figure_uses_that_clock(stepped_ns, said):
    (fact,) = changes(BEFORE, later(stepped_ns=stepped_ns))
    assert (fact.name, fact.value) == (
        "clock_step",
        f"the wall clock was stepped by {said} s during this run; nothing kvgauge measured uses it",
    )


def test_a_sleep_is_not_taken_for_a_step():
    (fact,) = changes(BEFORE, later(slept_ns=2_500_000_000))
    assert fact.name == "sleep"
    assert fact.value.startswith("the machine slept for 2.500 s during this run")
    assert [f.name for f in changes(BEFORE, later(slept_ns=RUN_NS, stepped_ns=-RUN_NS))] == ["clock_step", "sleep"]


def test_two_readings_of_this_machine_differ_by_the_time_between_them(monkeypatch):
    first, second = read_clocks(), read_clocks()
    assert changes(first, second) == []
    assert second.monotonic_ns > first.monotonic_ns
    true_ns = clocks.time.time_ns
    monkeypatch.setattr(clocks.time, "time_ns", lambda: true_ns() - 3_600_000_000_000)
    assert "stepped by -3600.0" in changes(first, read_clocks())[0].value
    assert msgspec.structs.asdict(first)
