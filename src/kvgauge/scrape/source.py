"""One /metrics, asked again and again: at fixed times, and whenever somebody wants to know now."""

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from kvgauge.evidence.prometheus import TEXT_BYTES_MAX, parse
from kvgauge.failures import LoadError, UsageError
from kvgauge.load.headers import NO_HEADERS, Headers
from kvgauge.load.proxy import Proxy
from kvgauge.load.site import Site, ask, site_of
from kvgauge.load.tls import Tls
from kvgauge.scrape.changes import UP, Change, changed, remark

FETCH_TIMEOUT_S = 2.0
FETCH_BYTES_MAX = TEXT_BYTES_MAX + (1 << 20)  # more text than is read, so that what is cut can be said to be
SOURCES_MAX = 64
TRIES = 3  # of a source that nobody named: with no series by then, there is none
DETAIL_CHARACTERS_MAX = 300


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """named: the user asked for it, so its silence is counted; else it is dropped when it never answers.

    own    of the very server that requests go to: it is asked with their headers
    proxy  the URL of the one before it, with its password; None: none
    """

    url: str
    named: bool
    own: bool = False
    proxy: str | None = None


class Asking(msgspec.Struct, frozen=True, kw_only=True):
    """How sources are asked; it travels to the scraping process over its standard input, and nowhere else.

    tls            the fields of a Tls, for https; None: the system's authorities
    plain, secret  headers of the requests, for sources that are `own`
    """

    tls: tuple[str | None, bool] | None = None
    plain: tuple[tuple[str, str], ...] = ()
    secret: tuple[tuple[str, str], ...] = ()

    def site(self, source: Source) -> Site:
        """raises LoadError"""
        tls = None
        if self.tls is not None and source.url.startswith("https:"):
            ca_file, insecure = self.tls
            tls = Tls(ca_file=None if ca_file is None else Path(ca_file), insecure=insecure)
        return site_of(
            source.url,
            tls,
            headers=Headers(self.plain, self.secret) if source.own else NO_HEADERS,
            proxy=Proxy(source.proxy) if source.proxy is not None else None,
        )


def same_server(one: str, other: str) -> bool:
    """Whether two URLs have scheme, host and port in common."""
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


AS_ANYBODY = Asking()


class Scrape(msgspec.Struct, frozen=True, kw_only=True):
    """One try. changes: what it told that the last one did not, `UP` first."""

    source: str
    time_ns: int
    done_ns: int
    realtime_ns: int
    up: bool
    detail: str | None
    changes: list[Change]


def metrics_url(url: str, proxy: Proxy | None = None, flag: str = "--metrics-url") -> str:
    """A URL whose path is left out means /metrics. raises UsageError for what cannot be scraped."""
    try:
        site = site_of(url, proxy=proxy)
    except LoadError as error:
        raise UsageError(f"{flag}: {error}") from None
    return url if site.base else f"{url.rstrip('/')}/metrics"


def origin_metrics(url: str) -> str:
    """/metrics of the server that a URL belongs to, whatever its path."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/metrics"


class Watcher:
    """Scrapes one source in a thread of its own until `stop`. `keep` is called there, one scrape at a time."""

    def __init__(
        self, source: Source, interval_s: float, keep: Callable[[Scrape], None], asking: Asking = AS_ANYBODY
    ) -> None:
        self._source, self._interval_s, self._keep, self._asking = source, interval_s, keep, asking
        self._site: Site | None = None
        self._before: dict[tuple[str, str], float] = {}
        self._heads: dict[str, tuple[str, str]] = {}
        self._condition = threading.Condition()
        self._wanted = self._answered = 0
        self._stopping = self._over = False
        self._up: bool | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def want(self) -> int:
        """Ask for a scrape that begins after this; what is returned goes to `wait`."""
        with self._condition:
            self._wanted += 1
            self._condition.notify_all()
            return self._wanted

    def wait(self, wanted: int, deadline: float) -> None:
        """Until that scrape is kept or the time (monotonic s) has come; a source that is down is not waited for."""
        with self._condition:
            while self._answered < wanted and not self._over and self._up is not False:
                left = deadline - time.monotonic()
                if left <= 0 or not self._condition.wait(left):
                    return

    def stop(self, timeout_s: float) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        self._thread.join(timeout_s)

    def _watch(self) -> None:
        start, tries = time.monotonic(), 0
        ever_up = self._source.named
        try:
            while (wanted := self._next(start)) is not None:
                scrape = self._scrape()
                tries, ever_up = tries + 1, ever_up or scrape.up
                self._keep(scrape)
                with self._condition:
                    self._answered, self._up = wanted, scrape.up
                    self._condition.notify_all()
                if not ever_up and tries == TRIES:
                    return
        finally:
            with self._condition:
                self._over = True
                self._condition.notify_all()

    def _next(self, start: float) -> int | None:
        """Wait for the next multiple of the interval, or until somebody wants one. None: stop."""
        with self._condition:
            gone_s = time.monotonic() - start
            due = start if self._up is None else start + (gone_s // self._interval_s + 1) * self._interval_s
            while not self._stopping and self._wanted == self._answered and (left := due - time.monotonic()) > 0:
                self._condition.wait(left)
            return None if self._stopping else self._wanted

    def _scrape(self) -> Scrape:
        realtime_ns, time_ns = time.time_ns(), time.monotonic_ns()
        body, detail = self._fetch()
        done_ns = time.monotonic_ns()
        if detail is not None:
            gc.collect()  # an exception's frames refer to each other, and to all that had come
        now = parse(body, heads=self._heads)
        up = detail is None and bool(now.values)
        rows: list[Change] = []
        if up:
            detail = remark(now)
            rows, self._before = changed(self._before, now), now.values
        elif detail is None:
            detail = "; ".join(filter(None, (f"no series in {len(body):,} bytes", remark(now))))
        return Scrape(
            source=self._source.url,
            time_ns=time_ns,
            done_ns=done_ns,
            realtime_ns=realtime_ns,
            up=up,
            detail=detail[:DETAIL_CHARACTERS_MAX] if detail else None,
            changes=[(UP, "", "gauge", float(up)), *rows],
        )

    def _fetch(self) -> tuple[bytes, str | None]:
        """The body; or nothing, and why."""
        try:
            self._site = self._site or self._asking.site(self._source)
            status, body = ask(self._site, "", timeout_s=FETCH_TIMEOUT_S, bytes_max=FETCH_BYTES_MAX)
        except (OSError, LoadError) as error:
            return b"", getattr(error, "strerror", None) or str(error)
        return (body, None) if status == 200 else (b"", f"HTTP {status}")
