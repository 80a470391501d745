"""One repetition of `mode: paired`: both tests' targets at once, every cell offered to both, each request to one.

Each arm is a run of its own, with its folder, samples, evidence and verdict; the pairs are kept with the later arm,
which is the one that has a baseline.
"""

import platform
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from math import log1p
from pathlib import Path
from typing import Protocol

import msgspec

from kvgauge import gather
from kvgauge.evidence.facts import Fact
from kvgauge.failures import KvgaugeError, SamplesError
from kvgauge.judge import Measured, requests_of
from kvgauge.load.beside import Arm, PairedDriver
from kvgauge.load.headers import NO_HEADERS, Headers
from kvgauge.load.proxy import NO_PROXIES, Proxies
from kvgauge.load.texts import Texts
from kvgauge.load.tls import Tls
from kvgauge.plan.parts import Seen, first_prompts
from kvgauge.plan.records import Cell, Plan, Run
from kvgauge.plan.trace import FileRequest
from kvgauge.report.records import RunResult
from kvgauge.resume import put_aside
from kvgauge.samples.disk import FULL, unwritten
from kvgauge.samples.files import SampleWriter
from kvgauge.samples.records import Exchange
from kvgauge.scrape.scraper import Scraper, Watching
from kvgauge.stats.estimate import missing
from kvgauge.stats.paired import Pairs, looks_of
from kvgauge.target.contract import Endpoint, Target
from kvgauge.tokens.choose import Chosen, bundled

SEED_BITS = 48
HALF = "mode paired: each test had half of one load, so this is no capacity of either"
RATES = ("output_token_throughput_tok_s", "request_throughput_req_s", "goodput_req_s")


