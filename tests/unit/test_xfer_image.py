"""Every byte is compared: what was moved, and what must not have changed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.xfer import image
from kvgauge.xfer.image import Expect, base, check, fill
from kvgauge.xfer.workload import Workload, pair, rows

WORK = Workload(name="w", regions=3, blocks=4, block_bytes=64, threads=2, initiators=1, targets=1)
GROUPS = (0, 1)  # of the initiator's pool, of the target's: thread 1


def scene(work=WORK, groups=GROUPS, slot=1, turn=5):
    """Target's pool (source) and initiator's (destination) after a right READ of one slot."""
    source = np.zeros(work.pool_words_target, dtype=np.uint64)
    fill(source, base("source", turn))
    pool = np.zeros(work.pool_words_initiator, dtype=np.uint64)
    fill(pool, base("destination", -1))
    words, number = work.block_bytes // 8, pair(work, *groups)
    for group, which, side in ((0, pool, "initiator"), (1, source, "target")):
        assert which.size % words == 0, (group, side)
    offset = groups[0] * work.slots * work.slot_blocks, groups[1] * work.slots * work.slot_blocks
    into, out = rows(work, "initiator", number, slot) + offset[0], rows(work, "target", number, slot) + offset[1]
    pool.reshape(-1, words)[into] = source.reshape(-1, words)[out]
    expect = Expect(
        work, "initiator", groups,
        now=base("source", turn), before=base("source", turn - 1), blank=base("destination", -1),
    )  # fmt: skip
    return pool, expect, into, source


def test_a_right_transfer_is_right():
    pool, expect, _, _ = scene()
    assert check(pool, expect, 1) == ({}, 0)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**9), st.integers(1, 255))
def test_any_byte_of_the_slot_that_is_another_is_found(place, change):
    pool, expect, into, _ = scene()
    slot_start = WORK.slot_blocks  # slot 1 of group 0
    region = pool.view(np.uint8)[slot_start * WORK.block_bytes : 2 * slot_start * WORK.block_bytes]
    at = place % len(region)
    region[at] ^= change
    row = slot_start + at // WORK.block_bytes
    kinds, outside = check(pool, expect, 1)
    if row in into:
        assert (sum(kinds.values()), outside) == (1, 0)
    else:
        assert (kinds, outside) == ({}, 1)


def test_another_slots_bytes_are_no_part_of_it():
    pool, expect, _, _ = scene()
    pool[: WORK.slot_blocks * 8] = 0
    assert check(pool, expect, 1) == ({}, 0)


@pytest.mark.parametrize("kind", ["zero", "stale", "untouched", "misplaced", "content"])
def test_a_wrong_block_is_called_by_its_kind(kind):
    pool, expect, into, source = scene()
    blocks = pool.reshape(-1, 8)
    row = int(into[2])
    if kind == "zero":
        blocks[row] = 0
    elif kind == "stale":
        blocks[row] += np.uint64((base("source", 4) - base("source", 5)) % 2**64)
    elif kind == "untouched":
        blank = np.zeros_like(pool)
        fill(blank, base("destination", -1))
        blocks[row] = blank.reshape(-1, 8)[row]
    elif kind == "misplaced":
        blocks[row] = source.reshape(-1, 8)[3]
    else:
        blocks[row, 5] += np.uint64(1)
    assert check(pool, expect, 1) == ({kind: 1}, 0)


def test_blocks_larger_than_a_chunk_are_compared_whole(monkeypatch):
    monkeypatch.setattr(image, "CHUNK_WORDS", 4)
    pool, expect, into, _ = scene()
    assert check(pool, expect, 1) == ({}, 0)
    pool.reshape(-1, 8)[int(into[0]), 7] ^= np.uint64(1)
    assert check(pool, expect, 1) == ({"content": 1}, 0)


def test_no_two_words_of_any_two_images_here_are_alike():
    images = []
    for holder, turn in (("a", 0), ("a", 1), ("b", 0), ("b", -1)):
        one = np.zeros(5000, dtype=np.uint64)
        fill(one, base(holder, turn))
        images.append(one)
    assert len(np.unique(np.concatenate(images))) == 4 * 5000
