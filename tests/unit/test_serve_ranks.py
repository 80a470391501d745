"""Real pools of small models, moved by agents that copy memory: every byte where it belongs, or found out."""

import numpy as np
import pytest

from kvgauge.builds.records import Build
from kvgauge.failures import TransferError
from kvgauge.kv import libraries, stamps
from kvgauge.kv.layout import PoolShape, from_decode, from_prefill, heads_of, piece_heads
from kvgauge.kv.stamps import Identity
from kvgauge.serve import ranks as module
from kvgauge.serve.ranks import Ranks, make_pool, pool_shape

BUILD = Build(name="b", version="1.5.0", folder="/b", module="m", preload=(), libcuda="", sha256={})
WHO = Identity(nonce=77, digest=5)
THERE, HERE = np.array([6, 1, 3], dtype=np.int32), np.array([0, 7, 4], dtype=np.int32)


@pytest.fixture
def sides(worker_spec, tiny, nixl_class, monkeypatch):
    """Ranks of a prefill and a decode worker that share one stand-in for NIXL."""

    def make(prefill_tp=1, decode_tp=1, api=None, **changes):
        api = api or nixl_class()
        monkeypatch.setattr(libraries, "load", lambda _build, _backend: api)
        common = {"prefill_tp": prefill_tp, "decode_tp": decode_tp, "blocks": 8, "backend": "UCX", "build": BUILD}
        prefill = Ranks(worker_spec("prefill", tp=prefill_tp, **common | changes), tiny)
        decode = Ranks(worker_spec("decode", tp=decode_tp, **common | changes), tiny)
        return prefill, decode

    return make


def carry(mover, limit=200):
    for _ in range(limit):
        if ended := mover.progress():
            return ended[0]
    raise AssertionError("the move does not end")


def pull(prefill, decode):
    decode.mover.connect(prefill.info, [from_decode(share) for share in decode.shares])
    decode.mover.begin(WHO.nonce, 0, "READ", (HERE, THERE), 1 << 62)
    return carry(decode.mover)


def push(prefill, decode):
    prefill.mover.connect(decode.info, [from_prefill(share) for share in prefill.shares])
    prefill.mover.begin(WHO.nonce, 0, "WRITE", (THERE, HERE), 1 << 62)
    return carry(prefill.mover)


@pytest.mark.parametrize("way", [pull, push])
@pytest.mark.parametrize(("prefill_tp", "decode_tp"), [(1, 1), (2, 2), (1, 4), (4, 2), (8, 4), (2, 8)])
def test_every_piece_is_found_right_whoever_moves_it_and_however_ranks_differ(sides, way, prefill_tp, decode_tp):
    prefill, decode = sides(prefill_tp, decode_tp, full_check=True)
    prefill.write(WHO, THERE)
    move = way(prefill, decode)
    assert (move.failure, move.bytes_moved) == (None, move.bytes_listed)
    checked = decode.check(WHO, HERE)
    assert (checked.wrong, checked.faults, checked.digest) == (0, {}, WHO.digest)
    assert checked.pieces == move.descriptors == len(decode.shares) * decode.shape.regions * len(HERE)
    told = prefill if way is pull else decode
    assert told.poll() == [WHO.nonce] * len(decode.shares)
    assert told.poll() == []


@pytest.mark.parametrize(("prefill_tp", "decode_tp"), [(1, 4), (4, 1), (2, 4), (4, 2), (8, 2)])
def test_each_decode_rank_holds_the_heads_that_are_its_own(sides, tiny, prefill_tp, decode_tp):
    prefill, decode = sides(prefill_tp, decode_tp)
    prefill.write(WHO, THERE)
    pull(prefill, decode)
    group = piece_heads(prefill_tp, decode_tp, tiny.kv_heads)
    for rank, pool in enumerate(decode.pools):
        for piece in range(decode.shape.pieces):
            written_by = int(pool.words[0, HERE[0], piece, 1])
            their_rank, their_piece = written_by >> 28 & 0xFFF, written_by >> 16 & 0xFFF
            theirs = heads_of(their_rank, prefill_tp, tiny.kv_heads)[their_piece * group]
            assert theirs == heads_of(rank, decode_tp, tiny.kv_heads)[piece * group]


def test_blocks_that_were_never_moved_are_zero(sides):
    _, decode = sides()
    checked = decode.check(WHO, HERE)
    assert checked.faults == {"zero": checked.pieces}
    assert checked.digest is None


def test_blocks_of_an_earlier_request_are_stale(sides):
    prefill, decode = sides()
    prefill.write(Identity(nonce=76, digest=5), THERE)
    pull(prefill, decode)
    checked = decode.check(WHO, HERE)
    assert checked.faults == {"stale": checked.pieces}


def test_two_blocks_exchanged_are_misplaced_in_every_region(sides):
    prefill, decode = sides(2, 2)
    prefill.write(WHO, THERE)
    pull(prefill, decode)
    checked = decode.check(WHO, HERE[[1, 0, 2]])
    assert checked.faults == {"misplaced": 2 * len(decode.shares) * decode.shape.regions}


def test_a_bit_between_the_stamps_is_seen_by_the_full_check_only(sides):
    for full in (False, True):
        prefill, decode = sides(full_check=full)
        prefill.write(WHO, THERE)
        pull(prefill, decode)
        words = decode.pools[0].words
        words[1, HERE[2], 0, stamps.STAMP_WORDS] ^= np.uint64(1)
        assert decode.check(WHO, HERE).faults == ({"content": 1} if full else {})


def test_agents_are_named_by_role_worker_and_rank_and_start_up_is_timed(sides, nixl_class):
    api = nixl_class()
    prefill, _ = sides(2, 1, api)
    assert list(api.agents) == ["prefill-0-rank-0", "prefill-0-rank-1", "decode-0-rank-0"]
    assert set(prefill.start_ns) == {"load", "agents", "pool", "register"}
    assert [rank.metadata for rank in prefill.info.ranks] == [b"prefill-0-rank-0", b"prefill-0-rank-1"]
    assert [rank.address for rank in prefill.info.ranks] == [pool.address for pool in prefill.pools]


def test_without_a_backend_there_is_no_memory_and_nothing_to_poll(worker_spec, tiny):
    ranks = Ranks(worker_spec(backend=None), tiny)
    assert (ranks.pools, ranks.agents, ranks.poll(), ranks.info.ranks) == ([], [], [], ())


def test_a_pool_has_every_page_present_and_zero(tiny, worker_spec, monkeypatch):
    shape = pool_shape(tiny, worker_spec(blocks=64))
    pool = make_pool(shape)
    assert pool.words.nbytes == shape.size_bytes
    assert not pool.words.any()
    monkeypatch.setattr(module, "MADV_POPULATE_WRITE", 9999)  # as a kernel before 5.14 answers
    touched = make_pool(shape)
    assert touched.words.shape == (4, 64, 1, shape.piece_bytes // 8)
    assert not touched.words.any()


def test_a_pool_larger_than_any_memory_says_how_large_it_was_to_be():
    with pytest.raises(TransferError, match=r"no memory for a KV pool of [0-9]+ MiB"):
        make_pool(PoolShape(regions=1 << 20, blocks=1 << 20, pieces=8, piece_bytes=1 << 14))
