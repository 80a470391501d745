"""`make calibrate-real`: real runs of two equal tests, into calibrate/results/real.json and docs/calibration.md.

    python -m calibrate.real [--pairs 200] [--folder DIR] [--limit S]

The folder goes on where it was cut off. From its pairs: comparisons of consecutive pairs that share none, and many of
pairs drawn at random with sides drawn at random, which overlap.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from math import log, sqrt
from pathlib import Path

import msgspec
import numpy as np

from calibrate import page
from calibrate.family import Tally
from calibrate.rates import rate
from calibrate.records import Grouped, Real
from kvgauge import __version__
from kvgauge.compare.sides import Side, compare
from kvgauge.report import results
from kvgauge.report.against import side_of
from kvgauge.samples.disk import write_whole
from kvgauge.stats.means import mean_and_spread, t_quantile
from kvgauge.stats.runs import RUNS_MIN

HERE = Path(__file__).parent
PLAN, FOLDER = HERE / "real.yaml", Path("kvgauge-runs/calibration")
GROUPS = (5, 10)
DRAWN = 1000
BLOCK = 10  # neighbouring pairs that are left out together: they may resemble one another
EXIT_INTERRUPTED = 130


def conduct(folder: Path, pairs: int, limit_s: float) -> int:
    """Begin the folder or go on with it; kvgauge's own exit code, or that of an interruption when time was up."""
    command = [sys.executable, "-m", "kvgauge", "run"]
    if (folder / "conditions.json").exists():
        command += ["--resume", str(folder)]
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        plan = folder.parent / f"{folder.name}.yaml"
        plan.write_text(PLAN.read_text().replace("repetitions: 200", f"repetitions: {pairs}"))
        command += [str(plan), "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        try:
            return running.wait(limit_s)
        except subprocess.TimeoutExpired:
            running.terminate()
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()
            return EXIT_INTERRUPTED


def sides_of(folder: Path) -> tuple[Side, Side, dict[str, str | int]]:
    found = results.read(folder)
    source = str(folder)
    return side_of(found, source, "A"), side_of(found, source, "B"), found.machine


def valid_pairs(before: Side, after: Side) -> list[int]:
    key = before.primary
    if key is None:
        return []
    return sorted(before.values.values.get(key, {}).keys() & after.values.values.get(key, {}).keys())


def picked(before: Side, after: Side, repetitions: Sequence[int], swapped: Sequence[bool]) -> tuple[Side, Side]:
    """These pairs only, and of those that are swapped one side as the other."""
    other = dict(zip(repetitions, swapped, strict=True))

    def side(own: Side, others: Side) -> Side:
        values = {
            key: {k: (others if other[k] else own).values.values.get(key, {}).get(k) for k in repetitions}
            for key in own.values.values
        }
        known = {key: {k: v for k, v in of.items() if v is not None} for key, of in values.items()}
        return msgspec.structs.replace(own, values=msgspec.structs.replace(own.values, values=known))

    return side(before, after), side(after, before)


def consecutive(before: Side, after: Side, pairs: Sequence[int], size: int) -> Tally:
    """Groups of neighbours, none in two of them; what is left over at the end is left out."""
    tally = Tally()
    for start in range(0, len(pairs) - size + 1, size):
        tally.add(compare(*picked(before, after, pairs[start : start + size], [False] * size)))
    return tally


def drawn(
    before: Side, after: Side, pairs: Sequence[int], size: int, groups: int
) -> Mapping[str, tuple[float, float, float]]:
    """Alarms of random groups, in percent, with an interval that knows that they overlap.

    Delete-a-block jackknife: blocks of BLOCK neighbouring pairs; without a block are the groups that hold none of it.
    B. Efron, C. Stein, The jackknife estimate of variance, Annals of Statistics 9 (1981) 586-596.
    """
    rng = np.random.default_rng(size)
    alarms: dict[str, list[bool]] = {"any": [], "primary": []}
    blocks = max(2, len(pairs) // BLOCK)
    touched = np.zeros((groups, blocks), dtype=bool)
    for group in range(groups):
        places = np.sort(rng.choice(len(pairs), size, replace=False))
        tally = Tally()
        tally.add(compare(*picked(before, after, [pairs[i] for i in places], (rng.random(size) < 0.5).tolist())))
        alarms["any"].append(tally.alarms > 0)
        alarms["primary"].append(tally.primary_alarms > 0)
        touched[group, places * blocks // len(pairs)] = True
    return {name: _jackknife(np.array(found), touched) for name, found in alarms.items()}


def _jackknife(alarms: "np.ndarray", touched: "np.ndarray") -> tuple[float, float, float]:
    whole = float(alarms.mean())
    without = [float(alarms[~column].mean()) for column in touched.T if not column.all()]
    blocks = len(without)
    if blocks < 2:
        return 100 * whole, 0.0, 100.0
    mean = sum(without) / blocks
    error = sqrt((blocks - 1) / blocks * sum((one - mean) ** 2 for one in without))
    half = t_quantile(0.975, blocks - 1) * error
    return 100 * whole, 100 * max(0.0, whole - half), 100 * min(1.0, whole + half)


def judged(folder: Path, groups: int = DRAWN) -> Real:
    """raises SystemExit when the folder has too few pairs"""
    before, after, machine = sides_of(folder)
    pairs = valid_pairs(before, after)
    key = before.primary
    if key is None or len(pairs) < 2 * RUNS_MIN:
        raise SystemExit(f"{folder} has {len(pairs)} valid pairs: {2 * RUNS_MIN} are needed. Run it on")
    values = before.values.values[key], after.values.values[key]
    rows = []
    for size in (size for size in GROUPS if size <= len(pairs) // 2):
        tally, random = consecutive(before, after, pairs, size), drawn(before, after, pairs, size, groups)
        rows.append(
            Grouped(
                pairs=size,
                alarms=rate(tally.alarms, tally.comparisons),
                primary_alarms=rate(tally.primary_alarms, tally.comparisons),
                coverage=rate(tally.primary_covered, tally.comparisons),
                drawn=groups,
                drawn_alarms_pct=random["any"],
                drawn_primary_alarms_pct=random["primary"],
            )
        )
    verdicts = [row for row in compare(before, after).rows if row.row.verdict != "cannot tell"]
    made = max(len(before.values.left_out), len(after.values.left_out))
    return Real(
        schema=1,
        kvgauge=__version__,
        machine={name: value for name, value in machine.items() if name != "host"},
        plan="Qwen3-0.6B over UCX (tcp)",
        pairs=len(pairs),
        left_out=made,
        metrics=len(verdicts),
        spread_pct=100 * mean_and_spread([log(values[1][k] / values[0][k]) for k in pairs])[1],
        groups=rows,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="pairs of real runs of two equal tests")
    parser.add_argument("--pairs", type=int, default=200, help="of a new folder (200)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where the runs are kept ({FOLDER})")
    parser.add_argument("--limit", type=float, default=3600, metavar="S", help="end the runs then; go on later (3600)")
    parser.add_argument("--out", type=Path, default=page.REAL, help="a file; docs/calibration.md is of the default")
    parser.add_argument("--judge-only", action="store_true", help="make no run")
    args = parser.parse_args()
    code = 0 if args.judge_only else conduct(args.folder, args.pairs, args.limit)
    if code == EXIT_INTERRUPTED:
        print(f"not finished: the same command goes on in {args.folder}", file=sys.stderr)
        return code
    if code not in (0, 1):  # 1: an alarm over all pairs, which is counted below
        print(f"kvgauge run ended with {code}: {args.folder} has runs that are not valid", file=sys.stderr)
    found = judged(args.folder)
    write_whole(args.out, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    lines = list(page.real_lines(found))
    print("\n".join(lines))
    if args.out == page.REAL:
        page.write()
    return 1 if any("MISSED" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
