"""Notifications of gathered transfers: what is written is read, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.failures import TransferError
from kvgauge.xfer.answers import Answers
from kvgauge.xfer.signals import ASK, MOVED, PLACED, READY, Signal, decode, encode, is_signal
from kvgauge.xfer.workload import Workload, staged

SMALL, LONG = st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)
SIGNALS = st.builds(
    Signal, kind=st.sampled_from([ASK, READY, MOVED, PLACED]), turn=SMALL, lane=SMALL, leg=SMALL, slot=SMALL,
    area=SMALL, work_ns=LONG, at_ns=LONG, gap_ns=LONG,
)  # fmt: skip


@given(SIGNALS)
def test_a_signal_is_read_as_it_was_written(signal):
    assert is_signal(encode(signal))
    assert decode(encode(signal)) == signal


@given(st.binary(max_size=80))
def test_other_bytes_are_refused_in_words_and_nothing_worse(note):
    with pytest.raises(TransferError, match="that no kvgauge of this version sends"):
        decode(note)


@given(SIGNALS, st.integers(0, 3), st.integers(1, 255))
def test_a_signal_without_its_mark_is_none(signal, at, change):
    note = bytearray(encode(signal))
    note[at] ^= change
    assert not is_signal(bytes(note))
    with pytest.raises(TransferError):
        decode(bytes(note))


WORK = Workload(name="w", operation="READ", strategy="gathered", blocks=2, block_bytes=64, depth=2)


@pytest.mark.parametrize("wrong", [{"kind": MOVED}, {"lane": 1}, {"slot": WORK.slots}, {"area": WORK.areas}])
def test_a_target_does_nothing_that_does_not_belong_to_its_row(wrong):
    asked = {"kind": ASK, "turn": 1, "lane": 0, "leg": 0, "slot": 0, "area": 0} | wrong
    with pytest.raises(TransferError, match="asked for what does not belong to this row"):
        Answers(WORK, [], {(0, 0): object()}, {}).answer([(0, Signal(**asked))])


def test_areas_of_a_group_lie_one_after_another_behind_those_of_the_groups_before():
    work = Workload(name="w", strategy="gathered", regions=3, blocks=2, block_bytes=64, depth=2, threads=2)
    assert staged(work, 1000, 1, 5).tolist() == [[1000 + 2 * 384, 384, 5], [1000 + 3 * 384, 384, 5]]
    assert work.staging_words("target") * 8 == 2 * 2 * 384
    assert work.staging_words("initiator") * 8 == 2 * 384
    assert np.array_equal(staged(work, 0, 0, 0)[:, 1], [384, 384])
