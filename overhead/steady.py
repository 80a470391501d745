"""Three rules that say from when on a load has settled, on traces whose truth is known.

    python overhead/steady.py [--replicates 400] [--online]

Each trace holds batch means of TTFT around 100 ms. Load is offered without a pause, and the rule is asked after every
fifth batch. Once it names a cut behind which there are 30 batches, these are what was measured; at 120 batches the run
is given up as unsteady. Shown for each rule: how often it measured, at how many batches (median), and how far the
measured mean lies from the settled level (percent: mean, and 95th percentile of its size). Traces that never settle
should be given up. `judge` is mser with a look at what is left after it: trend, and wandering.

--online is the whole of `warmup: steady` on a clock of its own: the arrivals of a closed loop of 4 slots that never
pauses (load/continuous.py), watched as it goes on (stats/settling.py), 200 requests measured, and what is said of them
afterwards (stats/warmth.py). A request takes 0.4 s, one in five 0.8 s, neighbours resemble each other; the server is
slower at first, in the way that the trace's name says. Shown: when measuring began (s, median), how often before the
server was warm, how far the measured mean then lies from the warm one, how often its interval over batches holds that,
and how often the cell was marked unsteady or was invalid.
"""

import argparse
import heapq
import sys

import numpy as np

from kvgauge.load.continuous import going_on
from kvgauge.load.tally import CellLoad, Tally
from kvgauge.load.work import Begin
from kvgauge.plan.records import Cell, UntilSteady
from kvgauge.samples.records import Exchange
from kvgauge.stats.cells import cell_metrics
from kvgauge.stats.settling import Settled, Settling
from kvgauge.stats.steady import RULES, Batch, judge
from kvgauge.stats.warmth import Judged, judged

LEVEL, LIMIT, MEASURED, LOOK_EVERY = 100.0, 120, 30, 5
NEVER = ("slow drift", "never steady")
SETTLED = {"periodic collection": LEVEL * (1 + 0.12 / 7)}


def trace(kind: str, rng: np.random.Generator, noise: float = 1.5) -> np.ndarray:
    """LIMIT batch means."""
    at = np.arange(LIMIT, dtype=float)
    correlated = np.zeros(len(at))
    for i, step in enumerate(rng.normal(0, noise, len(at))):
        correlated[i] = step + (0.3 * correlated[i - 1] if i else 0)
    base = {
        "steady": np.full(len(at), LEVEL),
        "step": np.where(at < 12, 1.8 * LEVEL, LEVEL),
        "exponential decay": LEVEL * (1 + 1.5 * np.exp(-at / 5)),
        "minutes of compilation": LEVEL * np.where(at < 18, 12, np.where(at < 22, 2, 1)),
        "periodic collection": LEVEL * np.where(at % 7 == 3, 1.12, 1),
        "slow drift": LEVEL * (1 + 0.006 * at),
        "never steady": LEVEL * np.exp(np.cumsum(rng.normal(0, 0.05, len(at)))),
    }[kind]
    return base + correlated


KINDS = ("steady", "step", "exponential decay", "minutes of compilation", "periodic collection", *NEVER)


def measured(rule: str, values: np.ndarray) -> tuple[int, np.ndarray] | None:
    """(batches seen, those that were measured); None: given up."""
    for n in range(MEASURED, LIMIT + 1, LOOK_EVERY):
        if rule == "judge":
            seen = judge([Batch(begin_ns=i, end_ns=i + 1, n=1, mean=float(v)) for i, v in enumerate(values[:n])])
            cut = seen.from_ns if seen.state == "steady" else None
        else:
            cut = RULES[rule](values[:n])
        if cut is not None and n - cut >= MEASURED:
            return n, values[cut:n]
    return None


