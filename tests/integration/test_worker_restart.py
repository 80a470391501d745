"""A worker killed under load and started again: who hears of it, what goes on, and that everything comes back."""

import os
import signal
import time

import pytest

from kvgauge.failures import TargetError
from kvgauge.load.drive import Driver
from scene import held_blocks, make_cell, make_test

pytestmark = pytest.mark.nixl

TOLD_WITHIN_S = 3.0
UNDER_LOAD = make_cell(concurrency=8, requests=64, input_tokens=256, output_tokens=48, warmup_requests=8)
AFTER = make_cell(name="after", concurrency=4, requests=16, input_tokens=256, output_tokens=8, warmup_requests=0)


class Killer:
    """Stops one worker for a moment, so that it holds requests, then kills it. Called while the load goes on."""

    def __init__(self, target, name):
        self._target, self._pid = target, target.pids()[name]
        self._begin = time.monotonic() + 0.4
        self._stopped = False
        self.killed_ns = None
        self.moves = []

    def __call__(self):
        self.moves += self._target.phases()
        now = time.monotonic()
        if not self._stopped and now > self._begin:
            os.kill(self._pid, signal.SIGSTOP)
            self._stopped = True
        elif (
            self._stopped and self.killed_ns is None and now > self._begin + 1.0
        ):  # by then it holds requests, busy as the machine may be
            os.kill(self._pid, signal.SIGKILL)
            self.killed_ns = time.monotonic_ns()


def offer(driver, cell, tick):
    exchanges = []
    driver.run_cell(cell, run_id="r", seed=1, on_exchange=exchanges.append, tick=tick)
    return exchanges


@pytest.mark.parametrize(
    ("name", "backend", "operation"),
    [
        pytest.param("decode-0", "UCX", "READ", marks=pytest.mark.long),
        ("prefill-0", "UCX", "READ"),
        ("decode-0", "UCX", "WRITE"),
        ("decode-0", "LIBFABRIC", "READ"),  # of prefill: test_faults_peer.py, NIXL may never come back from it
    ],
)
def test_a_killed_workers_requests_fail_at_once_the_others_finish_and_it_works_again_after_its_restart(
    embedded, name, backend, operation
):
    test = make_test(backend=backend, operation=operation, prefill_workers=2, decode_workers=2)
    target, endpoint = embedded(test, UNDER_LOAD)
    killer = Killer(target, name)
    with Driver(endpoint.url, endpoint.model, host="h", request_timeout_s=20) as driver:
        exchanges = offer(driver, UNDER_LOAD, killer)
        failed = [e for e in exchanges if e.failure is not None]
        assert 0 < len(failed) <= 8  # what was on it when it was killed, and nothing later
        assert {e.failure for e in failed} <= {"status", "error_event"}
        if name == "decode-0":  # of prefill's, those whose transfer was under way are told by NIXL
            assert any(f"{name} was killed by signal 9 while it had this request" in e.detail for e in failed)
        assert all(name in e.detail or "KV transfer failed" in e.detail for e in failed)
        assert all(e.done_ns - killer.killed_ns < TOLD_WITHIN_S * 1e9 for e in failed)
        assert len(exchanges) == 72  # none is unaccounted for
        assert f"{name} was killed by signal 9" in target.trouble()

        target.restart(name)
        assert target.trouble() is None
        target.phases()
        after = []
        assert [e.failure for e in offer(driver, AFTER, lambda: after.extend(target.phases()))] == [None] * 16
    time.sleep(0.1)
    after += target.phases()
    assert {m.failure for m in after} == {None}
    assert ({m.prefill_worker for m in after}, {m.decode_worker for m in after}) == ({0, 1}, {0, 1})
    assert not [m for m in killer.moves if m.pieces_wrong]
    assert held_blocks(target) == {}
    assert any(fact.value == f"{name} was started again (1)" for fact in target.evidence().facts)


def test_requests_that_find_a_whole_side_down_are_told_so_and_a_second_death_is_survived_too(embedded):
    target, endpoint = embedded(make_test(), kv=False, compute=0.1)
    ask = make_cell(concurrency=1, requests=2, output_tokens=2, warmup_requests=0)
    with Driver(endpoint.url, endpoint.model, host="h", request_timeout_s=20) as driver:
        for _ in range(2):
            os.kill(target.pids()["decode-0"], signal.SIGKILL)
            until = time.monotonic() + 5
            while target.trouble() is None and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.1)
            refused = offer(driver, ask, target.phases)
            assert [(e.status, "no decode worker is up" in e.detail) for e in refused] == [(503, True)] * 2
            target.restart("decode-0")
            assert [e.failure for e in offer(driver, ask, target.phases)] == [None] * 2
    assert held_blocks(target) == {}


def test_only_a_worker_that_was_started_can_be_started_again(embedded):
    target, _ = embedded(make_test(), kv=False)
    with pytest.raises(TargetError, match=r"no worker decode-7 to start again: prefill-0, decode-0"):
        target.restart("decode-7")
