"""Several drivers as one: a cell that needs more than one core is offered by as many processes.

`Team.run_cell` is `Driver.run_cell`. A cell that needs one worker is offered from this process, as without a team.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from kvgauge.load.drive import Driver
from kvgauge.load.headers import NO_HEADERS, Headers
from kvgauge.load.how_many import HowMany
from kvgauge.load.joint import Calls, Hand, Joint
from kvgauge.load.kept import KeptReader
from kvgauge.load.member import END_S, START_S, Member
from kvgauge.load.orders import Offer, Setup
from kvgauge.load.prompts import TOKEN_ID_HIGH, TOKEN_ID_LOW
from kvgauge.load.proxy import Proxy
from kvgauge.load.shares import Share
from kvgauge.load.site import site_of
from kvgauge.load.tally import CellLoad
from kvgauge.load.texts import Said
from kvgauge.load.tls import Tls
from kvgauge.load.work import Steady
from kvgauge.plan.dataset import DatasetPrompt
from kvgauge.plan.records import Cell
from kvgauge.plan.trace import FileRequest, TraceRequest
from kvgauge.samples.disk import disk_errors
from kvgauge.samples.records import Exchange
from kvgauge.tokens.choose import Chosen

SILENT_S = 30.0  # a worker speaks twice a second, but for its connections: 5 s each address of the name


class Team:
    """Load workers, started when a cell first needs them and kept from cell to cell.

    decide    how many workers a cell is offered by
    folder    where their files go while a cell lasts, and what they write to standard error
    silent_s  a worker that says nothing for so long is killed
    the rest  as of `Driver`
    raises    LoadError for a URL or a CA file that cannot be used
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        host: str,
        decide: Callable[[Cell], HowMany],
        folder: Path,
        tls: Tls | None = None,
        request_timeout_s: float = 120,
        stagger_s: float | None = None,
        headers: Headers = NO_HEADERS,
        token_ids: tuple[int, int] = (TOKEN_ID_LOW, TOKEN_ID_HIGH),
        quick_ack: bool = False,
        tokenizer: Chosen | None = None,
        proxy: Proxy | None = None,
        silent_s: float = SILENT_S,
    ) -> None:
        site_of(url, tls, headers=headers, proxy=proxy)
        self._tokenizer = tokenizer
        self._decide, self._folder = decide, folder
        self._stagger_s, self._silent_s = stagger_s, silent_s
        self._members: dict[int, Member] = {}
        self._cells = 0
        plain, secret = headers.pairs
        self._setup = Setup(
            index=0,
            url=url,
            model=model,
            host=host,
            tls=None if tls is None else (_absolute(tls.ca_file), tls.insecure),
            plain=plain,
            secret=secret,
            timeouts_s={"request_timeout_s": request_timeout_s},
            token_ids=token_ids,
            quick_ack=quick_ack,
            proxy=proxy.url if proxy is not None else None,
        )
        self._driver: Driver | None = None
        self._driver_of = partial(
            Driver,
            url,
            model,
            host=host,
            tls=tls,
            request_timeout_s=request_timeout_s,
            stagger_s=stagger_s,
            headers=headers,
            token_ids=token_ids,
            quick_ack=quick_ack,
            tokenizer=tokenizer,
            proxy=proxy,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every worker; returns after 3 s or a little more at most."""
        self._dismiss(list(self._members))
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    @property
    def pids(self) -> dict[int, int]:
        """Of the workers that were started, by their number."""
        return {index: member.pid for index, member in self._members.items()}

    def run_cell(
        self,
        cell: Cell,
        *,
        run_id: str,
        seed: int,
        on_exchange: Callable[[Exchange], None],
        tick: Callable[[], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        enough: Callable[[], bool] = lambda: False,
        requests: tuple[FileRequest, ...] = (),
        steady: Steady | None = None,
        keep_text: Callable[[Said], None] | None = None,
    ) -> CellLoad:
        """As `Driver.run_cell`; raises SamplesError too, when a worker's file cannot be written."""
        calls = Calls(on_exchange=on_exchange, tick=tick, stop=stop, enough=enough, keep_text=keep_text)
        chosen = self._decide(cell)
        if self._tokenizer is not None and chosen.workers > 1:
            chosen = HowMany(workers=1, why="a tokenizer of the user makes prompts in one worker only")
        if chosen.workers == 1:
            self._driver = self._driver or self._driver_of()
            load = self._driver.run_cell(
                cell, run_id=run_id, seed=seed, requests=requests, steady=steady, **msgspec.structs.asdict(calls)
            )
            return msgspec.structs.replace(load, workers_why=chosen.why)
        self._start(chosen.workers)
        hands = self._hand_out(cell, chosen.workers, run_id, seed, requests)
        joint = Joint(cell, hands, calls, silent_s=self._silent_s, stagger_s=self._stagger_s)
        try:
            load = joint.offer()
        finally:
            self._dismiss([index for index, hand in enumerate(hands) if hand.done is None])
            for hand in hands:
                hand.kept.remove()
        return msgspec.structs.replace(load, workers_why=chosen.why)

    def _start(self, workers: int) -> None:
        """Have so many workers, up and waiting. raises LoadError"""
        self._dismiss([index for index, member in self._members.items() if member.gone])
        new = [index for index in range(workers) if index not in self._members]
        if not new:
            return
        with disk_errors(self._folder, "a load worker's log"):
            self._folder.mkdir(parents=True, exist_ok=True)
        for index in new:
            setup = msgspec.structs.replace(self._setup, index=index)
            self._members[index] = Member(setup, self._folder / f"load-worker-{index}.log")
        until_s = time.monotonic() + START_S
        for index in new:
            self._members[index].wait_up(until_s)

    def _hand_out(
        self, cell: Cell, workers: int, run_id: str, seed: int, requests: tuple[FileRequest, ...]
    ) -> list[Hand]:
        self._cells += 1
        hands = []
        for index in range(workers):
            share = Share(index=index, of=workers)
            path = self._folder / f"load-worker-{index}.{self._cells}.kept"
            offer = Offer(
                cell=cell,
                run_id=run_id,
                seed=seed,
                share=share,
                path=str(path.absolute()),
                trace=tuple(each for each in requests if isinstance(each, TraceRequest)),
                dataset=tuple(each for each in requests if isinstance(each, DatasetPrompt)),
            )
            member = self._members[index]
            member.heard_s = time.monotonic()
            member.say(offer)
            hands.append(Hand(member=member, kept=KeptReader(path), requests=share.part(cell).count(cell.requests)))
        return hands

    def _dismiss(self, indices: list[int]) -> None:
        members = [self._members.pop(index) for index in indices]
        for member in members:
            member.let_go()
        until_s = time.monotonic() + END_S
        for member in members:
            member.end(until_s)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
