"""Three rules that say from when on a load has settled, on traces whose truth is known.

    python overhead/steady.py [--replicates 400]

Each trace holds batch means of TTFT around 100 ms. Load is offered without a pause, and the rule is asked after every
fifth batch. Once it names a cut behind which there are 30 batches, these are what was measured; at 120 batches the run
is given up as unsteady. Shown for each rule: how often it measured, at how many batches (median), and how far the
measured mean lies from the settled level (percent: mean, and 95th percentile of its size). Traces that never settle
should be given up. `judge` is mser with a look at what is left after it: trend, and wandering.
"""

import argparse
import sys

import numpy as np

from kvgauge.stats.steady import RULES, Batch, judge

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replicates", type=int, default=400)
    args = parser.parse_args()
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
