"""One cell that several load workers offer together: one start, one end, one account of it.

A worker that is killed, or falls silent, ends the cell for all of them: what it offered from then on would be another
load. What it had written down by then is kept.
"""

import select
import time
from collections.abc import Callable

import msgspec

from kvgauge.failures import LoadError, SamplesError
from kvgauge.load.drive import stagger_of
from kvgauge.load.kept import KeptReader
from kvgauge.load.member import Member
from kvgauge.load.orders import Done, Enough, Failed, FromWorker, Go, Ready, Stop, Wave, WaveOver
from kvgauge.load.tally import CellLoad, Tally
from kvgauge.load.texts import Said
from kvgauge.plan.records import Cell
from kvgauge.samples.records import Exchange

ASK_S, TAKE_S = 0.05, 0.1
GO_LEAD_NS = 20_000_000  # until a worker has heard of the start
WAVE_LEAD_NS = 2_000_000


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """What `Driver.run_cell` is given of its caller."""

    on_exchange: Callable[[Exchange], None]
    tick: Callable[[], None] | None
    stop: Callable[[], bool]
    enough: Callable[[], bool]
    keep_text: Callable[[Said], None] | None = None


class Hand(msgspec.Struct, kw_only=True):
    """One worker in this cell. ready: waits for Go. waved_ns: waits for the next wave, since then."""

    member: Member
    kept: KeptReader
    requests: int
    recorded: int = 0
    ready: bool = False
    typical_ns: int | None = None
    waved_ns: int | None = None
    done: Done | None = None
    lost: str | None = None

    @property
    def over(self) -> bool:
        return self.done is not None or self.lost is not None


class Joint:
    """silent_s: a worker that says nothing for so long is lost. stagger_s: as of `Driver`"""

    def __init__(
        self, cell: Cell, hands: list[Hand], calls: Calls, *, silent_s: float, stagger_s: float | None
    ) -> None:
        self._cell, self._hands, self._calls = cell, hands, calls
        self._silent_s, self._stagger_s = silent_s, stagger_s
        self._tally = Tally()
        self._stagger_ns = 0
        self._began = self._stopping = self._enough = False
        self._asked_s = self._taken_s = 0.0

    def offer(self) -> CellLoad:
        """The Offers are out: until the last is Done. raises LoadError, SamplesError, what the callbacks raise"""
        while not all(hand.over for hand in self._hands):
            self._wait()
            for hand in self._hands:
                if not hand.over:
                    self._hear(hand)
            self._ask()
            self._move_on()
            if (now_s := time.monotonic()) - self._taken_s >= TAKE_S:
                self._taken_s = now_s
                self._take()
        self._take()
        return self._load()

    @property
    def lost(self) -> str | None:
        """What became of the workers that did not reach the end; None: all did."""
        said = [
            f"{hand.lost}: {hand.recorded} of its {hand.requests} requests are recorded, what else it had under way is "
            "lost, and the cell was ended"
            for hand in self._hands
            if hand.lost is not None
        ]
        return "; ".join(said) or None

    def _wait(self) -> None:
        poll = select.poll()
        for hand in self._hands:
            if not hand.over:
                poll.register(hand.member.fileno(), select.POLLIN)
        poll.poll(ASK_S * 1e3)

    def _hear(self, hand: Hand) -> None:
        for message in hand.member.heard():
            self._heed(hand, message)
        if hand.over:
            return
        if hand.member.gone:
            hand.lost = hand.member.how()
        elif time.monotonic() - hand.member.heard_s > self._silent_s:
            hand.lost = (
                f"{hand.member.name} said nothing for {self._silent_s:g} s ({hand.member.state()}) and was killed"
            )
            hand.member.kill()
        if hand.lost is not None:
            self._stop()

    def _heed(self, hand: Hand, message: FromWorker) -> None:
        if isinstance(message, Failed):
            raise (SamplesError if message.disk else LoadError)(f"{hand.member.name}: {message.said}")
        if isinstance(message, Ready):
            hand.ready, hand.typical_ns = True, message.typical_ns
        elif isinstance(message, WaveOver):
            hand.waved_ns = message.ended_ns
        elif isinstance(message, Done):
            hand.done = message

    def _ask(self) -> None:
        if (now_s := time.monotonic()) - self._asked_s < ASK_S:
            return
        self._asked_s = now_s
        if not self._stopping and self._calls.stop():
            self._stop()
        if self._began and not self._enough and self._calls.enough():
            self._enough = True
            self._tell(Enough())

    def _move_on(self) -> None:
        """Begin once all are ready; the next wave once the last is over everywhere."""
        waiting = [hand for hand in self._hands if not hand.over]
        if not waiting or self._stopping:
            return
        if not self._began and all(hand.ready for hand in waiting):
            known = sorted(hand.typical_ns for hand in waiting if hand.typical_ns is not None)
            self._stagger_ns = stagger_of(self._cell, known[(len(known) - 1) // 2] if known else None, self._stagger_s)
            self._began = True
            self._tell(Go(start_ns=time.monotonic_ns() + GO_LEAD_NS, stagger_ns=self._stagger_ns))
        elif self._began and all(hand.waved_ns is not None for hand in waiting):
            next_ns = time.monotonic_ns() + WAVE_LEAD_NS
            self._tell(Wave(due_ns=None if self._enough else next_ns))
            for hand in waiting:
                hand.waved_ns = None

    def _stop(self) -> None:
        self._stopping = True
        self._tell(Stop())

    def _tell(self, message: Go | Wave | Enough | Stop) -> None:
        for hand in self._hands:
            if not hand.over:
                hand.member.say(message)

    def _take(self) -> None:
        for hand in self._hands:
            for kept in hand.kept.take():
                hand.recorded += not kept.exchange.warmup
                if kept.said is not None and self._calls.keep_text is not None:
                    self._calls.keep_text(kept.said)
                self._tally.add(kept.exchange, sent=kept.sent, fresh=kept.fresh)
                self._calls.on_exchange(kept.exchange)
        if self._calls.tick is not None:
            self._calls.tick()

    def _load(self) -> CellLoad:
        done = [hand.done for hand in self._hands if hand.done is not None]
        load = self._tally.cell_load(
            self._cell.name,
            "monotonic",
            cpu_ns=int(max((each.cpu_s for each in done), default=0.0) * 1e9),
            stagger_ns=self._stagger_ns,
            interrupted=len(done) < len(self._hands) or not all(each.finished for each in done),
        )
        offers = [each.open for each in done if each.open is not None]
        return msgspec.structs.replace(
            load,
            open=self._tally.joint_offer(offers) if offers and load.offered else None,
            enough=self._enough,
            clock_steps=max((each.clock_steps for each in done), default=0),
            workers=len(self._hands),
            lost=self.lost,
        )
