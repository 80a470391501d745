"""What an open load offered, what of it was kept, and who is to blame where it was not."""

from typing import TYPE_CHECKING

from kvgauge.plan.open import said
from kvgauge.plan.records import Cell
from kvgauge.stats.cells import NS_PER_MS
from kvgauge.stats.estimate import Estimate, bare, counted, missing

if TYPE_CHECKING:
    from kvgauge.load.tally import CellLoad, OpenOffer

OWN_LATE_MS_MIN = 2.0  # a client that is less late than this on average
SATURATED_SHARE = 0.95  # of the offered rate
OWN_LATE_SHARE = 0.1  # or less than this share of the mean TTFT, does not shape the result


def offered_metrics(load: "CellLoad") -> dict[str, Estimate]:
    """The metrics of an open cell beyond those of every cell; of a closed one its new connections only."""
    n = load.offered
    found = {"new_connections": counted(load.new_connections, "requests", n)}
    offer = load.open
    if offer is None:
        return found
    found["offered_rate_req_s"] = _rate(n, offer.due_span_ns)
    found["sent_rate_req_s"] = _saturated(_rate(n - offer.given_up, offer.sent_span_ns), found["offered_rate_req_s"])
    found["queued"] = counted(offer.queued, "requests", n)
    found["unsent"] = counted(offer.given_up, "requests", n)
    found["under_way_max"] = counted(offer.under_way_max, "requests", n)
    found["client_late_ms_mean"] = bare(
        offer.own_late_ns_mean / NS_PER_MS, "ms", n, "the client's own part: no interval within a run"
    )
    found["client_late_ms_max"] = bare(offer.own_late_ns_max / NS_PER_MS, "ms", n, "the largest of all: no interval")
    return found


def _rate(requests: int, span_ns: int | None) -> Estimate:
    """Intervals between requests over their whole length: n requests are n - 1 intervals."""
    if requests < 2 or not span_ns:
        return missing("req/s", "a rate needs two requests at different times")
    return bare((requests - 1) / (span_ns / 1e9), "req/s", requests, "one value for the whole run")


def _saturated(sent: Estimate, offered: Estimate) -> Estimate:
    """Says so where requests left markedly slower than they were due."""
    if sent.point is None or offered.point is None or sent.point >= SATURATED_SHARE * offered.point:
        return sent
    reason = f"below the {offered.point:.3g} req/s offered: latency grows for as long as such a load lasts"
    return bare(sent.point, sent.unit, sent.n, reason)


def offered_troubles(cell: Cell, load: "CellLoad", ttft_ms_mean: float | None) -> list[str]:
    """Why the load was not the one that was asked for; empty when it was, or is closed.

    A server that lets requests wait does not make an open load wrong, only late: latency counts from due times.
    """
    offer = load.open
    if offer is None:
        return []
    if offer.given_up:
        return [_not_kept(cell, load, offer)]
    own_ms = offer.own_late_ns_mean / NS_PER_MS
    if own_ms > OWN_LATE_MS_MIN and (ttft_ms_mean is None or own_ms > OWN_LATE_SHARE * ttft_ms_mean):
        return [
            f"this client was the bottleneck: though a connection was free, requests left {own_ms:.1f} ms late on "
            f"average (at most {offer.own_late_ns_max / NS_PER_MS:.1f} ms), and TTFT counts that. Lower the rate, or "
            "run kvgauge on a machine with a core to spare"
        ]
    return []


def _not_kept(cell: Cell, load: "CellLoad", offer: "OpenOffer") -> str:
    seen = (
        f"the offered rate ({said(cell)}) was not kept: {offer.given_up} requests waited and were never sent, because "
        "too many did, or because the cell's time was over"
    )
    if offer.under_way_max < offer.slots:
        return (
            f"{seen}. Only {offer.under_way_max} of {offer.slots} possible requests were under way: this client could "
            "not offer the rate. Lower it, or run kvgauge on a machine with a core to spare"
        )
    limit = f"all {offer.slots} requests that may be under way were"
    if offer.slots < cell.concurrency:
        limit += f" ({cell.concurrency} were asked for; file descriptors allow no more: raise `ulimit -n`)"
    done = ""
    if load.started_ns is not None and load.ended_ns is not None and load.ended_ns > load.started_ns:
        done = f", and it finished {load.completed / ((load.ended_ns - load.started_ns) / 1e9):.3g} req/s"
    return f"{seen}. The server is saturated: {limit}{done}. Offer less, or raise the cell's concurrency"
