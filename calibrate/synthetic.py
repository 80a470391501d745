"""`make calibrate`: the synthetic part, on every core, into calibrate/results/synthetic.json and docs/calibration.md.

python -m calibrate.synthetic [--comparisons 2000] [--experiments 400] [--processes N]
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

import kvgauge
from calibrate import family, page
from calibrate.parts import Counted, Part, parts_of
from calibrate.planted import Planted, found_of
from calibrate.records import Synthetic
from kvgauge.samples.disk import write_whole

HERE = Path(__file__).parent
LIMIT_S = 3600  # of a part


def calibrate(comparisons: int, experiments: int, processes: int, deadline_s: float) -> Synthetic:
    """deadline_s  parts that have not begun by then are left out; every rate says of how many it is"""
    begun = time.monotonic()
    kept = HERE / ".parts" / _code_sha256()[:16]
    kept.mkdir(parents=True, exist_ok=True)

    def made(part: Part) -> Counted | None:
        path = kept / f"{part.name}.json"
        if not path.exists():
            if time.monotonic() - begun > deadline_s:
                return None
            write_whole(path, _output(part))
            print(f"{part.name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        return msgspec.json.decode(path.read_bytes(), type=Counted)

    with ThreadPoolExecutor(processes) as pool:
        counted = list(pool.map(made, parts_of(comparisons, experiments)))
    return joined([one for one in counted if one is not None], comparisons, experiments)


def _output(part: Part) -> bytes:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(part.command, capture_output=True, check=False, timeout=LIMIT_S, env=environment)
    if done.returncode:
        raise SystemExit(f"{part.name} ended with {done.returncode}:\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def _code_sha256() -> str:
    """Of all that a part may run: kept parts of other code are not mixed in."""
    digest = hashlib.sha256()
    for folder in (HERE, Path(kvgauge.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def joined(counted: Sequence[Counted], comparisons: int, experiments: int) -> Synthetic:
    tallies: dict[str, dict[family.Design, family.Tally]] = {}
    tenths: dict[str, list[Planted]] = {}
    for part in counted:
        for design, tally in part.tallies:
            known = tallies.setdefault(part.kind, {})
            known[design] = known[design].joined(tally) if design in known else tally
        if part.planted is not None:
            tenths.setdefault(part.kind, []).append(part.planted)
    return Synthetic(
        schema=1,
        kvgauge=kvgauge.__version__,
        comparisons=comparisons,
        experiments=experiments,
        family=family.rows_of(tallies),
        planted=[found_of(kind, parts) for kind, parts in tenths.items()],
        stopping=[stopped for part in counted for stopped in part.stopped],
        levels=[nested for part in counted for nested in part.nested],
        drifts=[drifted for part in counted for drifted in part.drifted],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else "")
    parser.add_argument("--comparisons", type=int, default=2000, help="of each kind, and plans of each spread (2000)")
    parser.add_argument("--experiments", type=int, default=400, help="with a planted tenth, of each kind (400)")
    parser.add_argument("--deadline", type=float, default=float("inf"), metavar="S", help="begin no part after it")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--out", type=Path, default=page.SYNTHETIC, help="a file; docs/calibration.md is of the default"
    )
    args = parser.parse_args()
    found = calibrate(args.comparisons, args.experiments, args.processes, args.deadline)
    write_whole(args.out, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    print("\n".join(page.synthetic_lines(found)))
    if args.out == page.SYNTHETIC:
        page.write()
    return 1 if any("MISSED" in line for line in page.synthetic_lines(found)) else 0


if __name__ == "__main__":
    sys.exit(main())
