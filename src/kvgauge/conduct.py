"""Walks a plan's runs: start the target, offer every cell, collect evidence, judge, write down, go on.

A run that fails is a result, not an end: its cells are marked and the next run starts. A worker that ends is started
again: its cell has failed, the next one is measured. results.json is written
anew after every run, so that whatever happens next, what is measured is there.
"""

import platform
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from kvgauge import capacity
from kvgauge.compare.stopping import may_stop
from kvgauge.failures import KvgaugeError, SamplesError
from kvgauge.gather import count_texts, hopeless, judged, late_moves, places, take_moves
from kvgauge.judge import Measured, failed, requests_of
from kvgauge.load.drive import Driver
from kvgauge.load.headers import NO_HEADERS, Headers
from kvgauge.load.how_many import HowMany
from kvgauge.load.proxy import NO_PROXIES, Proxies
from kvgauge.load.team import Team
from kvgauge.load.texts import Texts
from kvgauge.load.tls import Tls
from kvgauge.plan.expand import expand
from kvgauge.plan.parts import Seen, first_prompts
from kvgauge.plan.records import Cell, Expect, Plan, Run, Test
from kvgauge.plan.trace import FileRequest
from kvgauge.report import results as results_files
from kvgauge.report.records import Results, RunResult, Status
from kvgauge.resume import Conditions, put_aside, write_start
from kvgauge.samples.disk import FULL, disk_errors, unwritten, write_whole
from kvgauge.samples.files import SampleWriter
from kvgauge.samples.records import Exchange
from kvgauge.scrape.scraper import Scraper, Watching
from kvgauge.side_by_side import Setting, SideBySide
from kvgauge.stats.batches import Narrow
from kvgauge.stats.client import client_troubles
from kvgauge.stats.settling import Settling
from kvgauge.target.contract import Endpoint, Target
from kvgauge.tokens.choose import Chosen, bundled

SEED_BITS = 48
EXIT_OK, EXIT_WORSE, EXIT_UNEXPECTED, EXIT_INTERRUPTED = 0, 1, 3, 130


class Watcher(Protocol):
    """Told what happens, for a live display."""

    def on_run(self, run: Run, runs: int) -> None: ...
    def on_cell(self, run: Run, cell: Cell, index: int) -> None: ...
    def on_exchange(self, _exchange: Exchange, /) -> None: ...
    def on_tick(self) -> None: ...
    def on_run_over(self, run: Run, given: Sequence[RunResult]) -> None: ...


