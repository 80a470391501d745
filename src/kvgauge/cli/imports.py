"""`kvgauge import`: what other tools measured, into the same records."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add `import` to argparse's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "import",
        help="read results of AIPerf, vllm bench serve or nixlbench",
        description="Read results of AIPerf, `vllm bench serve --save-result` or nixlbench into a run folder of their "
        "own, with what they lack (docs/import.md). Several results of one load become repetitions.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE|FOLDER", help="what the tool wrote")
    parser.add_argument("--from", dest="tool", choices=("aiperf", "vllm", "nixlbench"), help="(told from the files)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder (default: below kvgauge-runs/)")
    parser.add_argument("--test", metavar="NAME", help="what to call the test (the tool and the model)")
    parser.add_argument("--cell", metavar="NAME", help="what to call the cell, to set it against that of a run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 0. raises UsageError, SamplesError; nothing is written before all of it was read"""
    from kvgauge.cli.pages import pages
    from kvgauge.failures import UsageError
    from kvgauge.peers.find import find
    from kvgauge.peers.write import check, write_run
    from kvgauge.report.text import page, print_results

    for flag, name in (("--test", args.test), ("--cell", args.cell)):
        if name is not None and not (name.strip() and name.isprintable() and len(name) <= 200):
            raise UsageError(f"{flag}: expected a name of 1 to 200 printable characters")
    pieces = find(args.paths, args.tool)
    check(pieces, args.cell)
    folder = _new_folder(args.out, pieces[0].tool)
    results = write_run(pieces, folder, test=args.test, cell=args.cell)
    with pages():
        print_results(results, page())
    print(f"results: {folder}/results.json")
    return 0


def _new_folder(out: Path | None, tool: str) -> Path:
    """A folder that did not exist. `latest` stays where it is: nothing was run. raises UsageError"""
    from datetime import datetime

    from kvgauge.failures import UsageError

    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = out or Path("kvgauge-runs") / f"{stamp}-import-{tool}"
    try:
        folder.mkdir(parents=True, exist_ok=False)
    except FileExistsError:
        raise UsageError(f"{folder} exists already; give --out a new folder: runs are never overwritten") from None
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}; give --out a folder that can be written") from None
    return folder
