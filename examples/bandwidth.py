"""How fast KV moved in each test of a finished run, beside the rate its path was held to: a table, and a verdict.

    python examples/bandwidth.py FOLDER RATE [DELAY]        RATE as tc takes it: 200mbit, 1gbit

Bandwidth is a transfer's bytes over its time, from the first post to the last completion. Exit code 1 when any
transfer of any test was faster than RATE: then something else than that path carried it.
"""

import re
import statistics
import sys
from pathlib import Path

import msgspec

from kvgauge.samples.read import load_transfers

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def bits_a_second(rate: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", rate)
    if match is None:
        sys.exit(f"cannot read the rate {rate!r}: give it as 200mbit or 1gbit")
    return int(float(match[1]) * UNITS[match[2]])


def bandwidths(folder: Path) -> list[float]:
    """bit/s of each transfer of one run that ended well."""
    return [
        8e9 * transfer.bytes_listed / (transfer.transferred_ns - transfer.posted_ns)
        for transfer in load_transfers(folder)
        if transfer.failure is None and transfer.transferred_ns is not None
    ]


def main() -> int:
    folder, rate = Path(sys.argv[1]), sys.argv[2]
    delay = sys.argv[3] if len(sys.argv) > 3 else "not known"
    bound = bits_a_second(rate)
    results = msgspec.json.decode((folder / "results.json").read_bytes())
    print(f"the path: {rate}, delay {delay}")
    print(f"{'test':12} {'transfers':>9} {'median Mbit/s':>14} {'least':>9} {'most':>9} {'most / rate':>12}")
    faster = []
    for test in results["tests"]:
        runs = dict.fromkeys(run["run_id"] for run in test["runs"])
        found = [value for run in runs for value in bandwidths(folder / "runs" / run)]
        if not found:
            print(f"{test['name']}: no transfer ended well", file=sys.stderr)
            return 1
        shown = (f"{value / 1e6:.1f}" for value in (statistics.median(found), min(found), max(found)))
        median, least, most = shown
        print(f"{test['name']:12} {len(found):9} {median:>14} {least:>9} {most:>9} {max(found) / bound:>12.1%}")
        if max(found) > bound:
            faster.append(test["name"])
    if faster:
        print(f"faster than its path: {', '.join(faster)}. Something else carried the KV", file=sys.stderr)
    return 1 if faster else 0


if __name__ == "__main__":
    sys.exit(main())
