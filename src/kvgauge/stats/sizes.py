"""With how many requests at a time decode ran: before a cell was measured, and while it was. Pure.

An engine captures a CUDA graph for each batch size when it first meets it, and runs without one above the largest.
Where the target tells the moments of its phases, a request counts from when its KV had arrived, on its decode worker;
else (a URL) from when it was sent. It counts to its last content. Sizes that lasted less than a decode step do not
count.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import NS_PER_MS, tpot_ms

HELD_NS_MIN = 1_000_000  # where nobody knows how long a step is
Stay = tuple[int, int, int]  # from, to (ns), number of the decode worker


def stays(exchanges: Iterable[Exchange], workers: Mapping[str, int]) -> list[Stay]:
    """When each answered request was in a decode batch. workers: request id -> its decode worker"""
    found = []
    for each in exchanges:
        if not each.arrivals_ns or each.failure == "unsent":
            continue
        phases = each.phases
        begin_ns = each.sent_ns
        if (
            phases is not None
            and phases.transferred_ns is not None
            and (phases.clock, phases.host)
            == (
                each.clock,
                each.host,
            )
        ):
            begin_ns = phases.transferred_ns
        found.append((begin_ns, each.arrivals_ns[-1], workers.get(each.request_id or "", 0)))
    return found


def reached(found: Sequence[Stay], *, from_ns: int, to_ns: int, held_ns: int) -> set[int]:
    """The batch sizes that lasted at least so long between these two moments, on any worker."""
    sizes: set[int] = set()
    for worker in {stay[2] for stay in found}:
        moves = sorted(
            move for begin, end, of in found if of == worker and end > begin for move in ((begin, 1), (end, -1))
        )
        size, since_ns = 0, from_ns
        for at_ns, change in moves:
            if size and min(at_ns, to_ns) - max(since_ns, from_ns) >= held_ns:
                sizes.add(size)
            size, since_ns = size + change, at_ns
    return sizes


def held_ns_of(exchanges: Iterable[Exchange]) -> int:
    """How long a decode step is, as far as answers show it."""
    paces = [pace for each in exchanges if (pace := tpot_ms(each)) is not None]
    return max(HELD_NS_MIN, round(median(paces) * NS_PER_MS)) if paces else HELD_NS_MIN


def listed(sizes: Iterable[int]) -> str:
    """`1-4, 7`"""
    runs: list[list[int]] = []
    for size in sorted(sizes):
        if runs and size == runs[-1][1] + 1:
            runs[-1][1] = size
        else:
            runs.append([size, size])
    return ", ".join(f"{low}-{high}" if high > low else str(low) for low, high in runs) or "none"
