"""Whether answers waited for this client's delayed acknowledgement: what it looks like, and when it is sure. Pure.

A server that leaves Nagle's algorithm on sends an answer's head at once on a connection that has answered before, and
holds its first chunks back until the client's kernel has acknowledged the head. Linux delays that by 40 ms (up to one
tick of 10 ms more). So, and by nothing else we know of, in nearly every answer on a kept connection:

    first content 38 to 52 ms after the head, the same each time, and in one read that holds several events,
    while later reads of the same answer hold single ones, and the client reads what arrives without delay

A slow prefill gives a gap of any length, and single events; a server that sends many tokens at a time sends them as
one event, or does so all through the answer. What does not look so in nearly every answer is not remarked on.
"""

import statistics
from collections.abc import Sequence
from itertools import pairwise

from kvgauge.samples.records import Exchange

DELAYED_NS = (38_000_000, 52_000_000)  # Linux: TCP_DELACK_MIN is 40 ms, in ticks of 1 to 10 ms
ANSWERS_MIN = 10
SHARE_MIN = 0.8  # of the answers that can be looked at
EVENTS_MIN = 3  # that came together, at the start
LATER_SHARED_MAX = 1 / 3  # of the events after them; two at a time are a half
SPREAD_NS_MAX = 8_000_000  # between the middle eight tenths of the gaps
LAG_NS_MEAN_MAX = 2_000_000  # a client that reads late sees several events at once, whoever sent them


def held_back(exchanges: Sequence[Exchange]) -> str | None:
    """A remark for a cell whose first tokens waited for an acknowledgement; None where that is not sure."""
    seen = [
        exchange
        for exchange in exchanges
        if not exchange.warmup
        and exchange.failure is None
        and exchange.fresh is False
        and exchange.tls is None
        and exchange.first_byte_ns is not None
        and len(exchange.arrivals_ns) > 2 * EVENTS_MIN
        and (exchange.lag_ns_mean or 0) < LAG_NS_MEAN_MAX
    ]
    if len(seen) < ANSWERS_MIN:
        return None
    gaps_ns = [exchange.arrivals_ns[0] - (exchange.first_byte_ns or 0) for exchange in seen if _looks_held(exchange)]
    if len(gaps_ns) < max(2, SHARE_MIN * len(seen)):
        return None
    tenths = statistics.quantiles(gaps_ns, n=10)
    if tenths[8] - tenths[0] > SPREAD_NS_MAX:
        return None
    return (
        f"the server held back the first tokens of {len(gaps_ns)} of {len(seen)} answers on kept connections: they "
        f"came together, about {statistics.median(gaps_ns) / 1e6:.0f} ms after the answer's head. It waits for an "
        "acknowledgement (Nagle's algorithm), which this client's kernel delays. TTFT holds that, as it does for any "
        "client that keeps its connections. Set TCP_NODELAY on the server, or measure what is left with --quick-ack"
    )


def _looks_held(exchange: Exchange) -> bool:
    arrivals = exchange.arrivals_ns
    gap_ns = arrivals[0] - (exchange.first_byte_ns or 0)
    together = sum(1 for at_ns in arrivals if at_ns == arrivals[0])
    later = arrivals[together:]
    if not DELAYED_NS[0] <= gap_ns <= DELAYED_NS[1] or together < EVENTS_MIN or len(later) < EVENTS_MIN:
        return False
    shared = sum(1 for before, after in pairwise(later) if before == after)
    return shared <= LATER_SHARED_MAX * len(later)
