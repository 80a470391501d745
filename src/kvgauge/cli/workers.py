"""The flag that says how many processes offer a cell, which `run` and `load` share."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvgauge.load.how_many import HowMany
    from kvgauge.plan.records import Cell, LoadWorkers, Plan


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_wanted,
        metavar="N|auto",
        help="processes that offer a cell together; auto: more than one only where it is needed and cores are free (1)",
    )


def workers_of(args: argparse.Namespace, plan: "Plan") -> "tuple[LoadWorkers, Callable[[Cell, int], HowMany] | None]":
    """(what was asked for, how it is decided for each cell; None: this process offers them all).

    raises UsageError for more than there are cores
    """
    from kvgauge.failures import UsageError
    from kvgauge.load import cores
    from kvgauge.load.how_many import WORKERS_MAX, how_many

    wanted: LoadWorkers = plan.load_workers if args.workers is None else args.workers
    if wanted == 1:
        return wanted, None
    if wanted != "auto":
        allowed = cores.allowed_cores()
        if wanted > min(allowed, WORKERS_MAX):
            raise UsageError(
                f"{wanted} load workers, and kvgauge may use {allowed} cores here: two on one delay each other. "
                f"Ask for at most {min(allowed, WORKERS_MAX)}, or for auto"
            )
    ours = 0 if args.url is not None else 1 + max(test.prefill_workers + test.decode_workers for test in plan.tests)
    seen = cores.look(reserved=ours)
    return wanted, lambda cell, too_few: how_many(cell, wanted, seen, too_few=too_few)


def _wanted(text: str) -> "LoadWorkers":
    if text == "auto":
        return "auto"
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"expected a number of processes, or auto, got {text[:60]!r}")
    return int(text)
