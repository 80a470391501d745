"""Conversations under way: whose turn it is in each slot, and what has been said. Pure.

A session begins in a slot and stays there until its last turn has ended, its delays included. Turn k + 1 holds all
that was said before: over chat as messages, over completions as one text. What the model said is its own answer, or
the one a dataset recorded.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from random import Random

import msgspec

from kvgauge.load.prompts import body_of, prefixed_tokens, text_of, unique_tokens, words
from kvgauge.plan.conversation import turns_most
from kvgauge.plan.dataset import DatasetPrompt, count_words
from kvgauge.plan.records import Cell, Conversation
from kvgauge.plan.trace import FileRequest
from kvgauge.samples.records import Exchange

HISTORY_CHARACTERS_MAX = 4 << 20
NS_PER_MS = 1_000_000
BETWEEN = "\n"  # what was said, in a completions prompt


class SessionCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the measured sessions of a cell; the others add up to `begun`.

    whole   answered to their last turn
    failed  ended by a request that failed
    full    ended because the next turn would not have fitted into the model's context
    cut     ended by the end of the cell
    """

    begun: int
    whole: int
    failed: int
    full: int
    cut: int


class Session:
    """One conversation under way.

    turns      how many it has
    turn       of the request that is under way or comes next, from 1 on
    next_text  what the user says in the turn after that; None: not made yet
    """

    __slots__ = ("answers", "body", "delays_ns", "next_text", "number", "said", "tokens_out", "turn", "turns")

    def __init__(
        self, number: int, first: str, answers: tuple[str, ...], delays_ns: tuple[int, ...], tokens_out: int
    ) -> None:
        self.number, self.answers, self.delays_ns, self.tokens_out = number, answers, delays_ns, tokens_out
        self.turn, self.turns = 1, len(delays_ns) + 1
        self.said: list[tuple[str, str]] = [("user", first)]
        self.next_text: str | None = None
        self.body = b""


