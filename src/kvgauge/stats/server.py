"""What the server counted in each cell, beside what the client saw of the same requests. Pure.

A cell's window goes from the scrape taken just before its first request, warm-up included, to the one taken just after
its last. A counter that fell was restarted: what it then holds is counted as new. What was lost between the last
scrape before a restart and the restart itself nobody knows.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

import msgspec

from kvgauge.evidence.known_metrics import KNOWN, Known
from kvgauge.evidence.prometheus import Key, labels_of
from kvgauge.samples.records import Exchange, MetricPoint

UP = "kvgauge:up"
UNSEEN = "no scrape between the one before the cell and the one after it, when nothing runs: give --metrics-interval"
Window = tuple[int, int]  # CLOCK_MONOTONIC ns: from, to


class ServerValue(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One known thing of one source in one cell.

    n       observations a mean or a sum is of; scrapes an increase is over; scrapes while the load ran, of a level
    reason  why point is None
    note    what one must know to believe it
    """

    quantity: str
    source: str
    engine: str
    metric: str
    point: float | None
    n: int
    unit: str
    reason: str | None = None
    note: str | None = None


class ServerSource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A /metrics in one cell: scrapes that gave series, those that did not (why: the first), series that restarted."""

    source: str
    scrapes: int
    gaps: int
    resets: int = 0
    reason: str | None = None


class ClientSaw(msgspec.Struct, frozen=True, kw_only=True):
    """The same requests as the client saw them, warm-up included: what the server's values are to be held against.

    Means start when a request was due, as everywhere; None where nothing was answered.
    """

    requests: int
    failed: int
    output_tokens: int
    ttft_ms_mean: float | None
    e2e_latency_ms_mean: float | None


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """The `server` of a cell in results.json."""

    sources: tuple[ServerSource, ...]
    values: tuple[ServerValue, ...]
    client: ClientSaw


def metric_names() -> frozenset[str]:
    """Every series that `server_cells` looks at: all that need be read from disk."""
    return frozenset({UP, *(name for known in KNOWN for name in _series_names(known))})


def server_cells(
    points: Iterable[MetricPoint], windows: Mapping[str, Window], exchanges: Sequence[Exchange]
) -> dict[str, Server]:
    """Each cell's server section; none for a cell without any scrape in its window.

    points     of one run, in the order they were written
    windows    cell -> window, none overlapping another
    """
    by_source: dict[str, list[MetricPoint]] = {}
    for point in points:
        by_source.setdefault(point.source, []).append(point)
    found: dict[str, Server] = {}
    tallies = {source: _tallies(mine, windows) for source, mine in by_source.items()}
    for cell in windows:
        here = [(source, tally[cell]) for source, tally in tallies.items() if cell in tally]
        if here:
            found[cell] = Server(
                sources=tuple(tally.seen(source) for source, tally in here),
                values=tuple(value for source, tally in here for value in tally.values(source)),
                client=_client([exchange for exchange in exchanges if exchange.cell == cell]),
            )
    return found


class _Tally:
    """One source in one cell."""

    def __init__(self) -> None:
        self.scrapes = self.gaps = self.resets = 0
        self.reason: str | None = None
        self.grown: dict[Key, float] = {}
        self.highest: dict[str, float] = {}
        self._levels: dict[str, float] = {}  # at the last scrape so far, when it is not the first

    def take(self, before: Mapping[Key, float], now: Mapping[Key, float], changed: Iterable[Key]) -> None:
        """A scrape that gave series; the first one only says where counting begins."""
        if self.scrapes == 0:
            self.grown = dict.fromkeys(now, 0.0)
        else:
            restarted = False
            for key in changed:
                old, new = before.get(key, 0.0), now.get(key)
                if new is not None:
                    restarted = restarted or (new < old and _cumulative(key[0]))
                    self.grown[key] = self.grown.get(key, 0.0) + (new - old if new >= old else new)
            self.resets += restarted
            for name, level in self._levels.items():
                self.highest[name] = max(self.highest.get(name, level), level)
            self._levels = _levels(now)
        self.scrapes += 1

    def seen(self, source: str) -> ServerSource:
        few = f"{self.scrapes} scrapes in this cell: a difference needs two" if self.scrapes < 2 else None
        reason = self.reason if self.gaps else few
        return ServerSource(
            source=source, scrapes=self.scrapes, gaps=self.gaps, resets=self.resets, reason=reason or few
        )

    def values(self, source: str) -> Iterable[ServerValue]:
        """What the table knows of the series there, each quantity once."""
        given: set[str] = set()
        for known in KNOWN if self.scrapes >= 2 else ():
            if known.quantity in given or not (read := self._read(known)):
                continue
            given.add(known.quantity)
            point, n = read
            why = UNSEEN if known.take == "max" else "nothing was observed in this cell"
            yield ServerValue(
                quantity=known.quantity, source=source, engine=known.engine, metric=known.name,
                point=point, n=n, unit=known.unit, note=known.note,
                reason=why if point is None else None,
            )  # fmt: skip

    def _read(self, known: Known) -> tuple[float | None, int] | None:
        """(value, n); None when the source has no such series."""
        if known.take == "max":
            if known.name not in self._levels and known.name not in self.highest:
                return None
            level = self.highest.get(known.name)
            return (level * known.factor if level is not None else None), max(self.scrapes - 2, 0)
        grown = [self._growth(known, name) for name in _series_names(known)]
        if known.take == "increase":
            there = [each for each in grown if each is not None]
            return (there[0] * known.factor, self.scrapes) if there else None
        total, count = grown
        if total is None or count is None:
            return None
        n = round(count)
        if known.take == "count":
            return float(n), n
        if known.take == "sum":
            return total * known.factor, n
        return (total / n * known.factor if n else None), n

    def _growth(self, known: Known, name: str) -> float | None:
        found = [value for key, value in self.grown.items() if key[0] == name and _counts(known, key)]
        total = sum(found)
        return total if found and isfinite(total) else None


def _levels(now: Mapping[Key, float]) -> dict[str, float]:
    """Each known gauge, its series added up."""
    found: dict[str, float] = {}
    for (name, _), value in now.items():
        if name in _LEVELS and isfinite(value):
            found[name] = found.get(name, 0.0) + value
    return found


def _tallies(points: Sequence[MetricPoint], windows: Mapping[str, Window]) -> dict[str, _Tally]:
    """Walk one source's scrapes in order, each cell's tally taking those of its window."""
    tallies: dict[str, _Tally] = {}
    now: dict[Key, float] = {}
    for scrape in _scrapes(points):
        head, before = scrape[0], dict(now)
        changed = [(point.name, point.labels) for point in scrape if point.name != UP]
        for point in scrape:
            if point.name == UP:
                continue
            if point.value is None:
                now.pop((point.name, point.labels), None)
            else:
                now[point.name, point.labels] = point.value
        cell = next((name for name, (begin, end) in windows.items() if begin <= head.time_ns <= end), None)
        if cell is None:
            continue
        tally = tallies.setdefault(cell, _Tally())
        if head.name == UP and head.value == 1.0:
            tally.take(before, now, changed)
        else:
            tally.gaps += 1
            tally.reason = tally.reason or head.detail
    return tallies


def _scrapes(points: Sequence[MetricPoint]) -> Iterable[list[MetricPoint]]:
    held: list[MetricPoint] = []
    for point in points:
        if held and point.time_ns != held[0].time_ns:
            yield held
            held = []
        held.append(point)
    if held:
        yield held


def _series_names(known: Known) -> tuple[str, ...]:
    """Where it is read from: of a histogram sum and count; a counter with and without the ending OpenMetrics adds."""
    if known.take == "max":
        return (known.name,)
    if known.take == "increase":
        bare = known.name.removesuffix("_total")
        return (known.name, bare) if bare != known.name else (known.name, f"{known.name}_total")
    return f"{known.name}_sum", f"{known.name}_count"


_LEVELS = frozenset(known.name for known in KNOWN if known.take == "max")


def _cumulative(name: str) -> bool:
    return name not in _LEVELS


def _counts(known: Known, key: Key) -> bool:
    if not known.labels:
        return True
    labels = labels_of(key[1])
    return all(labels.get(name) == value for name, value in known.labels)


def _client(exchanges: Sequence[Exchange]) -> ClientSaw:
    ttft = [exchange.ttft_ns for exchange in exchanges if exchange.ttft_ns is not None]
    e2e = [each.e2e_ns for each in exchanges if each.e2e_ns is not None and each.failure is None]
    return ClientSaw(
        requests=len(exchanges),
        failed=sum(exchange.failure is not None for exchange in exchanges),
        output_tokens=sum(exchange.tokens_out for exchange in exchanges),
        ttft_ms_mean=sum(ttft) / len(ttft) / 1e6 if ttft else None,
        e2e_latency_ms_mean=sum(e2e) / len(e2e) / 1e6 if e2e else None,
    )
