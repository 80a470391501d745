"""What belongs to a whole run and to none of its cells: handshakes, connection times, the machine, the cold start."""

from collections.abc import Sequence
from statistics import median

from kvgauge.evidence.facts import Evidence, MachineUse, Missing
from kvgauge.samples.records import Connection, Exchange
from kvgauge.stats.estimate import Estimate, bare, counted, missing

NS_PER_MS = 1e6


def run_metrics(
    evidence: Evidence, exchanges: Sequence[Exchange] = (), *, streamed: bool = True
) -> dict[str, Estimate]:
    """The run-level metrics of results.json, by name.

    exchanges  of the whole run, warm-up included: the cold start is read from them
    streamed   False: those of its first cell came whole, and their first tokens were not seen
    """
    return {
        "handshake_count_nixl": _count(evidence.handshakes_nixl, "handshakes"),
        "handshake_count_efa": _count(evidence.handshakes_efa, "handshakes"),
        **_connection_times(evidence.connections),
        "first_request_penalty_s": first_request_penalty(exchanges)
        if streamed
        else missing("s", "the answers of the first cell were not streamed"),
        "wire_bytes": _count(evidence.wire_bytes, "B"),
        **_machine(evidence.machine),
        "gpu_memory_bytes": _count(evidence.gpu_memory_bytes, "B"),
    }


def proved(evidence: Evidence) -> dict[str, str]:
    """What was seen to carry the transfers, in words: backend with its transfers, provider or lanes."""
    found = {}
    if evidence.proving is not None:
        found["transport"] = f"{evidence.proving.verdict} ({evidence.proving.headline})"
    elif evidence.unobserved is not None:
        found["backend"] = f"unproved ({evidence.unobserved})"
    if evidence.backends:
        found["backend"] = ", ".join(f"{name} ({count:,} transfers)" for name, count in evidence.backends.items())
    if evidence.providers:
        found["provider"] = ", ".join(evidence.providers)
    for fact in evidence.facts:
        if fact.name == "proxy":
            found["proxy"] = fact.value
    return found


def _count(value: int | Missing, unit: str) -> Estimate:
    return missing(unit, value.reason) if isinstance(value, Missing) else counted(value, unit, 1)


def _connection_times(connections: Sequence[Connection]) -> dict[str, Estimate]:
    """Slowest pair and mean of all pairs, in ms. Pairs of one run share its start, so there is no interval."""
    if not connections:
        none = missing("ms", "the target reports no connections")
        return {"connection_ms_max": none, "connection_ms_mean": none}
    times = [connection.total_ns / NS_PER_MS for connection in connections if connection.total_ns is not None]
    n = len(connections)
    if len(times) < n:
        none = missing(
            "ms",
            f"{n - len(times)} of {n} pairs of agents had fewer than 3 later transfers of their first one's size: what "
            "the first one cost beyond them is not known",
        )
        return {"connection_ms_max": none, "connection_ms_mean": none}
    modelled_ns = max(connection.modelled_ns for connection in connections)
    told = f"; {modelled_ns / NS_PER_MS:g} ms of each pair are modelled (cold_start)" if modelled_ns else ""
    return {
        "connection_ms_max": bare(max(times), "ms", n, f"the slowest pair: no interval within a run{told}"),
        "connection_ms_mean": bare(sum(times) / n, "ms", n, f"pairs of one run share its start: no interval{told}"),
    }


def _machine(use: MachineUse | Missing) -> dict[str, Estimate]:
    if isinstance(use, Missing):
        none = missing("%", use.reason)
        return {"machine_busy_pct": none, "machine_steal_pct": none}
    reason = "one value for the whole run"
    return {
        "machine_busy_pct": bare(100 * use.busy, "%", 1, reason),
        "machine_steal_pct": bare(100 * use.steal, "%", 1, reason),
    }


def first_request_penalty(exchanges: Sequence[Exchange]) -> Estimate:
    """TTFT of the run's very first request less the warm median of the same cell, in s.

    The warm ones are that cell's measured requests, or its later warm-up where it measured none; of conversations
    their first turns, since later ones are longer.
    """
    if not exchanges:
        return missing("s", "no request was sent")
    first = min(exchanges, key=lambda exchange: exchange.due_ns)
    cold_ns = first.ttft_ns
    if first.failure is not None or cold_ns is None:
        return missing("s", f"the first request failed: {first.failure or 'no content'}")
    later = [
        e for e in exchanges if e.cell == first.cell and e is not first and e.failure is None and e.turn in (None, 1)
    ]
    measured = [e for e in later if not e.warmup] or later
    warm_ns = [ttft for e in measured if (ttft := e.ttft_ns) is not None]
    if not warm_ns:
        return missing("s", f"no later request in cell {first.cell!r} to compare the first one with")
    return bare((cold_ns - median(warm_ns)) / 1e9, "s", 1, "there is one first request in a run")
