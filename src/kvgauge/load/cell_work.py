"""What the loop asks for and gives while one cell is offered: requests built ahead, answers read when it is quiet.

In conversations an answer is read as soon as it has ended, since the next turn holds it.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from kvgauge.load.answers import Answer, Asked, answer_text, answer_texts, read_answer
from kvgauge.load.offset import RealtimeOffset
from kvgauge.load.prompts import Bodies
from kvgauge.load.sessions import Sessions
from kvgauge.load.shares import ALL, WHOLE, Numbers, Share
from kvgauge.load.site import Site
from kvgauge.load.stream import Incoming
from kvgauge.load.tally import Tally
from kvgauge.load.texts import Said
from kvgauge.load.work import Ended
from kvgauge.samples.records import Exchange

MEASURE_NS = 10_000_000  # a step of the clock takes the kernel's stamps from no more reads than come in this time
TICK_NS = 100_000_000
OVERDUE_NS = 900_000_000  # ticks and answers that waited this long for an idle moment are not put off again


class _Heard(NamedTuple):
    """An answer that was read and not handed over yet."""

    exchange: Exchange
    answer: Answer
    ended_ns: int
    sent: bool
    fresh: bool


class CellWork:
    """What the loop asks for and gives while one cell is offered."""

    def __init__(
        self,
        site: Site,
        api_path: str,
        bodies: Bodies | Sessions,
        template: Asked,
        *,
        on_exchange: Callable[[Exchange], None],
        tick: Callable[[], None] | None,
        stop: Callable[[], bool],
        slots: int,
        offset: RealtimeOffset,
        share: Share = WHOLE,
        warmups: int = 0,
        keep_text: Callable[[Said], None] | None = None,
    ) -> None:
        """share, warmups: which part of a cell with so much warm-up is ours; account: told of each exchange as well;
        measured: asked when a request ends, with its slot, due time, and whether it had a slot; None: all are"""
        self._offset, self._keep_text = offset, keep_text
        self._site, self._api_path, self._template = site, api_path, template
        self._bodies = bodies if isinstance(bodies, Bodies) else None
        self._sessions = bodies if isinstance(bodies, Sessions) else None
        self._on_exchange, self._tick, self.stop = on_exchange, tick, stop
        self.enough: Callable[[], bool] = lambda: False
        self._slots = slots
        self._warmup = False
        self._share, self._warmups = share, warmups
        self._part: Numbers = ALL
        self._built_to = self._end = self._first_seq = 0  # the first two count what is ours of this load
        self._session_seq = 0  # of conversations: turns are numbered as they are sent
        self._built: deque[tuple[int, bytes]] = deque()  # requests ready to be sent
        self._unread: deque[Ended | _Heard] = deque()  # answers nobody has looked at, or that were not handed over
        self._unread_new = 0  # of those, since the last idle()
        self._tick_ns = self._measured_ns = 0
        self._unmeasured: set[int] = set()  # numbers of ended requests that `measured` says are not
        self.measured: Callable[[int, int, bool], bool] | None = None
        self.tally = Tally()
        self.account: Callable[[Exchange, bool, bool], None] | None = None

    def begin(self, *, requests: int, warmup: bool, part: Numbers = ALL) -> None:
        """Expect this many requests, or sessions. Requests have the numbers of our part, after the cell's warm-up."""
        self._warmup, self._part = warmup, part
        self._built.clear()
        self._built_to, self._end = 0, requests
        self._first_seq = 0 if warmup else self._warmups
        if self._sessions is not None:
            self._sessions.expect(requests, warmup=warmup)
        while self._build(self._slots):
            pass

    def next_request(self, slot: int) -> tuple[int, bytes]:
        if self._sessions is not None:
            self._session_seq += 1
            return self._session_seq - 1, self._site.request("POST", self._api_path, self._sessions.next_body(slot))
        if not self._built:
            self._build(1)
        return self._built.popleft()

    def skip(self) -> int:
        if self._sessions is not None:
            self._sessions.skip()
            self._session_seq += 1
            return self._session_seq - 1
        if self._built:
            return self._built.popleft()[0]
        return self._next()

    def over(self, ended: Ended) -> None:
        if self.measured is not None and not self.measured(ended.slot, ended.due_ns, ended.cut != "unsent"):
            self._unmeasured.add(ended.seq)
        heard = self._sessions is not None and ended.cut != "unsent"
        self._unread.append(self._hear(self._sessions, ended) if heard and self._sessions is not None else ended)
        self._unread_new += 1

    def idle(self, now_ns: int, *, ready: bool) -> bool:
        if now_ns - self._measured_ns >= MEASURE_NS:
            self._measured_ns = now_ns
            self._offset.measure()
        if ready:
            self._catch_up(now_ns)
        elif self._tick is not None and now_ns - self._tick_ns >= TICK_NS:
            self._tick_ns = now_ns
            self._tick()
        elif self._unread:
            self._read_one()
        else:
            return self._build(2 * self._slots)
        return True

    def drain(self) -> None:
        """Read all that is left: nothing is under way any more."""
        while self._unread:
            self._read_one()
        if self._tick is not None:
            self._tick()

    def _catch_up(self, now_ns: int) -> None:
        """Sockets do not rest: read one answer, which delays the next read by no more than it takes; as many as have
        ended since, once the oldest has waited too long."""
        if self._unread:
            overdue = now_ns - self._unread[0].ended_ns > OVERDUE_NS
            for _ in range(min(max(1, self._unread_new if overdue else 1), len(self._unread))):
                self._read_one()
        self._unread_new = 0
        if self._tick is not None and now_ns - self._tick_ns > OVERDUE_NS:
            self._tick_ns = now_ns
            self._tick()

    def _build(self, most: int) -> bool:
        """Build one request ahead, unless `most` are ready or no other is expected. Returns whether it did."""
        if self._bodies is None:
            return self._sessions is not None and self._sessions.prepare(most)
        if len(self._built) >= most or self._built_to >= self._end:
            return False
        seq = self._next()
        self._built.append((seq, self._site.request("POST", self._api_path, self._bodies.body(seq))))
        return True

    def _next(self) -> int:
        self._built_to += 1
        return self._first_seq + self._part.number(self._built_to - 1)

    def _hear(self, sessions: Sessions, ended: Ended) -> _Heard:
        exchange, answer = self._read(ended, *sessions.place(ended.slot))
        sessions.heard(ended.slot, exchange, lambda: answer_text(answer))
        return _Heard(exchange, answer, ended.ended_ns, ended.sent_ns is not None, ended.fresh)

    def _read_one(self) -> None:
        ended = self._unread.popleft()
        if isinstance(ended, Ended):
            exchange, answer = self._read(ended)
            sent = ended.sent_ns is not None
        else:
            exchange, answer, sent = ended.exchange, ended.answer, ended.sent
        if self._keep_text is not None and exchange.failure is None and exchange.tokens_source == "events":
            self._keep_text(Said(cell=exchange.cell, seq=exchange.seq, texts=answer_texts(answer)))
        self.tally.add(exchange, sent=sent, fresh=ended.fresh)
        if self.account is not None:
            self.account(exchange, sent, ended.fresh)
        self._on_exchange(exchange)

    def _read(self, ended: Ended, session: int | None = None, turn: int | None = None) -> tuple[Exchange, Answer]:
        sent_ns = ended.sent_ns if ended.sent_ns is not None else ended.begun_ns
        asked = msgspec.structs.replace(
            self._template,
            seq=ended.seq,
            warmup=self._warmup or ended.seq in self._unmeasured,
            slot=self._share.slot(ended.slot),
            due_ns=ended.due_ns,
            sent_ns=sent_ns,
            fresh=ended.fresh,
            session=session,
            turn=turn,
        )
        incoming = ended.incoming if ended.incoming is not None else Incoming()
        self._unmeasured.discard(ended.seq)
        self._offset.measure()
        answer = incoming.answer(self._offset, ended_ns=ended.ended_ns, cut=ended.cut, detail=ended.detail)
        answer = msgspec.structs.replace(answer, body=self._site.hidden(answer.body))
        incoming.finish(incoming.end)
        exchange = read_answer(asked, answer)
        if self._site.proxy is not None:
            exchange = self._site.proxy.judged(exchange, tunnelled=self._site.tls is not None)
        return exchange, answer