class Watcher(Protocol):
    """What of a live display is told here."""

    def on_cell(self, run: Run, cell: Cell, index: int) -> None: ...
    def on_exchange(self, _exchange: Exchange, /) -> None: ...
    def on_tick(self) -> None: ...


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What every repetition is conducted under; fields as in Conductor."""

    plan: Plan
    folder: Path
    target_for: Callable[..., Target]
    watcher: Watcher
    stop: Callable[[], bool]
    request_timeout_s: float
    conduct: str
    files: Mapping[str, tuple[FileRequest, ...]] = {}
    headers: Headers = NO_HEADERS
    tls: Tls | None = None
    watching: Watching | None = None
    tokenizers: Mapping[str, Chosen] = {}
    proxies: Proxies = NO_PROXIES


class _Side(msgspec.Struct, kw_only=True):
    """An arm while it lasts."""

    run: Run
    folder: Path
    target: Target
    measured: Measured
    writer: SampleWriter | None = None
    scraper: Scraper | None = None
    endpoint: Endpoint | None = None


class SideBySide:
    """Conducts repetitions, one at a time."""

    def __init__(self, setting: Setting) -> None:
        self._at = setting
        self._seen = Seen()

    def conduct(self, runs: Sequence[Run]) -> dict[str, list[RunResult]]:
        """What one repetition gave, by test. runs: its two, in the order their targets are started

        raises  SamplesError when it cannot be written down
        """
        sides = [self._side(run) for run in runs]
        pairs: dict[str, Pairs] = {}
        try:
            with ExitStack() as stack:
                for side in sides:
                    self._open(side, stack)
                self._measure(sides, pairs)
        except SamplesError:
            raise
        except KvgaugeError as error:
            self._failed(sides, str(error))
        except OSError as error:
            if error.errno in FULL:
                raise unwritten(error, Path(error.filename or self._at.folder), "a run's files") from error
            self._failed(sides, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        finally:
            with ExitStack() as ends:  # of both, whatever the end of one does
                for side in sides:
                    ends.callback(side.target.restore)
                    ends.callback(side.target.stop)
        for side in sides:
            side.measured.ended = datetime.now(UTC)
        _share_wire(sides)
        return {side.run.test.name: self._judged(side, sides, pairs) for side in sides}

    def _side(self, run: Run) -> _Side:
        folder = self._at.folder / "runs" / run.run_id
        put_aside(folder)
        measured = Measured(exchanges=[], transfers=[], loads=[], seed=run.seed, began=datetime.now(UTC))
        return _Side(run=run, folder=folder, target=self._at.target_for(folder / "logs", run.test), measured=measured)

    def _open(self, side: _Side, stack: ExitStack) -> None:
        """Its files and helpers; its target is installed."""
        at = self._at
        side.writer = stack.enter_context(SampleWriter(side.folder))
        side.target.prepare(side.run.test)
        scraper = Scraper(side.folder, side.run.run_id, at.watching, headers=at.headers, tls=at.tls)
        side.scraper = stack.enter_context(scraper)
        side.measured.texts = stack.enter_context(Texts(side.folder))

    @staticmethod
    def _failed(sides: Sequence[_Side], said: str) -> None:
        """One arm cannot be measured without the other: both have failed, by the same cause."""
        for side in sides:
            side.measured.failure = side.measured.failure or said

    def _measure(self, sides: Sequence[_Side], pairs: dict[str, Pairs]) -> None:
        for side in sides:
            side.endpoint = self._start(side)
        self._prompts(sides)
        before, after = self._arms(sides)
        with self._driver(before, after) as driver:
            for index, cell in enumerate(before.run.cells):
                self._at.watcher.on_cell(after.run, cell, index)
                begins = [side.scraper.mark()[0] for side in (before, after) if side.scraper is not None]
                pairs[cell.name] = self._pairs(cell)
                self._offer((before, after), cell, driver, pairs[cell.name])
                for side, begin_ns in zip((before, after), begins, strict=True):
                    assert side.scraper is not None
                    side.measured.windows[cell.name] = (begin_ns, side.scraper.mark()[1])
                if any(each.measured.interrupted or each.measured.failure is not None for each in sides):
                    break
                if any(gather.hopeless(side.measured) for side in sides):
                    break
                for side in sides:
                    side.target.wait_serving()
        for side in sides:
            self._collect(side)

    def _start(self, side: _Side) -> Endpoint:
        assert side.scraper is not None
        try:
            endpoint = side.target.start(side.run)
        except SamplesError:
            raise
        except KvgaugeError as error:
            raise KvgaugeError(f"{side.run.test.name}: {error}") from error
        side.scraper.watch(endpoint.url)
        side.measured.deployment = f"{side.run.run_id}@{self._at.conduct}" if endpoint.fresh else endpoint.url
        return endpoint

    def _prompts(self, sides: Sequence[_Side]) -> None:
        """The same seed and place in each dataset for both arms, new ones where an arm was not started for this."""
        fresh = all(side.endpoint is not None and side.endpoint.fresh for side in sides)
        seed = sides[0].run.seed if fresh else secrets.randbits(SEED_BITS)
        if fresh:
            self._seen.forget()
        repetition = sides[0].run.repetition
        for side in sides:
            side.measured.seed = seed
            side.measured.parts = first_prompts(side.run.cells, round_number=0 if fresh else repetition - 1)

    def _arms(self, sides: Sequence[_Side]) -> tuple[_Side, _Side]:
        """(the baseline, the other one)."""
        one, other = sides
        return (one, other) if one.run.test.name in other.run.test.baseline else (other, one)

    def _driver(self, *sides: _Side) -> PairedDriver:
        at = self._at
        arms = []
        for side in sides:
            assert side.endpoint is not None
            url, model = side.endpoint.url, side.endpoint.model
            tokenizer = at.tokenizers.get(side.run.test.name)
            arms.append(Arm(url=url, model=model, proxy=at.proxies.of(url), tokenizer=tokenizer))
        return PairedDriver(
            (arms[0], arms[1]),
            host=platform.node(),
            request_timeout_s=at.request_timeout_s,
            headers=at.headers,
            tls=at.tls,
            quick_ack=at.plan.quick_ack,
        )

    def _pairs(self, cell: Cell) -> Pairs:
        """Looks belong to the primary metric's cell, and only where the plan says how well the gain is to be known."""
        primary, within_pct = self._at.plan.primary, self._at.plan.gain_within_pct
        if cell.name != primary.cell or within_pct is None:
            return Pairs(metric=primary.metric)
        return Pairs(metric=primary.metric, looks=looks_of(cell.requests // 2), within=log1p(within_pct / 100))

    def _offer(self, sides: tuple[_Side, _Side], cell: Cell, driver: PairedDriver, pairs: Pairs) -> None:
        exchanges: tuple[list[Exchange], list[Exchange]] = ([], [])

        def on_exchange(arm: int, exchange: Exchange, pair: int | None) -> None:
            writer = sides[arm].writer
            assert writer is not None
            exchanges[arm].append(exchange)
            if pair is not None:
                pairs.add(pair, arm, exchange)
            writer.add_exchange(exchange)
            self._at.watcher.on_exchange(exchange)

        def tick() -> None:
            self._take(sides)
            self._at.watcher.on_tick()

        def stop() -> bool:
            for side in sides:
                side.measured.mishaps += [(cell.name, what) for what in side.target.mend()]
            away = any(side.target.trouble() is not None or not side.target.serving() for side in sides)
            return self._at.stop() or away

        texts = [side.measured.texts.add if side.measured.texts is not None else None for side in sides]
        loads = driver.run_cell(
            cell,
            run_ids=(sides[0].run.run_id, sides[1].run.run_id),
            seed=sides[0].measured.seed,
            on_exchange=on_exchange,
            tick=tick,
            stop=stop,
            enough=lambda: pairs.met,
            requests=requests_of(cell, self._at.files, sides[0].measured.parts),
            keep_text=(texts[0], texts[1]),
        )
        stop()  # once more: what ended with the last request belongs to this cell
        _share_mishaps(sides, cell.name)
        self._take(sides)
        troubles = [side.target.trouble() for side in sides]
        for side, load, done, trouble in zip(sides, loads, exchanges, troubles, strict=True):
            measured = side.measured
            if cell.dataset is not None:
                sent = gather.places(cell.dataset.prompts, measured.parts[cell.name], done)
                measured.repeated[cell.name] = self._seen.repeated(cell.dataset.sha256, sent), len(sent)
            measured.exchanges += done
            measured.loads.append((cell, load, done))
            other = next((each for each in troubles if each is not None), None)
            measured.failure = trouble or (None if other is None else f"the test beside it ended: {other}")
            measured.interrupted = measured.failure is None and load.interrupted and self._at.stop()

    def _take(self, sides: Sequence[_Side]) -> None:
        for side in sides:
            assert side.writer is not None
            gather.take_moves(side.target, side.writer, side.run.run_id, side.measured)
            side.writer.flush_due()

    def _collect(self, side: _Side) -> None:
        """Evidence, and what was not counted yet."""
        measured = side.measured
        assert side.writer is not None
        if measured.failure is None and side.target.trouble() is None:
            side.target.wait_serving()
            gather.late_moves(side.target, side.writer, measured)
            measured.evidence = side.target.evidence()
        if measured.texts is not None and measured.texts.kept:
            chosen = self._at.tokenizers.get(side.run.test.name) or bundled(side.run.test.model)
            gather.count_texts(chosen, side.writer, measured, self._at.files, self._at.stop)

    def _judged(self, side: _Side, sides: Sequence[_Side], pairs: Mapping[str, Pairs]) -> list[RunResult]:
        at = self._at
        _, after = self._arms(sides)
        other = next(each for each in sides if each is not side)
        found = gather.judged(side.run, side.measured, side.folder, at.files, at.plan.goodput)
        return [
            _as_half(result, other.run.test.name, pairs.get(result.cell or "") if side is after else None)
            for result in found
        ]


def _share_mishaps(sides: Sequence[_Side], cell: str) -> None:
    """What happened to one arm ended the cell for both."""
    own = [[what for name, what in side.measured.mishaps if name == cell] for side in sides]
    for side, others in zip(sides, reversed(own), strict=True):
        side.measured.mishaps += [(cell, f"the test beside it: {what}") for what in others]


def _as_half(result: RunResult, beside: str, pairs: Pairs | None) -> RunResult:
    """A run's entry as what it is: half of a load, and where it is the compared one, with what the pairs said."""
    without = partial(missing, reason=HALF)
    metrics = {
        name: without(value.unit) if name in RATES and value.point is not None else value
        for name, value in result.metrics.items()
    }
    remarks = result.remarks
    if pairs is not None and pairs.met_at is not None:
        remarks = (*remarks, f"ended at {pairs.met_at:,} pairs of requests: the gain was known well enough")
    return msgspec.structs.replace(
        result,
        metrics=metrics,
        beside=beside,
        remarks=remarks,
        pairs=pairs.ratios() if pairs is not None and result.metrics else {},
    )


def _share_wire(sides: Sequence[_Side]) -> None:
    """Both arms' bytes pass the same interfaces: what one moved cannot prove the other's."""
    moved = [sum(move.bytes_listed for move in side.measured.transfers if move.failure is None) for side in sides]
    for side, others in zip(sides, reversed(moved), strict=True):
        evidence = side.measured.evidence
        if evidence is None or not isinstance(evidence.wire_bytes, int):
            continue
        note = Fact(
            name="note",
            value=f"{others} bytes that the test beside it moved are taken off what passed the interfaces",
            shown_by="kvgauge's own set-up",
        )
        side.measured.evidence = msgspec.structs.replace(
            evidence, wire_bytes=max(0, evidence.wire_bytes - others), facts=(*evidence.facts, note)
        )