SLOTS, MEASURED_REQUESTS, CHECK_NS, SECOND = 4, 200, 50_000_000, 1_000_000_000
CELL = Cell(
    name="online",
    load="closed",
    concurrency=SLOTS,
    requests=MEASURED_REQUESTS,
    output_tokens=2,
    warmup_requests=0,
    prompt="x",
)
ONLINE = {  # how many times longer a request takes that begins after so many seconds; when that is 1 within 1 %
    "warm": (lambda _at: 1.0, 0.0),
    "step of 4 s": (lambda at: 1.8 if at < 4 else 1.0, 4.0),
    "step of 12 s": (lambda at: 1.8 if at < 12 else 1.0, 12.0),
    "step of 30 s": (lambda at: 1.8 if at < 30 else 1.0, 30.0),
    "exponential decay": (lambda at: 1 + 1.5 * np.exp(-at / 3), 15.0),
    "compile of 10 s": (lambda at: 1 + max(0.0, 10 - at) / 0.4, 10.0),
    "slow drift": (lambda at: 1 + 0.006 * at, float("inf")),
}
WARM_MS = 400 * 1.2


class World:
    """Sends what is due and ends it after its time, on a clock of its own; what the real loop does, without sockets."""

    def __init__(self, slower, rng: np.random.Generator, steady: UntilSteady, *, cell: Cell = CELL) -> None:
        self.settling = Settling(steady)
        self.exchanges: list[Exchange] = []
        self._slower, self._rng, self._shared = slower, rng, 0.0
        offer, self.open_load = going_on(
            cell, self.settling, slots=cell.concurrency, seed=1, begin=Begin(0, 0), spread_ns_max=2 * SECOND,
            enough=lambda: False,
        )  # fmt: skip
        self.offer, self._tally = offer, Tally()
        dues, ends, check_ns, seq = list(offer.first()), [], 0, 0
        while dues or ends:
            now_ns = min(due.due_ns for due in dues) if dues else ends[0][0]
            now_ns = min(now_ns, ends[0][0]) if ends else now_ns
            while check_ns <= now_ns:
                if offer.over:
                    offer.stop(check_ns)
                    dues = [due for due in dues if due.due_ns <= check_ns]
                offer.overflow(check_ns)
                check_ns += CHECK_NS
            while ends and ends[0][0] <= now_ns:
                end_ns, slot, nth, due_ns = heapq.heappop(ends)
                self._end(nth, slot, due_ns, end_ns)
                dues += offer.ended(slot, end_ns)
            for due in sorted(due for due in dues if due.due_ns <= now_ns):
                dues.remove(due)
                heapq.heappush(ends, (now_ns + self._takes_ns(now_ns), due.slot, seq, due.due_ns))
                seq += 1
                dues += offer.begun(due.slot, now_ns)

    def _takes_ns(self, now_ns: int) -> int:
        self._shared = 0.5 * self._shared + self._rng.normal(0, 0.03)
        base_ms = 400 * (2 if self._rng.random() < 0.2 else 1)
        return int(1e6 * base_ms * max(0.1, 1 + self._shared) * self._slower(now_ns / SECOND))

    def _end(self, seq: int, slot: int, due_ns: int, end_ns: int) -> None:
        warmup = not self.offer.measured(slot, due_ns, True)
        exchange = Exchange(
            seq=seq, run_id="r", cell=CELL.name, warmup=warmup, slot=slot, worker=0, host="h", clock="monotonic",
            stamp_source="user", due_ns=due_ns, sent_ns=due_ns, arrivals_ns=(due_ns + (end_ns - due_ns) // 2, end_ns),
            done_ns=end_ns, tokens_in=1, tokens_out=2, tokens_source="usage", status=200,
        )  # fmt: skip
        self.exchanges.append(exchange)
        self.settling.add(exchange)
        self._tally.add(exchange, sent=True, fresh=False)

    @property
    def load(self) -> CellLoad:
        load = self._tally.cell_load(CELL.name, "monotonic", cpu_ns=0, stagger_ns=0, interrupted=False)
        return CellLoad(**{**{name: getattr(load, name) for name in load.__struct_fields__}, "edges": self.offer.edges})

    @property
    def settled(self) -> Settled:
        return self.settling.outcome

    def judged(self, cell: Cell = CELL) -> Judged:
        load = self.load
        assert load.started_ns is not None
        metrics = cell_metrics(self.exchanges, [], load.started_ns, load.started_ns + load.measured_ns)
        return judged(
            cell, load, self.exchanges, metrics, settled=self.settled, earlier=(), workers={}, graph_batch_max=None
        )


def online(kind: str, rng: np.random.Generator, steady: UntilSteady) -> tuple[float, bool, float, bool, bool]:
    """(when measuring began, s; bias in percent; whether the interval over batches holds the warm mean; unsteady or
    invalid; invalid)"""
    from kvgauge.stats.steady import batches, half_width

    world = World(ONLINE[kind][0], rng, steady)
    outcome, load = world.judged(), world.load
    good = [each for each in world.exchanges if not each.warmup]
    found = batches(
        [each.sent_ns for each in good], [(each.e2e_ns or 0) / 1e6 for each in good],
        width_ns=3 * 500_000_000 // 2, until_ns=(load.started_ns or 0) + load.measured_ns,
    )  # fmt: skip
    means = np.array([batch.mean for batch in found])
    mean = outcome.metrics["e2e_latency_ms_mean"].point or 0.0
    holds = abs(mean - WARM_MS) <= half_width(means)
    assert outcome.warm_up is not None
    marked = outcome.warm_up.state == "unsteady"
    return world.settled.took_ns / 1e9, holds, 100 * (mean / WARM_MS - 1), marked, outcome.trouble is not None


def show_online(replicates: int) -> None:
    heads = (
        "server",
        "at_least_s",
        "began at s",
        "too early",
        "bias %",
        "95 % of |bias|",
        "holds it",
        "unsteady",
        "invalid",
    )
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for at_least_s in (0.0, 40.0):
        for kind, (_, warm_s) in ONLINE.items():
            rng = np.random.default_rng(len(kind))
            steady = UntilSteady(limit_s=120, at_least_s=at_least_s)
            rows = [online(kind, rng, steady) for _ in range(replicates)]
            began, holds, bias, marked, invalid = (np.array(column) for column in zip(*rows, strict=True))
            early = f"{np.mean(began < warm_s):.0%}" if np.isfinite(warm_s) else ""
            shown = (f"{np.mean(bias):+.2f}", f"{np.quantile(np.abs(bias), 0.95):.2f}", f"{np.mean(holds):.0%}")
            shown = shown if np.isfinite(warm_s) else ("", "", "")
            cells = (kind, f"{at_least_s:g}", f"{np.median(began):.0f}", early, *shown)
            print("| " + " | ".join((*cells, f"{np.mean(marked):.0%}", f"{np.mean(invalid):.0%}")) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--online", action="store_true", help="the whole of `warmup: steady`")
    args = parser.parse_args()
    if args.online:
        show_online(args.replicates)
        return 0
    heads = ("trace", "rule", "measured", "at batch", "bias %", "95 % of |bias|")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for kind in KINDS:
        for rule in ("judge", *RULES):
            rng = np.random.default_rng(len(kind))
            stops, biases = [], []
            for _ in range(args.replicates):
                if (found := measured(rule, trace(kind, rng))) is not None:
                    stops.append(found[0])
                    biases.append(100 * (found[1].mean() / SETTLED.get(kind, LEVEL) - 1))
            bias = ("", "")
            if biases and kind not in NEVER:
                bias = (f"{np.mean(biases):+.2f}", f"{np.quantile(np.abs(biases), 0.95):.2f}")
            at = f"{np.median(stops):.0f}" if stops else ""
            print("| " + " | ".join((kind, rule, f"{len(stops) / args.replicates:.0%}", at, *bias)) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
