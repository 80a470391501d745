"""Blocks corrupted in the memory of a running prefill worker: found, named, told to the client, and alone affected."""

import os
import signal
import time

import pytest

from kvgauge.judge import Measured, judge
from kvgauge.load.drive import Driver
from pools import OpenPool, flip, put_stale, swap, zero
from scene import held_blocks, make_cell, make_run, make_test

pytestmark = pytest.mark.nixl

TOKENS, BLOCKS, REGIONS = 64, 4, 56  # Qwen3-0.6B: 28 layers, K and V
CELL = make_cell(
    load="wave", concurrency=3, requests=3, input_tokens=TOKENS, output_tokens=2, warmup_requests=0
)  # fmt: skip
MIDDLE = 100  # a word between the stamps
FAULTS = [
    ("a bit of the nonce", flip(0), "1 stale", 1),
    ("a bit of the digest", flip(3), "1 misplaced", 1),
    ("a bit of the stamp at the end", flip(-2), "1 cut", 1),
    ("a bit between the stamps", flip(MIDDLE), "1 content", 1),
    ("two blocks swapped", swap, f"{2 * REGIONS} misplaced", 2 * REGIONS),
    ("a block of an earlier request", put_stale, f"{REGIONS} stale", REGIONS),
    ("a block of zeros", zero, f"{REGIONS} zero", REGIONS),
]


class Corruptor:
    """Called while the load goes on: once prefill has stored requests whole, corrupts one's blocks.

    held     the worker that is stopped meanwhile, so that nothing is transferred before
    at_once  False: it is stopped already, so every request waits. True (prefill): stopped as soon as blocks are there
    """

    def __init__(self, target, pool, corrupt, *, held, at_once=False, full=True):
        self._target, self._pool, self._corrupt = target, pool, corrupt
        self._held, self._at_once, self._full = target.pids()[held], at_once, full
        self._before = pool.holders()
        self.nonce, self.moves = None, []
        if not at_once:
            os.kill(self._held, signal.SIGSTOP)

    def __call__(self):
        self.moves += self._target.phases()
        if self.nonce is not None:
            return
        new = {n: blocks for n, blocks in self._pool.holders().items() if n not in self._before}
        if len(new) < (1 if self._at_once else CELL.requests) or any(len(blocks) < BLOCKS for blocks in new.values()):
            return
        if self._at_once:
            os.kill(self._held, signal.SIGSTOP)
        try:
            if all(self._pool.is_whole(n, blocks, full=self._full) for n, blocks in new.items()):
                self.nonce = min(new)
                earlier = next(blocks for blocks in self._before.values() if len(blocks) == BLOCKS)
                self._corrupt(self._pool, new[self.nonce], earlier)
        finally:
            if self._at_once or self.nonce is not None:
                os.kill(self._held, signal.SIGCONT)

    def all_moves(self):
        until = time.monotonic() + 5
        while len(self.moves) < CELL.requests and time.monotonic() < until:
            self.moves += self._target.phases()
            time.sleep(0.01)
        return self.moves


def offer(driver, tick):
    exchanges = []
    load = driver.run_cell(CELL, run_id="r1", seed=time.monotonic_ns(), on_exchange=exchanges.append, tick=tick)
    return load, exchanges


def check_only_one_failed(corruptor, exchanges, kind, pieces):
    failed = [e for e in exchanges if e.failure is not None]
    assert [(e.failure, e.status) for e in failed] == [("status", 500)]
    line = f"{pieces} of {REGIONS * BLOCKS} KV pieces wrong ({kind})"
    assert f"KV transfer failed: {line}" in failed[0].detail
    moves = corruptor.all_moves()
    assert len(moves) == CELL.requests
    wrong = [m for m in moves if m.pieces_wrong]
    assert [(m.request_id, m.pieces_wrong, m.failure) for m in wrong] == [(f"{corruptor.nonce:016x}", pieces, line)]
    assert wrong[0].transferred_ns is not None  # NIXL said DONE: only the check saw it
    assert [e.tokens_out for e in exchanges if e.failure is None] == [CELL.output_tokens] * 2


def check_judged_invalid(test, target, offered, moves):
    loads = [(CELL, load, exchanges) for load, exchanges in offered]
    exchanges = [exchange for _, _, each in loads for exchange in each]
    measured = Measured(exchanges=exchanges, transfers=moves, loads=loads, seed=3, evidence=target.evidence())
    results = judge(make_run(test, CELL), measured)
    assert {result.status for result in results} == {"invalid"}
    for result in results:
        assert any(reason.startswith(f"wrong KV in {len(loads)} of ") for reason in result.reasons), result.reasons


@pytest.mark.parametrize("backend", ["UCX", "LIBFABRIC"])
def test_each_kind_of_corrupted_block_fails_its_request_by_name_and_no_other(embedded, backend):
    test = make_test(backend=backend, full_check=True)
    target, endpoint = embedded(test, CELL, compute=0.1)
    pool = OpenPool(target, "prefill-0")
    offered, moves = [], []
    with Driver(endpoint.url, endpoint.model, host="h", request_timeout_s=20) as driver:
        offer(driver, target.phases)
        for what, corrupt, kind, pieces in FAULTS:
            corruptor = Corruptor(target, pool, corrupt, held="decode-0")
            load, exchanges = offer(driver, corruptor)
            assert corruptor.nonce is not None, what
            check_only_one_failed(corruptor, exchanges, kind, pieces)
            offered.append((load, exchanges))
            moves += corruptor.moves
        assert held_blocks(target) == {}
        assert [e.failure for e in offer(driver, target.phases)[1]] == [None] * 3
    pool.close()
    check_judged_invalid(test, target, offered, moves)
    assert held_blocks(target) == {}


@pytest.mark.parametrize("backend", ["UCX", "LIBFABRIC"])
def test_a_block_corrupted_before_prefill_writes_it_is_found_by_decode_too(embedded, backend):
    test = make_test(backend=backend, operation="WRITE")
    target, endpoint = embedded(test, CELL, compute=60)  # 0.4 modelled seconds between storing and sending
    pool = OpenPool(target, "prefill-0")
    with Driver(endpoint.url, endpoint.model, host="h", request_timeout_s=30) as driver:
        offer(driver, target.phases)
        for _ in range(3):  # on a busy machine we may come when the blocks are on their way already
            corruptor = Corruptor(target, pool, put_stale, held="prefill-0", at_once=True, full=False)
            load, exchanges = offer(driver, corruptor)
            if any(e.failure for e in exchanges):
                break
        check_only_one_failed(corruptor, exchanges, f"{REGIONS} stale", REGIONS)
        assert held_blocks(target) == {}
        assert [e.failure for e in offer(driver, target.phases)[1]] == [None] * 3
    pool.close()
    check_judged_invalid(test, target, [(load, exchanges)], corruptor.moves)
    assert held_blocks(target) == {}


def test_without_full_check_a_bit_between_the_stamps_is_not_seen_as_the_plan_page_says(embedded):
    target, endpoint = embedded(make_test(), CELL, compute=0.1)
    pool = OpenPool(target, "prefill-0")
    with Driver(endpoint.url, endpoint.model, host="h", request_timeout_s=20) as driver:
        offer(driver, target.phases)
        corruptor = Corruptor(target, pool, flip(MIDDLE), held="decode-0", full=False)
        assert [e.failure for e in offer(driver, corruptor)[1]] == [None] * 3
        assert corruptor.nonce is not None
    pool.close()
