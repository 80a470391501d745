"""`kvgauge query`: SQL over the samples and results of any run folders."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

LATEST = Path("kvgauge-runs/latest")
TABLE_ROWS, FILE_ROWS = 1000, 1_000_000


def add_parser(commands: Any) -> None:
    """Add `query` to argparse's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "query",
        help="ask run folders in SQL",
        description="Answer one SELECT over the views of run folders (docs/query.md; --views lists them).",
    )
    parser.add_argument("sql", nargs="?", metavar="SQL", help="one SELECT, for example: SELECT * FROM runs")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help=f"run folders (default: {LATEST})")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="of the answer (table)")
    parser.add_argument("--limit", type=int, metavar="N", help=f"rows at most ({TABLE_ROWS}; csv, json: {FILE_ROWS})")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of the question (60)")
    parser.add_argument("--memory", type=float, default=2.0, metavar="GIB", help="what it may take (2)")
    parser.add_argument("--views", action="store_true", help="list the views and their columns")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 0. raises UsageError, SamplesError"""
    import sys

    from kvgauge.failures import UsageError

    if args.views:
        from kvgauge.query.views import described

        sys.stdout.write(described())
        return 0
    if args.sql is None:
        raise UsageError('no question: kvgauge query "SELECT test, cell, ttft_ms_mean FROM cells"; --views lists views')
    limit = args.limit if args.limit is not None else TABLE_ROWS if args.format == "table" else FILE_ROWS
    if limit < 1:
        raise UsageError(f"--limit: expected 1 or more, got {limit}")
    if not 0 < args.timeout <= 86_400:
        raise UsageError(f"--timeout: expected seconds up to 86400, got {args.timeout:g}")
    if not 0.05 <= args.memory <= 1024:
        raise UsageError(f"--memory: expected 0.05 to 1024 GiB, got {args.memory:g}")
    from kvgauge.query.session import Session

    with Session(args.folders or [LATEST], memory_gib=args.memory, timeout_s=args.timeout) as session:
        answer = session.ask(args.sql)
        rows = answer.rows()
        write = {"table": _table, "csv": _csv, "json": _json}[args.format]
        write(answer.columns, islice(rows, limit))
        sys.stdout.flush()
        if next(rows, None) is not None:
            print(f"kvgauge: these are the first {limit:,} rows; --limit N shows more", file=sys.stderr)
    return 0


def _table(columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    """Aligned text, numbers to the right. What came from elsewhere cannot steer the terminal."""
    from kvgauge.report.numbers import NONE, plain

    held = list(rows)
    texts = [[NONE if value is None else plain(_text(value)) for value in row] for row in held]
    heads = [plain(column) for column in columns]
    widths = [max(len(text) for text in (head, *column)) for head, column in _columns(heads, texts)]
    numeric = [
        all(isinstance(row[index], int | float) or row[index] is None for row in held) for index in range(len(heads))
    ]
    for line in (heads, ["─" * width for width in widths], *texts):
        cells = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        print("  ".join(cells).rstrip())
    print(f"{len(texts):,} row{'' if len(texts) == 1 else 's'}")


def _columns(heads: list[str], texts: list[list[str]]) -> Iterator[tuple[str, list[str]]]:
    return ((head, [line[index] for line in texts]) for index, head in enumerate(heads))


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv(columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    import csv
    import sys

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def _json(columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    """A list of objects, one a line; what JSON has no number for is null."""
    import json
    import math

    def known(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    separator = "["
    for row in rows:
        record = {column: known(value) for column, value in zip(columns, row, strict=True)}
        print(separator, json.dumps(record, default=str), sep="\n", end="")
        separator = ","
    print("\n]" if separator == "," else "[]")