class Sessions:
    """The sessions of one cell, by number as they begin. The same seed, cell and number give the same user's turns.

    requests        those of the dataset that the cell sends
    known           words that texts are made of; None: all of ours
    added           tokens that the server adds to a first text: it is made so much shorter
    context_tokens  most that a prompt and its answer may have together; None: not known
    """

    def __init__(
        self,
        cell: Cell,
        conversation: Conversation,
        *,
        model: str,
        seed: int,
        requests: tuple[FileRequest, ...] = (),
        added: int = 0,
        known: tuple[str, ...] | None = None,
        context_tokens: int | None = None,
    ) -> None:
        self._cell, self._conversation, self._model, self._seed = cell, conversation, model, seed
        self._requests, self._added, self._context_tokens = requests, added, context_tokens
        self._known = known or words()
        self._ready: deque[Session] = deque()  # made and not begun
        self._under_way: dict[int, Session] = {}  # by slot
        self._wanting: deque[Session] = deque()  # under way, the text of the next turn not made
        self._made = self._end = 0
        self._warmup = False
        self._begun = self._whole = self._failed = self._full = self._cut = 0

    def expect(self, sessions: int, *, warmup: bool) -> None:
        """This many come next; their numbers go on from the last ones. Of a warm-up each is one turn."""
        self._warmup = warmup
        self._ready.clear()
        self._wanting.clear()
        self._made = self._end
        self._end += sessions

    def prepare(self, most: int) -> bool:
        """Make the next turn of a session under way; else the next session, unless `most` are ready or no other is
        expected. Returns whether it did."""
        if self._wanting:
            session = self._wanting.popleft()
            if session.next_text is None and session.turn < session.turns:
                session.next_text = self._text(session.number, session.turn)
            return True
        if len(self._ready) >= most or self._made >= self._end:
            return False
        self._ready.append(self._make(self._made))
        self._made += 1
        return True

    def next_body(self, slot: int) -> bytes:
        """The body of this slot's next request: a turn of the session in it, or the first of a new one."""
        if slot not in self._under_way:
            self._under_way[slot] = self._next()
            self._begun += not self._warmup
        session = self._under_way[slot]
        if session.turn < session.turns:
            self._wanting.append(session)
        return session.body

    def skip(self) -> None:
        """The next session will not begin."""
        self._next()

    def place(self, slot: int) -> tuple[int, int]:
        """(number of the session, its turn) of the request under way in this slot."""
        session = self._under_way[slot]
        return session.number, session.turn

    def heard(self, slot: int, exchange: Exchange, text: Callable[[], str]) -> None:
        """A turn has ended. text: what the answer said, asked for where the session goes on."""
        session = self._under_way[slot]
        if exchange.failure is not None:
            ending = "_cut" if exchange.failure == "interrupted" else "_failed"
        elif session.turn == session.turns:
            ending = "_whole"
        elif self._too_long(session, exchange, asked := session.next_text or self._text(session.number, session.turn)):
            ending = "_full"
        else:
            said = session.answers[session.turn - 1] if session.answers else text()
            session.said += [("assistant", said), ("user", asked)]
            session.turn += 1
            session.next_text = None
            session.body = self._body(session)
            return
        self._over(slot, ending)

    def delay_ns(self, slot: int) -> int | None:
        """From the end of this slot's turn to the next; None: its session is over."""
        session = self._under_way.get(slot)
        return None if session is None else session.delays_ns[session.turn - 2]

    def cut(self, slot: int) -> None:
        """The cell ends before this slot's next turn."""
        self._over(slot, "_cut")

    def end(self) -> SessionCounts:
        """The cell is over: what waits is cut."""
        for slot in list(self._under_way):
            self.cut(slot)
        return SessionCounts(begun=self._begun, whole=self._whole, failed=self._failed, full=self._full, cut=self._cut)

    def _over(self, slot: int, ending: str) -> None:
        del self._under_way[slot]
        if not self._warmup:
            setattr(self, ending, getattr(self, ending) + 1)

    def _too_long(self, session: Session, exchange: Exchange, asked: str) -> bool:
        held = sum(len(text) for _, text in session.said)
        if held + len(asked) > HISTORY_CHARACTERS_MAX:
            return True
        if self._context_tokens is None or exchange.tokens_in is None or exchange.tokens_source != "usage":
            return False
        added = self._cell.input_tokens or count_words(asked)
        wanted = exchange.tokens_in + exchange.tokens_out + added + session.tokens_out
        return wanted > self._context_tokens

    def _next(self) -> Session:
        if not self._ready:
            self._ready.append(self._make(self._made))
            self._made += 1
        return self._ready.popleft()

    def _make(self, number: int) -> Session:
        cell, conversation = self._cell, self._conversation
        name = f"{self._seed}\0{cell.name}\0session\0{number}"
        random = Random(hashlib.sha256(name.encode()).digest())  # noqa: S311 - a load, not secrets
        answers: tuple[str, ...] = ()
        tokens_out, most = cell.output_tokens, turns_most(cell)
        turns = min(most, max(1, round(random.gauss(conversation.turns or 1.0, conversation.turns_stddev))))
        if cell.dataset is not None:
            given = self._given(number)
            turns = min(most, 1 + len(given.replies))
            if conversation.history == "recorded":
                answers = tuple(reply.answer for reply in given.replies)
            tokens_out = given.output_tokens or tokens_out
        turns = 1 if self._warmup else turns
        delays_ms = [random.gauss(conversation.delay_ms, conversation.delay_ms_stddev) for _ in range(turns - 1)]
        delays_ns = tuple(max(0, round(delay_ms * NS_PER_MS)) for delay_ms in delays_ms)
        session = Session(number, self._text(number, 0), answers, delays_ns, tokens_out)
        session.body = self._body(session)
        return session

    def _given(self, number: int) -> DatasetPrompt:
        given = self._requests[number % len(self._requests)]
        assert isinstance(given, DatasetPrompt)
        return given

    def _text(self, number: int, turn: int) -> str:
        """What the user says; made: as many words as the cell has input tokens, unique to session and turn (from 0)."""
        cell, count = self._cell, self._cell.input_tokens or 1
        if cell.dataset is not None:
            given = self._given(number)
            return given.replies[turn - 1].text if turn else given.text
        high = len(self._known) - 1
        if turn == 0:
            ids = prefixed_tokens(self._seed, cell, number, max(1, count - self._added), low=0, high=high)
        else:
            ids = unique_tokens(self._seed, f"{cell.name}\0turn\0{turn}", number, count, low=0, high=high)
        return text_of(ids, self._known)

    def _body(self, session: Session) -> bytes:
        cell = self._cell
        prompt = session.said if cell.api == "chat" else BETWEEN.join(text for _, text in session.said)
        return body_of(cell, model=self._model, prompt=prompt, max_tokens=session.tokens_out)
