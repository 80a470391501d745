"""Workloads: every byte of a transfer is listed exactly once, on both sides, and nothing else is."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.models import MODELS, blocks, descriptor_bytes, possible_tps, transfer_bytes
from kvgauge.models import descriptors as listed_by
from kvgauge.xfer.workload import (
    Workload,
    descriptors,
    merged,
    moved_blocks,
    of_model,
    pair,
    parse_size,
    refusal,
    rows,
    size_text,
)


def small(**changes):
    return msgspec.structs.replace(Workload(name="w", blocks=3, block_bytes=16), **changes)


works = st.builds(
    Workload,
    name=st.just("w"),
    pattern=st.sampled_from(["scattered", "contiguous"]),
    ranks=st.integers(1, 3),
    regions=st.integers(1, 5),
    blocks=st.integers(1, 9),
    block_bytes=st.integers(1, 8).map(lambda words: 8 * words),
    depth=st.integers(1, 4),
    threads=st.integers(1, 3),
    initiators=st.integers(1, 3),
    targets=st.integers(1, 3),
)


def intervals(work, base, group, side, number):
    """[start, end) of every block that the transfers of one group list, slot by slot."""
    table = descriptors(work, base, group, 0).astype(np.int64)
    return [
        [(int(a), int(a + size)) for a, size, _ in table[rows(work, side, number, slot)]] for slot in range(work.slots)
    ]


@settings(deadline=None, max_examples=60)
@given(works, st.data())
def test_every_byte_is_listed_exactly_once_and_no_two_transfers_share_one(work, data):
    work = msgspec.structs.replace(work, depth=min(work.depth, 2), block_bytes=1 << 20)  # few slots
    side = data.draw(st.sampled_from(["initiator", "target"]))
    groups = work.groups_initiator if side == "initiator" else work.groups_target
    words = work.pool_words_initiator if side == "initiator" else work.pool_words_target
    base, seen = 4096, []
    for group in range(groups):
        number = pair(work, group, 0) if side == "initiator" else pair(work, 0, group)
        for one in intervals(work, base, group, side, number):
            assert sum(end - start for start, end in one) == work.regions * work.blocks * work.block_bytes
            seen += one
    seen.sort()
    assert all(before[1] <= after[0] for before, after in pairwise(seen))
    assert seen[0][0] >= base
    assert seen[-1][1] <= base + words * 8


@settings(deadline=None, max_examples=60)
@given(works)
def test_both_sides_of_a_pair_list_as_many_blocks_in_an_order_of_their_own(work):
    number = pair(work, work.groups_initiator - 1, work.groups_target - 1)
    for side in ("initiator", "target"):
        chosen = moved_blocks(work, side, number)
        assert len(set(chosen.tolist())) == work.blocks
        assert chosen.max() < work.room
        assert (chosen == moved_blocks(work, side, number)).all()
    numbers = {pair(work, i, t) for i in range(work.groups_initiator) for t in range(work.groups_target)}
    assert len(numbers) == work.groups_initiator * work.groups_target


@given(st.lists(st.integers(0, 30), unique=True, min_size=1), st.randoms())
def test_merging_counts_runs_that_are_neighbours_on_both_sides(ours, random):
    theirs = list(ours)
    random.shuffle(theirs)
    runs = 1
    for at in range(1, len(ours)):
        runs += not (ours[at] == ours[at - 1] + 1 and theirs[at] == theirs[at - 1] + 1)
    assert merged(ours, theirs) == runs


def test_a_contiguous_transfer_merges_into_one_descriptor_a_region_and_a_scattered_one_into_few():
    work = small(regions=4, blocks=32, pattern="contiguous")
    assert merged(rows(work, "initiator", 0, 0), rows(work, "target", 0, 0)) == 4
    scattered = small(regions=4, blocks=32)
    assert merged(rows(scattered, "initiator", 0, 1), rows(scattered, "target", 0, 1)) > 100
    assert merged([], []) == 0


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_models_transfer_is_what_the_table_of_models_says(name):
    model = MODELS[name]
    for tp in possible_tps(model):
        work = of_model(model, tokens=512, tp=tp, dtype="bf16")
        assert work.block_bytes == descriptor_bytes(model, "bf16", tp, tp)
        assert work.transfer_bytes == transfer_bytes(model, "bf16", 512, tp)
        assert work.descriptors == listed_by(model, 512, tp, tp)
        assert work.blocks == blocks(512)


def test_fewer_layers_move_less():
    work = of_model(MODELS["Llama-3.1-8B"], tokens=16, tp=1, dtype="fp8", layers=2)
    assert (work.regions, work.name) == (4, "Llama-3.1-8B 16 tok 2 layers")


def test_a_batch_takes_bounded_memory_however_large_a_transfer_is():
    for ranks in (1, 8):
        work = of_model(MODELS["Llama-3.1-70B"], tokens=4096, tp=ranks, dtype="bf16")
        assert work.slots == 1
        assert work.memory_bytes["target"] <= 1.6 * work.transfer_bytes
    assert small(block_bytes=8).slots == 128
    assert small(block_bytes=1 << 30, depth=7).slots == 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks": 0}, "at least 1"),
        ({"block_bytes": 12}, "multiple of 8"),
        ({"block_bytes": 0}, "multiple of 8"),
        ({"blocks": 1 << 25}, "blocks a pair of agents"),
        ({"strategy": "gathered", "memory": "VRAM", "block_bytes": 24}, "units of 16 bytes"),
        ({"ranks": 65}, "at most 64"),
        ({"depth": 1025}, "depth of 1024"),
        ({"blocks": 64, "block_bytes": 1 << 30}, "MiB on one side"),
    ],
)
def test_a_workload_that_cannot_be_is_refused_with_the_reason(changes, said):
    assert said in refusal(small(**changes))
    assert refusal(small()) is None


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("4KiB", 4096), ("64k", 65536), ("1M", 1 << 20), ("2GiB", 2 << 30), (" 8b ", 8)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1.5M", "1e3", "4 KiB", "9" * 16, "٣"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="expected bytes"):
        parse_size(text)


def test_sizes_are_said_in_the_largest_unit_that_is_whole():
    assert [size_text(size) for size in (100, 4096, 3 << 20, 1 << 30, 1536)] == [
        "100 B", "4 KiB", "3 MiB", "1 GiB", "1536 B",
    ]  # fmt: skip
