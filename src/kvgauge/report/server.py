"""The server's own numbers of a cell, in one line beside the client's."""

from collections.abc import Iterable, Sequence

from kvgauge.report.numbers import MIB, number
from kvgauge.report.records import TestResult
from kvgauge.report.rows import runs_in
from kvgauge.stats.server import Server, ServerValue


def server_line(test: TestResult, cell: str | None) -> str | None:
    """Over the valid runs of that cell: means of runs, sums of counts, the largest of levels. None: nothing scraped."""
    seen = [run.server for run in runs_in(test, cell, "valid") if run.server is not None]
    if not seen:
        return None
    gaps, scrapes = sum(s.gaps for server in seen for s in server.sources), _scrapes(seen)
    if not any(server.values for server in seen):
        reasons = [s.reason for server in seen for s in server.sources if s.reason]
        return f"server in {cell}: no known metric ({scrapes} scrapes, {gaps} without an answer{_first(reasons)})"
    said = [*_ttft(seen), *_levels(seen), *_moves(seen), *_prefix(seen), *_others(seen)]
    if gaps:
        said.append(f"{gaps} of {gaps + scrapes} scrapes without an answer")
    resets = sum(s.resets for server in seen for s in server.sources)
    if resets:
        said.append(f"its counters began again {resets} times")
    return f"server in {cell} (n={len(seen)}): " + " · ".join(said)


def _scrapes(seen: Sequence[Server]) -> int:
    return sum(source.scrapes for server in seen for source in server.sources)


def _first(reasons: Sequence[str]) -> str:
    return f"; {reasons[0]}" if reasons else ""


def _of(server: Server, quantity: str) -> list[ServerValue]:
    """Every source of the first engine that has it: another engine there would count the same things again."""
    found = [value for value in server.values if value.quantity == quantity and value.point is not None]
    return [value for value in found if value.engine == found[0].engine]


def _total(seen: Sequence[Server], quantity: str) -> float | None:
    points = [value.point or 0.0 for server in seen for value in _of(server, quantity)]
    return sum(points) if points else None


def _mean(seen: Sequence[Server], quantity: str) -> float | None:
    """Mean over runs of the mean over a run's sources, each weighed by its observations."""
    means = []
    for server in seen:
        values = [value for value in _of(server, quantity) if value.n]
        if values:
            means.append(sum((value.point or 0.0) * value.n for value in values) / sum(value.n for value in values))
    return sum(means) / len(means) if means else None


def _highest(seen: Sequence[Server], quantity: str) -> float | None:
    return max((value.point or 0.0 for server in seen for value in _of(server, quantity)), default=None)


def _ttft(seen: Sequence[Server]) -> Iterable[str]:
    own = _mean(seen, "ttft_ms_mean")
    client = [server.client.ttft_ms_mean for server in seen if server.client.ttft_ms_mean is not None]
    if own is not None and client:
        yield f"TTFT mean {number(own)} ms, the client's {number(sum(client) / len(client))} ms of the same requests"


def _levels(seen: Sequence[Server]) -> Iterable[str]:
    running, waiting = _highest(seen, "requests_running_max"), _highest(seen, "requests_waiting_max")
    if running is not None:
        more = f", {waiting:,.0f} waiting" if waiting is not None else ""
        yield f"at most {running:,.0f} running{more}"


def _moves(seen: Sequence[Server]) -> Iterable[str]:
    moved, each, count = _total(seen, "kv_bytes"), _mean(seen, "kv_transfer_ms_mean"), _total(seen, "kv_transfers")
    if moved is None:
        moved = _total(seen, "kv_rx_bytes")
    if moved is not None:
        times = f" in {count:,.0f} transfers" if count is not None else ""
        yield f"KV {number(moved / MIB, 1)} MiB{times}" + (f", mean {number(each)} ms" if each is not None else "")
    failed = _total(seen, "kv_failures")
    if failed is not None:
        yield f"KV failures {failed:,.0f}"


def _prefix(seen: Sequence[Server]) -> Iterable[str]:
    hits, asked = _total(seen, "prefix_hit_tokens"), _total(seen, "prefix_query_tokens")
    if hits is not None:
        yield f"prefix cache hits {hits:,.0f}" + (f" of {asked:,.0f}" if asked is not None else "") + " tokens"


def _others(seen: Sequence[Server]) -> Iterable[str]:
    """Requests the server had in the cell that this client did not send.

    By the source that counts most: a prefill and a decode worker, and a router before them, each count a request.
    """
    of_runs = [max((v.point or 0.0 for v in _of(server, "first_tokens")), default=None) for server in seen]
    counted = sum(most for most in of_runs if most is not None)
    sent = sum(server.client.requests for server in seen)
    if counted > sent:
        yield f"the server answered {counted:,.0f} requests, this client sent {sent:,}: somebody else used it too"
