"""The scraping process as its owner sees it: started, told what to scrape, asked for a scrape now, ended.

Whatever happens to it is no error of the run: what it could not write is missing, and said to be.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from kvgauge.load.headers import NO_HEADERS, Headers
from kvgauge.load.proxy import NO_PROXIES, Proxies
from kvgauge.load.tls import Tls
from kvgauge.scrape.process import DONE, MARK, Task
from kvgauge.scrape.source import FETCH_TIMEOUT_S, Asking, Source, origin_metrics, same_server

START_TIMEOUT_S = 15.0
STOP_WAIT_S = FETCH_TIMEOUT_S + 1.0
LOG = "scraper.log"


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    """What is scraped beside a run: these URLs, and /metrics of where the requests go, where it has one."""

    urls: tuple[str, ...] = ()
    interval_s: float = 1.0
    proxies: Proxies = NO_PROXIES


class Scraper:
    """One run's. As a context manager: the process is started at the beginning and ended at the end of the block.

    watching  None: nothing is scraped and no process started
    headers   of the requests: /metrics of the same server are asked with them, others without
    tls       how the certificates of https sources are checked
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        watching: Watching | None,
        *,
        headers: Headers = NO_HEADERS,
        tls: Tls | None = None,
    ) -> None:
        plain, secret = headers.pairs
        self._asking = Asking(
            tls=None if tls is None else (None if tls.ca_file is None else str(tls.ca_file.absolute()), tls.insecure),
            plain=plain,
            secret=secret,
        )
        self._folder, self._run_id, self._watching = folder, run_id, watching
        self._child: subprocess.Popen[bytes] | None = None
        self._timeout_s = START_TIMEOUT_S
        self._marks, self._heard = 0, b""
        self.sources: tuple[Source, ...] = ()

    def __enter__(self) -> Self:
        if self._watching is None:
            return self
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with contextlib.suppress(OSError), (self._folder / LOG).open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "kvgauge.scrape.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        return self

    def watch(self, url: str) -> None:
        """Begin. url: where the requests go"""
        if self._watching is None:
            return
        named = [
            self._source(each, named=True, own=same_server(each, url)) for each in dict.fromkeys(self._watching.urls)
        ]
        own = self._source(origin_metrics(url), named=False, own=True)
        self.sources = (*([] if own.url in self._watching.urls else [own]), *named)
        task = Task(
            folder=str(self._folder.absolute()),
            run_id=self._run_id,
            sources=self.sources,
            interval_s=self._watching.interval_s,
            asking=self._asking,
        )
        self._say(msgspec.json.encode(task) + b"\n")

    def _source(self, url: str, *, named: bool, own: bool) -> Source:
        proxy = self._watching.proxies.of(url) if self._watching is not None else None
        return Source(url=url, named=named, own=own, proxy=proxy.url if proxy is not None else None)

    @property
    def pid(self) -> int | None:
        """Of the process; None where there is none."""
        return self._child.pid if self._child is not None else None

    def mark(self) -> tuple[int, int]:
        """Have every source that answers scraped now. Returns CLOCK_MONOTONIC before and after, in ns. Bounded."""
        before_ns = time.monotonic_ns()
        self._marks += 1
        if self._say(f"{MARK} {self._marks}\n".encode()):
            self._hear(f"{DONE} {self._marks}\n".encode(), time.monotonic() + self._timeout_s)
            self._timeout_s = FETCH_TIMEOUT_S + 1.0
        return before_ns, time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()
        log = self._folder / LOG
        with contextlib.suppress(OSError):
            if log.stat().st_size == 0:
                log.unlink()

    def _say(self, line: bytes) -> bool:
        if self._child is None:
            return False
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line)
            self._child.stdin.flush()
        except OSError:
            return False  # it has ended: its log says how
        return True

    def _hear(self, answer: bytes, deadline: float) -> None:
        """Wait for this answer; those of earlier marks may come before it."""
        assert self._child is not None
        assert self._child.stdout is not None
        handle = self._child.stdout.fileno()
        while answer not in self._heard:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                return
            data = os.read(handle, 4096)
            if not data:
                return
            self._heard = self._heard[-4096:] + data
