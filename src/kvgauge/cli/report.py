"""`kvgauge report`: the tables of a run folder, finished or not, and the earlier results that ship with kvgauge."""

import argparse
from pathlib import Path
from typing import Any

LATEST = Path("kvgauge-runs/latest")


def add_parser(commands: Any) -> None:
    """Add `report` to argparse's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="print the tables of a run folder",
        description="Print the tables of a run folder, finished or not. A folder of `kvgauge xfer` has its chart drawn "
        "again, too.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help=f"a run's folder or its results.json (default: {LATEST})"
    )
    parser.add_argument(
        "--reference",
        action="store_true",
        help="print the earlier, published results: after FOLDER's when that is given, else alone",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print results.json instead of tables")
    form.add_argument("--csv", action="store_true", help="print results.csv instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 0; what cannot be read is a SamplesError, options that contradict each other a UsageError."""
    import sys

    from kvgauge.failures import UsageError
    from kvgauge.report import results
    from kvgauge.report.published import published

    if args.folder is not None and (data := _of_xfer(args.folder)) is not None:
        return _transfers(args, data)
    parts = []
    if args.folder is not None or not args.reference:
        parts.append(results.read(LATEST if args.folder is None else args.folder))
    if args.reference:
        parts.append(published())
    if args.json or args.csv:
        if len(parts) > 1:
            raise UsageError("--json and --csv print one set of results: name FOLDER or --reference, not both")
        sys.stdout.write(results.json_text(parts[0]) if args.json else results.csv_text(parts[0]))
        return 0

    from kvgauge.report.text import page, print_results

    print_results(parts[0], page(), published=parts[1] if len(parts) > 1 else None)
    return 0


def _of_xfer(folder: Path) -> bytes | None:
    """Its results.json where `kvgauge xfer` wrote it."""
    from kvgauge.xfer.results import written

    try:
        data = (folder if folder.is_file() else folder / "results.json").read_bytes()
    except OSError:
        return None  # whoever reads it next says why
    return data if written(data) else None


def _transfers(args: argparse.Namespace, data: bytes) -> int:
    """raises UsageError, SamplesError"""
    import sys

    from kvgauge.cli.charts import drawn
    from kvgauge.failures import UsageError
    from kvgauge.report.numbers import plain
    from kvgauge.report.text import page
    from kvgauge.xfer.results import decode
    from kvgauge.xfer.table import render

    if args.csv or args.reference:
        asked = "--csv" if args.csv else "--reference"
        raise UsageError(f"{args.folder} is of kvgauge xfer: {asked} goes with kvgauge run's; take --json, or no flag")
    saved = decode(data, str(args.folder))
    if args.json:
        sys.stdout.write(data.decode())
        return 0
    console = page()
    for part in render(saved.rows, saved.ratios, saved.beside):
        console.print(part)
    for note in saved.notes:
        print(f"note: {plain(note)}")
    if args.folder.is_dir() and (chart := drawn(data, args.folder)) is not None:
        print(f"chart: {chart}")
    return 0
