import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.load.offset import NO_STAMP, RealtimeOffset

S = 1_000_000_000


class Clocks:
    """A monotonic clock and one ahead of it, which can be set. Each reading takes 50 ns."""

    def __init__(self):
        self.now_ns, self.ahead_ns = 1_000 * S, 1_700_000_000 * S

    def monotonic(self):
        self.now_ns += 50
        return self.now_ns

    def realtime(self):
        return self.monotonic() + self.ahead_ns

    def stamp(self, at_ns):
        """What the kernel would have written at this moment, by the clock as it is set now."""
        return struct.pack("=qq", *divmod(at_ns + self.ahead_ns, S))


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def offset(clocks):
    return RealtimeOffset(clocks.monotonic, clocks.realtime)


def test_a_kernel_stamp_becomes_a_moment_of_the_drivers_clock(clocks, offset):
    for _ in range(5):
        clocks.now_ns += S
        offset.measure()
    arrived_ns = clocks.now_ns - S // 2
    (at_ns,) = offset.stamps_ns([arrived_ns + 7_000], [clocks.stamp(arrived_ns)])
    assert abs(at_ns - arrived_ns) <= offset.uncertainty_ns <= 50
    assert offset.steps == 0


def test_without_a_stamp_the_moment_of_the_read_stands(clocks, offset):
    clocks.now_ns += S
    offset.measure()
    read_ns = clocks.now_ns - 500
    assert offset.stamps_ns([read_ns, read_ns], [NO_STAMP, b"odd"]) == [read_ns, read_ns]
    assert offset.stamps_ns([], []) == []


def test_a_stamp_after_its_own_read_is_not_believed(clocks, offset):
    clocks.now_ns += S
    offset.measure()
    read_ns = clocks.now_ns - 5_000
    assert offset.stamps_ns([read_ns], [clocks.stamp(read_ns + 1_000)]) == [read_ns]


@pytest.mark.parametrize("step_ns", [S, -S, 3_600 * S, 2_000, -2_000])
def test_a_step_is_seen_and_reads_on_its_both_sides_keep_their_moments(clocks, offset, step_ns):
    clocks.now_ns += S
    before_ns = clocks.now_ns
    before = clocks.stamp(before_ns)
    clocks.now_ns += S
    offset.measure()
    clocks.now_ns += 10_000_000
    doubtful_ns = clocks.now_ns
    doubtful = clocks.stamp(doubtful_ns)
    clocks.ahead_ns += step_ns
    clocks.now_ns += 10_000_000
    offset.measure()
    clocks.now_ns += S
    after_ns = clocks.now_ns
    after = clocks.stamp(after_ns)
    clocks.now_ns += S
    offset.measure()
    assert offset.steps == 1
    reads_ns = [before_ns + 100_000, doubtful_ns + 100_000, after_ns + 100_000]
    found = offset.stamps_ns(reads_ns, [before, doubtful, after])
    for at_ns, true_ns, read_ns in zip(found, (before_ns, doubtful_ns, after_ns), reads_ns, strict=True):
        assert abs(at_ns - true_ns) <= 100 or at_ns == read_ns, "the truth, or our own stamp"
    assert found[1] == reads_ns[1], "nobody knows by which clock it was stamped"
    if abs(step_ns) == 3_600 * S:
        assert abs(found[0] - before_ns) <= 100
        assert abs(found[2] - after_ns) <= 100


def test_a_clock_that_is_bent_but_not_set_makes_no_step(clocks, offset):
    """NTP changes the pace of both clocks alike."""
    for pace in (1.0, 1.0005, 0.9995):
        for _ in range(100):
            clocks.now_ns += int(10_000_000 * pace)
            offset.measure()
    assert offset.steps == 0


@given(st.lists(st.tuples(st.integers(-(1 << 62), 1 << 62), st.binary(max_size=20)), max_size=20))
def test_nothing_the_kernel_could_say_raises_or_moves_an_arrival_past_its_read(reads):
    clocks = Clocks()
    offset = RealtimeOffset(clocks.monotonic, clocks.realtime)
    found = offset.stamps_ns([read_ns for read_ns, _ in reads], [stamp for _, stamp in reads])
    assert all(at_ns <= read_ns for at_ns, (read_ns, _) in zip(found, reads, strict=True))
