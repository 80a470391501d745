"""What the loop asks for and gives while one load goes to two arms: each arm has its own `CellWork`."""

from collections.abc import Callable

import msgspec

from kvgauge.load.cell_work import CellWork
from kvgauge.load.pairs import ARMS, Half, InPairs, Order
from kvgauge.load.work import Ended
from kvgauge.samples.records import Exchange


class PairedWork:
    """Two arms' work as one. Slot 2s + arm of the loop is slot s of that arm; a request's number says its arm.

    warmups  requests of the warm-up, of both arms together
    """

    def __init__(
        self, arms: tuple[CellWork, CellWork], order: Order, *, stop: Callable[[], bool], warmups: int
    ) -> None:
        self.arms, self.stop = arms, stop
        self.enough: Callable[[], bool] = lambda: False
        self._order, self._warmups = order, warmups
        self._arrivals: InPairs | None = None
        self._pair_of: dict[int, int] = {}  # of the requests that are under way or unread
        self._turn = 0
        self.given_up = [0, 0]

    def begin(self, arrivals: InPairs, *, requests: int, warmup: bool) -> None:
        """Expect so many requests of each arm, at most, as these arrivals give them."""
        self._arrivals = arrivals
        self._pair_of.clear()
        pairs_before = 0 if warmup else self._warmups // ARMS
        for arm, work in enumerate(self.arms):
            work.begin(requests=requests, warmup=warmup, part=Half(self._order, arm, pairs_before))

    def pair_of(self, exchange: Exchange) -> int:
        """The pair of a measured exchange, which is asked for once."""
        return self._pair_of.pop(exchange.seq)

    def next_request(self, slot: int) -> tuple[int, bytes]:
        assert self._arrivals is not None
        seq, request = self.arms[slot % ARMS].next_request(slot // ARMS)
        self._pair_of[seq] = self._arrivals.pair(slot)
        return seq, request

    def skip(self) -> int:
        assert self._arrivals is not None
        pair, arm = self._arrivals.lost()
        seq = self.arms[arm].skip()
        self.given_up[arm] += 1
        self._pair_of[seq] = pair
        return seq

    def over(self, ended: Ended) -> None:
        self.arms[self._order.arm(ended.seq)].over(msgspec.structs.replace(ended, slot=ended.slot // ARMS))

    def idle(self, now_ns: int, *, ready: bool) -> bool:
        """The arms take turns, so that neither one's answers are read later than the other's."""
        self._turn = 1 - self._turn
        if self.arms[self._turn].idle(now_ns, ready=ready):
            return True
        return self.arms[1 - self._turn].idle(now_ns, ready=ready)

    def drain(self) -> None:
        for work in self.arms:
            work.drain()
