"""`--prove` of `kvgauge run` and `load`: a proof of the deployment, after a run's last cell and apart from timing."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kvgauge.cli.prove import add_proof_flags, task_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvgauge.evidence.facts import Proving
    from kvgauge.plan.records import Test
    from kvgauge.prove.judge import Proof
    from kvgauge.prove.run import Task

PREFIX = "prove-"
NAMES = ("workers", "log", "kv_bytes_per_token", "block_tokens", "rails", "gpudirect", "seconds", "requests",
         "concurrency", "isl", "osl", "token_ids", "reference", "reference_model", "answers")  # fmt: skip
FILE = "proof.json"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prove",
        action="store_true",
        help="with --url: after each run's last cell, prove what its KV moved over (docs/prove.md); a contradicted run "
        "is invalid",
    )
    add_proof_flags(parser, PREFIX)


def asked(args: argparse.Namespace) -> dict[str, object]:
    """The flags of a proof that were given otherwise than by default, by their names. raises UsageError"""
    from kvgauge.failures import UsageError

    plain = argparse.ArgumentParser()
    add_proof_flags(plain, PREFIX)
    given = {name: getattr(args, f"prove_{name}") for name in NAMES}
    changed = {name: value for name, value in given.items() if value != plain.get_default(f"prove_{name}")}
    if changed and not args.prove:
        raise UsageError(f"--{PREFIX}{next(iter(changed)).replace('_', '-')} goes with --prove")
    if args.prove and args.url is None:
        raise UsageError("--prove goes with --url; of the embedded target every transfer is checked as it is made")
    return changed


def conditions(args: argparse.Namespace) -> dict[str, str | float | None]:
    """What a run that goes on must be given again."""
    said = "; ".join(f"{name} {value}" for name, value in asked(args).items())
    return {"prove": (said or "yes") if args.prove else None}


def prover(
    args: argparse.Namespace, stop: "Callable[[], bool]"
) -> "Callable[[Path], Callable[[Test, str], Proving]] | None":
    """What makes the proof of a run, given the run's folder; None: nobody asked for one. raises UsageError"""
    from kvgauge.failures import UsageError

    if not args.prove:
        return None
    try:  # what is wrong with them is said before anything is measured
        task_of(_flags(args, None, None))
    except UsageError as error:
        raise UsageError(f"of the proof (flags begin with --{PREFIX} here): {error}") from None

    def of(folder: Path) -> "Callable[[Test, str], Proving]":
        return lambda test, model: _prove(task_of(_flags(args, test, model)), folder, stop)

    return of


def _flags(args: argparse.Namespace, test: "Test | None", model: str | None) -> argparse.Namespace:
    """As `kvgauge prove` would have them: what is expected, and of which model, is the plan's word."""
    from kvgauge.plan.records import UNOBSERVED

    flags = argparse.Namespace(**{**vars(args), **{name: getattr(args, f"prove_{name}") for name in NAMES}})
    flags.workers = flags.workers or args.metrics_url
    flags.model = model
    flags.backend = flags.fabric = flags.kv_model = None
    flags.kv_dtype, flags.tp = "bf16", 1
    if test is not None and test.backend != UNOBSERVED:
        flags.backend, flags.fabric = test.backend, test.fabric
        flags.kv_model, flags.kv_dtype, flags.tp = test.model, test.kv_dtype, test.decode_tp
    return flags


def _prove(task: "Task", folder: Path, stop: "Callable[[], bool]") -> "Proving":
    import msgspec

    from kvgauge.evidence.facts import Proving
    from kvgauge.failures import LoadError
    from kvgauge.prove.run import prove
    from kvgauge.samples.disk import write_whole

    try:
        proof = prove(task, stop=stop)
    except LoadError as error:
        return Proving(verdict="unproved", headline=str(error))
    write_whole(folder / FILE, msgspec.json.format(msgspec.json.encode(proof)))
    return Proving(verdict=proof.verdict, headline=proof.headline, contradicted=_against(proof))


def _against(proof: "Proof") -> tuple[str, ...]:
    return tuple(
        f"{claim.name}: {claim.text} ({claim.shown_by})" for claim in proof.claims if claim.verdict == "contradicted"
    )
