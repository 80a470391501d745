"""What the counters of each /metrics grew by between two scrapes, in our words. Pure."""

from collections.abc import Mapping
from math import isfinite

import msgspec

from kvgauge.evidence.known_metrics import KNOWN, Known
from kvgauge.evidence.prometheus import Key, labels_of

MORE: tuple[Known, ...] = (  # of no use in a report's table, but of use here
    Known(engine="vLLM", name="vllm:prompt_tokens_by_source_total", take="increase", quantity="computed_tokens",
          unit="tokens", means="prompt tokens computed here", labels=(("source", "local_compute"),)),
    Known(engine="vLLM", name="vllm:prompt_tokens_by_source_total", take="increase", quantity="cached_tokens",
          unit="tokens", means="prompt tokens found in this worker's cache", labels=(("source", "local_cache_hit"),)),
    Known(engine="vLLM", name="vllm:request_success_total", take="increase", quantity="aborted", unit="requests",
          means="of the requests ended, those whose client went away", labels=(("finished_reason", "abort"),)),
)  # fmt: skip
ASKED = tuple(known for known in (*KNOWN, *MORE) if known.take in ("sum", "count", "increase"))
_AT_WORK = {known.name for known in KNOWN if known.quantity in ("requests_running_max", "requests_waiting_max")}
BORN = "_created"  # not process_start_time_seconds, which some say in whole seconds
REPEATED = "tp_rank"  # SGLang's ranks each tell of the whole transfer


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What one source counted. values: (engine, quantity) -> growth; restarted: a series fell between the scrapes."""

    source: str
    values: dict[tuple[str, str], float]
    restarted: bool = False

    def get(self, engine: str, quantity: str) -> float | None:
        return self.values.get((engine, quantity))


def counted(source: str, before: Mapping[Key, float], after: Mapping[Key, float]) -> Counted:
    """A series that was not there before began at 0: servers name many only once they are used."""
    values: dict[tuple[str, str], float] = {}
    restarted = False
    by_name: dict[str, list[tuple[str, float]]] = {}
    wanted = {_series(known) for known in ASKED}
    for (name, labels), value in after.items():
        if name in wanted and isfinite(value):
            old = before.get((name, labels), 0.0)
            growth = value - old if isfinite(old) else value
            restarted = restarted or growth < 0
            by_name.setdefault(name, []).append((labels, max(0.0, growth)))
    for known in ASKED:
        rows = [
            (labels_of(labels), growth)
            for labels, growth in by_name.get(_series(known), ())
            if all(labels_of(labels).get(name) == value for name, value in known.labels)
        ]
        if rows and (known.engine, known.quantity) not in values:
            values[known.engine, known.quantity] = _total(rows) * known.factor
    return Counted(source=source, values=values, restarted=restarted)


def at_work(series: Mapping[Key, float]) -> float:
    """Requests that are computed or wait there, by any engine's gauges."""
    return sum(value for (name, _), value in series.items() if name in _AT_WORK and isfinite(value))


def told_again(sources: Mapping[str, Mapping[Key, float]]) -> set[str]:
    """Sources that are the same process as one before them: a router passes /metrics on, a worker has two addresses.

    Told by when its series were made, which Prometheus's client libraries say to the microsecond; a source that does
    not say it is its own.
    """
    again, known = set(), set()
    for url, series in sources.items():
        made = frozenset((key, value) for key, value in series.items() if key[0].endswith(BORN))
        if made and made in known:
            again.add(url)
        known.add(made)
    return again


def _series(known: Known) -> str:
    return f"{known.name}_{known.take}" if known.take in ("sum", "count") else known.name


def _total(rows: list[tuple[dict[str, str], float]]) -> float:
    """All added up; of series that differ in REPEATED alone, the largest."""
    groups: dict[tuple[tuple[str, str], ...], float] = {}
    for labels, growth in rows:
        group = tuple(sorted((name, value) for name, value in labels.items() if name != REPEATED))
        if REPEATED in labels:
            groups[group] = max(groups.get(group, 0.0), growth)
        else:
            groups[group] = groups.get(group, 0.0) + growth
    return sum(groups.values())