class Conductor:
    """Conducts one plan into one folder.

    target_for   makes the target of a run, given the folder for its logs and its test
    stop         asked often; True ends what is under way and keeps what there is
    conditions   what the plan is conducted under; written down, so that it can be resumed
    done         results of runs that an earlier process finished: they are not repeated
    files        the requests of every trace and dataset the plan sends, by its path
    headers      what else stands in the head of each request
    tls          how an https target's certificate is checked
    tokenizers   of tests that name the model's own, by the test's name
    proxies      on the way to a target's URL
    deployment   what a target that is not started for each run is called
    watching     which /metrics to keep beside the samples; None: none
    workers      by how many load workers a cell is offered, given how many were too few for it in an earlier run
                 (0: not known); None: from this process
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        target_for: Callable[[Path, Test], Target],
        *,
        watcher: Watcher,
        stop: Callable[[], bool],
        conditions: Conditions,
        done: Mapping[str, Sequence[RunResult]] | None = None,
        request_timeout_s: float = 120.0,
        files: Mapping[str, tuple[FileRequest, ...]] | None = None,
        headers: Headers = NO_HEADERS,
        tls: Tls | None = None,
        watching: Watching | None = None,
        workers: Callable[[Cell, int], HowMany] | None = None,
        tokenizers: Mapping[str, Chosen] | None = None,
        proxies: Proxies = NO_PROXIES,
        deployment: str | None = None,
    ) -> None:
        self._plan, self._folder, self._target_for = plan, folder, target_for
        self._watcher, self._stop = watcher, stop
        self._request_timeout_s = request_timeout_s
        self._runs = expand(plan)
        self._conditions = conditions
        self._files, self._headers, self._tls = files or {}, headers, tls
        self._watching, self._workers = watching, workers
        self._too_few: dict[str, int] = {}  # cell -> load workers that were its bottleneck
        self._tokenizers, self._proxies = tokenizers or {}, proxies
        self._deployment, self._conduct = deployment, secrets.token_hex(4)
        done = done or {}
        self._seen = Seen()
        self._pilots: list[capacity.Pilot] = []
        self._given: dict[str, list[RunResult]] = {test.name: list(done.get(test.name, ())) for test in plan.tests}
        self._enough_after: int | None = None
        self._setting = Setting(
            plan=plan,
            folder=folder,
            target_for=target_for,
            watcher=watcher,
            stop=stop,
            request_timeout_s=request_timeout_s,
            conduct=self._conduct,
            files=self._files,
            headers=headers,
            tls=tls,
            watching=watching,
            tokenizers=self._tokenizers,
            proxies=proxies,
        )

    def conduct(self) -> Results:
        """Every run in order. raises SamplesError when the folder cannot be written."""
        with disk_errors(self._folder, "a run"):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_start(self._folder, self._plan, self._conditions)
        self._write()
        over = {result.run_id for given in self._given.values() for result in given}
        if self._plan.mode == "paired":
            self._in_pairs(over)
            return self._results
        if any(run.run_id not in over for run in self._runs):
            self._find_rates(begun=bool(over))
        for run in self._runs:
            if self._stop() or self._enough_after is not None:
                break
            if run.run_id in over:
                continue
            self._watcher.on_run(run, len(self._runs))
            given = self._rated(run)
            self._given[run.test.name] += given
            self._watcher.on_run_over(run, given)
            self._write()
        return self._results

    def _find_rates(self, *, begun: bool) -> None:
        """Pilots of the tests, where cells take their rates from them; a folder that is resumed has them already.

        begun  whether runs were measured at their rates: then no pilot that gave nothing is tried again
        """
        file = self._folder / capacity.FILE
        if file.exists():
            try:
                self._pilots = msgspec.json.decode(file.read_bytes(), type=list[capacity.Pilot])
            except (OSError, msgspec.DecodeError) as error:
                raise SamplesError(f"{file} cannot be read ({error}): its rates are not known, so begin anew") from None
        for run in capacity.pilots(self._plan):
            if begun or self._stop():
                return
            known = [pilot for pilot in self._pilots if pilot.test == run.test.name]
            if known and all(pilot.req_s is not None for pilot in known):
                continue
            self._watcher.on_run(run, len(self._runs))
            given = self._one(run)
            self._watcher.on_run_over(run, given)
            self._pilots = [pilot for pilot in self._pilots if pilot not in known]
            self._pilots += [capacity.pilot_of(run.test, each) for each in given if each.cell is not None]
        if self._pilots and not self._stop():
            write_whole(file, msgspec.json.format(msgspec.json.encode(self._pilots)))

    def _in_pairs(self, over: set[str]) -> None:
        """Every repetition: both tests' runs at once."""
        beside = SideBySide(self._setting)
        for repetition in range(1, self._plan.repetitions + 1):
            runs = [run for run in self._runs if run.repetition == repetition]
            if self._stop():
                break
            if all(run.run_id in over for run in runs):
                continue
            for run in runs:  # one arm alone is worth nothing
                self._given[run.test.name] = [each for each in self._given[run.test.name] if each.run_id != run.run_id]
            self._watcher.on_run(runs[0], len(self._runs))
            given = beside.conduct(runs)
            for run in runs:
                self._given[run.test.name] += given[run.test.name]
                self._watcher.on_run_over(run, given[run.test.name])
            self._write()

    def exit_code(self) -> int:
        """130 after an interruption; 3 when a run did not end as its test expects; 1 when the primary metric of a
        test is worse than a baseline's; else 0."""
        statuses = [(test, run.status) for test in self._plan.tests for run in self._given[test.name] if run.cell]
        if self._stop():
            return EXIT_INTERRUPTED
        unexpected = [status for test, status in statuses if not _as_expected(status, test.expect)]
        if unexpected:
            return EXIT_UNEXPECTED
        worse = [row for test in self._results.tests for row in test.gains if row.primary and row.verdict == "worse"]
        return EXIT_WORSE if worse else EXIT_OK

    def _write(self) -> None:
        self._results = results_files.build(self._plan, self._given, self._machine(), self._runs)
        self._enough_after = self._whole_repetitions()
        if self._enough_after is not None:
            self._results = results_files.build(
                self._plan, self._given, self._machine(), self._runs, enough_after=self._enough_after
            )
        results_files.write(self._results, self._folder)

    def _whole_repetitions(self) -> int | None:
        """After which repetition the plan may end, its gains being known; None: not yet, or nobody asked."""
        if self._plan.gain_within_pct is None or self._plan.mode == "paired":
            return None
        over = {(test, run.repetition) for test, given in self._given.items() for run in given}
        reached = max((k for k in range(1, self._plan.repetitions + 1) if self._all_over(over, k)), default=0)
        if any(repetition > reached for _, repetition in over):
            return None  # looks come between repetitions only
        confidence = results_files.confidence_of(self._plan)
        values = [
            results_files.values_of(test, found.runs, confidence=confidence)
            for test, found in zip(self._plan.tests, self._results.tests, strict=True)
        ]
        return reached if reached and may_stop(values, self._plan, reached) else None

    def _all_over(self, over: set[tuple[str, int]], repetition: int) -> bool:
        return all((test.name, repetition) in over for test in self._plan.tests)

    def _machine(self) -> dict[str, str | int]:
        """What a reader needs to judge the figures, and what else two runs must share to be compared."""
        embedded = self._conditions.target == "embedded"
        found = {"kvgauge": self._conditions.kvgauge, **self._conditions.machine}
        if namespaces := self._conditions.options.get("namespaces"):
            found["namespaces"] = str(namespaces)
        return found | {"target": "embedded" if embedded else "a deployment"}

    def _rated(self, run: Run) -> list[RunResult]:
        """A run with the rates that its pilots found; a cell without one has failed, and says why."""
        rated, remarks, without = capacity.with_rates(run, self._plan.tests, self._pilots)
        given = []
        for result in self._one(rated):
            said = remarks.get(result.cell or "")
            more = result if said is None else msgspec.structs.replace(result, remarks=(*result.remarks, said))
            given.append(more)
        return given + [failed(run, cell, [without[cell.name]]) for cell in run.cells if cell.name in without]

    def _one(self, run: Run) -> list[RunResult]:
        folder = self._folder / "runs" / run.run_id
        put_aside(folder)
        measured = Measured(exchanges=[], transfers=[], loads=[], seed=run.seed, began=datetime.now(UTC))
        target = self._target_for(folder / "logs", run.test)
        try:
            with SampleWriter(folder) as writer:
                target.prepare(run.test)
                scraper = Scraper(folder, run.run_id, self._watching, headers=self._headers, tls=self._tls)
                with scraper, Texts(folder) as texts:
                    measured.texts = texts
                    self._measure(run, target, writer, measured, scraper)
        except SamplesError:
            raise  # a run that cannot be written down is not a failed one: with room it is made when the plan goes on
        except KvgaugeError as error:
            measured.failure = str(error)
        except OSError as error:
            if error.errno in FULL:
                raise unwritten(error, Path(error.filename or folder), "a run's files") from error
            measured.failure = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        finally:
            target.stop()
            target.restore()
            measured.ended = datetime.now(UTC)
        return judged(run, measured, folder, self._files, self._plan.goodput)

    def _measure(self, run: Run, target: Target, writer: SampleWriter, measured: Measured, scraper: Scraper) -> None:
        endpoint = target.start(run)
        scraper.watch(endpoint.url)
        measured.deployment = f"{run.run_id}@{self._conduct}" if endpoint.fresh else self._deployment or endpoint.url
        if not endpoint.fresh:  # an earlier run may have left these very prompts in its prefix cache
            measured.seed = secrets.randbits(SEED_BITS)
        else:
            self._seen.forget()
        before = run.repetition - 1 + (capacity.is_pilot(run) is False and bool(self._pilots))  # rounds of prompts sent
        measured.parts = first_prompts(run.cells, round_number=0 if endpoint.fresh else before)
        with self._driver(run, endpoint, self._folder / "runs" / run.run_id / "logs") as driver:
            for index, cell in enumerate(run.cells):
                self._watcher.on_cell(run, cell, index)
                begin_ns, _ = scraper.mark()
                self._offer(run, cell, driver, target, writer, measured)
                measured.windows[cell.name] = (begin_ns, scraper.mark()[1])
                if measured.interrupted or measured.failure is not None or hopeless(measured):
                    break
                target.wait_serving()
        if measured.failure is None and target.trouble() is None:
            target.wait_serving()
            late_moves(target, writer, measured)
            measured.evidence = target.evidence()
        if measured.texts is not None and measured.texts.kept:
            chosen = self._tokenizers.get(run.test.name) or bundled(run.test.model)
            count_texts(chosen, writer, measured, self._files, self._stop)

    def _driver(self, run: Run, endpoint: Endpoint, folder: Path) -> Driver | Team:
        options: dict[str, Any] = {
            "host": platform.node(),
            "request_timeout_s": self._request_timeout_s,
            "headers": self._headers,
            "tls": self._tls,
            "quick_ack": self._plan.quick_ack,
            "tokenizer": self._tokenizers.get(run.test.name),
            "proxy": self._proxies.of(endpoint.url),
        }
        if (workers := self._workers) is None:
            return Driver(endpoint.url, endpoint.model, **options)
        too_few = self._too_few
        return Team(
            endpoint.url,
            endpoint.model,
            decide=lambda cell: workers(cell, too_few.get(cell.name, 0)),
            folder=folder,
            **options,
        )

    def _offer(
        self, run: Run, cell: Cell, driver: Driver | Team, target: Target, writer: SampleWriter, measured: Measured
    ) -> None:
        exchanges: list[Exchange] = []
        narrow = Narrow(cell.until, first_seq=cell.warmup_requests) if cell.until is not None else None
        settling = Settling(cell.steady, streamed=cell.stream) if cell.steady is not None else None

        def on_exchange(exchange: Exchange) -> None:
            exchanges.append(exchange)
            if settling is not None:
                settling.add(exchange)
            if narrow is not None:
                narrow.add(exchange)
            writer.add_exchange(exchange)
            self._watcher.on_exchange(exchange)

        def tick() -> None:
            take_moves(target, writer, run.run_id, measured)
            writer.flush_due()
            self._watcher.on_tick()

        def stop() -> bool:
            """A target that cannot answer at all has nothing left to show in this cell."""
            measured.mishaps += [(cell.name, what) for what in target.mend()]
            return self._stop() or target.trouble() is not None or not target.serving()

        load = driver.run_cell(
            cell,
            run_id=run.run_id,
            seed=measured.seed,
            on_exchange=on_exchange,
            tick=tick,
            stop=stop,
            enough=lambda: narrow is not None and narrow.met,
            requests=requests_of(cell, self._files, measured.parts),
            steady=settling,
            keep_text=measured.texts.add if measured.texts is not None else None,
        )
        if cell.dataset is not None:
            sent = places(cell.dataset.prompts, measured.parts[cell.name], exchanges)
            measured.repeated[cell.name] = self._seen.repeated(cell.dataset.sha256, sent), len(sent)
        stop()  # once more: what ended with the last request belongs to this cell
        if load.lost is not None:
            measured.mishaps.append((cell.name, load.lost))
        elif client_troubles(cell, exchanges):
            self._too_few[cell.name] = max(load.workers, self._too_few.get(cell.name, 0))
        if narrow is not None:
            measured.until[cell.name] = narrow.outcome()
        if settling is not None:
            measured.settled[cell.name] = settling.outcome
        take_moves(target, writer, run.run_id, measured)
        measured.exchanges += exchanges
        measured.loads.append((cell, load, exchanges))
        measured.failure = target.trouble()
        measured.interrupted = measured.failure is None and load.interrupted and self._stop()


def _as_expected(status: Status, expect: Expect) -> bool:
    return status in ("invalid", "failed") if expect == "unusable" else status == expect
