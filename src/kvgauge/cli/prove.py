"""`kvgauge prove`: what carried the KV cache of a deployment that is there, and whether all of it moved."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvgauge.cli.headers import add_flags, headers_of, tls_of
from kvgauge.cli.values import check_writable

if TYPE_CHECKING:
    from kvgauge.evidence.transport import Want
    from kvgauge.prove.run import Task

SECONDS_MIN, SECONDS_MAX = 10.0, 3600.0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "prove",
        help="prove on a live deployment over what its KV cache moves, and that all of it does",
        description="Sends unique prompts of known length and holds what they must have moved against what the "
        "workers' counters and logs say. It changes nothing there. Exit codes: 0 proved, 1 contradicted, 4 not proved, "
        "3 nothing could be measured.",
    )
    parser.add_argument("url", metavar="URL", help="of the deployment's OpenAI API")
    parser.add_argument("--model", "-m", metavar="NAME", help="as the server calls it (default: the one it serves)")
    add_proof_flags(parser)
    kv = parser.add_argument_group("model")
    kv.add_argument("--kv-model", metavar="NAME", help="a model kvgauge knows, when it is served by another name")
    kv.add_argument("--kv-dtype", default="bf16", help="(bf16)")
    kv.add_argument("--tp", type=int, default=1, metavar="N", help="of decode (1)")
    want = parser.add_argument_group("what is expected")
    want.add_argument("--backend", choices=("UCX", "LIBFABRIC"))
    want.add_argument("--fabric", choices=("efa", "ib", "tcp", "shm", "cuda"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the proof there too; - prints it instead")
    add_flags(parser)
    parser.set_defaults(run=run)


def add_proof_flags(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """What a proof is told wherever it is made; prefix: before each name, where others have these names.

    `kvgauge run` gives the rest itself: its plan says what is expected, and of which model.
    """

    def flag(group: "argparse._ArgumentGroup", *names: str, **more: Any) -> None:
        group.add_argument(*(f"--{prefix}{name}" for name in names), **more)

    seen = parser.add_argument_group("what a proof looks at")
    flag(seen, "workers", action="append", default=[], metavar="URL[,URL...]",
         help="the workers' /metrics, every decode worker's at least")  # fmt: skip
    flag(seen, "log", action="append", default=[], metavar="FILE[,FILE...]",
         help="the workers' logs; TensorRT-LLM's rank_*_send.csv and rank_*_recv.csv too")  # fmt: skip
    flag(seen, "kv-bytes-per-token", type=int, metavar="N", help="all layers, K and V, all ranks together")
    flag(seen, "block-tokens", type=int, default=16, metavar="N", help="(16; TensorRT-LLM: 32)")
    flag(seen, "rails", type=int, metavar="N", help="that a buffer uses")
    flag(seen, "gpudirect", choices=("yes", "no"))
    load = parser.add_argument_group("a proof's requests")
    flag(load, "seconds", type=float, default=60.0, metavar="S", help="all of it together (60)")
    flag(load, "requests", type=int, default=200, metavar="N", help="at most (200)")
    flag(load, "concurrency", type=int, default=4, metavar="N", help="(4)")
    flag(load, "isl", "input-len", type=int, default=512, metavar="TOKENS",
         help="of each prompt; a whole number of blocks makes the sum exact (512)")  # fmt: skip
    flag(load, "osl", "output-len", type=int, default=8, metavar="TOKENS", help="at least 2 (8)")
    flag(load, "token-ids", type=_range, default=None, metavar="LOW-HIGH",
         help="of the prompts, for a small vocabulary (0-31999)")  # fmt: skip
    flag(load, "reference", metavar="URL", help="the same model without a KV transfer, to compare answers with")
    flag(load, "reference-model", metavar="NAME", help="as the reference calls it")
    flag(load, "answers", type=int, default=16, metavar="N", help="greedy prompts, each asked twice (16)")


def run(args: argparse.Namespace) -> int:
    """raises UsageError, LoadError"""
    import msgspec

    from kvgauge.prove import page
    from kvgauge.prove.run import prove

    task = task_of(args)
    printed = str(args.json) == "-"
    if args.json is not None and not printed:
        check_writable("--json", args.json)
    proof = prove(task, lambda line: print(line, flush=True, file=sys.stderr if printed else sys.stdout))
    whole = msgspec.json.format(msgspec.json.encode(proof)) + b"\n"
    if printed:
        sys.stdout.write(whole.decode())
        return proof.exit_code
    print()
    print(page.text(proof))
    if args.json is not None:
        args.json.write_bytes(whole)
    return proof.exit_code


def task_of(args: argparse.Namespace) -> "Task":
    """What the flags ask for. raises UsageError, LoadError"""
    from kvgauge.failures import UsageError
    from kvgauge.load.site import site_of
    from kvgauge.prove.run import Task
    from kvgauge.scrape.source import SOURCES_MAX, metrics_url

    _check(args)
    tls = tls_of(args)
    site_of(args.url, tls)
    _check_reference(args)
    workers = tuple(dict.fromkeys(metrics_url(url, flag="--workers") for url in _listed(args.workers)))
    if len(workers) > SOURCES_MAX:
        raise UsageError(f"{len(workers)} --workers are more than the {SOURCES_MAX} that are asked")
    logs = tuple(Path(name) for name in dict.fromkeys(_listed(args.log)))
    for path in logs:
        if not path.is_file():
            raise UsageError(f"--log {path}: there is no such file; it is read where kvgauge runs, so copy it here")
    given = {} if args.token_ids is None else {"token_ids": args.token_ids}
    return Task(
        url=args.url,
        model=args.model,
        workers=workers,
        logs=logs,
        reference=args.reference,
        reference_model=args.reference_model,
        seconds=args.seconds,
        requests=args.requests,
        concurrency=args.concurrency,
        input_tokens=args.isl,
        output_tokens=args.osl,
        answers=args.answers,
        block_tokens=args.block_tokens,
        token_bytes=args.kv_bytes_per_token,
        kv_model=args.kv_model,
        kv_dtype=args.kv_dtype,
        tp=args.tp,
        want=_want(args),
        headers=headers_of(args),
        tls=tls,
        **given,
    )


def _want(args: argparse.Namespace) -> "Want":
    from kvgauge.evidence.transport import Want

    gpudirect = None if args.gpudirect is None else args.gpudirect == "yes"
    return Want(backend=args.backend, fabric=args.fabric, rails=args.rails, gpudirect=gpudirect)


def _check(args: argparse.Namespace) -> None:
    from kvgauge.failures import UsageError
    from kvgauge.models import DTYPE_BYTES, MODELS, check_tp
    from kvgauge.plan.nodes import nearest

    for name, value, low, high in (
        ("--seconds", args.seconds, SECONDS_MIN, SECONDS_MAX),
        ("--requests", args.requests, 1, 1_000_000),
        ("--concurrency", args.concurrency, 1, 1024),
        ("--isl", args.isl, 1, 1_000_000),
        ("--osl", args.osl, 2, 10_000),
        ("--answers", args.answers, 0, 200),
        ("--block-tokens", args.block_tokens, 1, 4096),
        ("--kv-bytes-per-token", args.kv_bytes_per_token, 1, 1 << 30),
        ("--rails", args.rails, 1, 1024),
    ):
        if value is not None and not low <= value <= high:
            raise UsageError(f"{name} must be {low:g} to {high:g}, not {value:g}")
    if args.kv_dtype not in DTYPE_BYTES:
        raise UsageError(f"unknown KV dtype {args.kv_dtype!r}; {nearest(args.kv_dtype, list(DTYPE_BYTES))}")
    if args.kv_model is not None and args.kv_model not in MODELS:
        raise UsageError(f"unknown model {args.kv_model!r}; {nearest(args.kv_model, list(MODELS))}")
    if args.kv_model is not None and (reason := check_tp(MODELS[args.kv_model], args.tp)) is not None:
        raise UsageError(reason)
    if args.tp < 1:
        raise UsageError(f"--tp must be at least 1, not {args.tp}")


def _check_reference(args: argparse.Namespace) -> None:
    """A deployment compared with itself always agrees. raises UsageError, LoadError for what is no URL"""
    from kvgauge.failures import UsageError
    from kvgauge.load.site import same_server

    if args.reference is None:
        if args.reference_model is not None:
            raise UsageError("--reference-model names a model of --reference URL: give that too")
        return
    same_model = args.reference_model is None or args.model in (None, args.reference_model)
    if same_server(args.url, args.reference) and same_model:
        raise UsageError(
            f"--reference {args.reference} is the deployment itself, so equal answers would prove nothing; name the "
            "same model served without a KV transfer, say a decode worker asked directly"
        )


def _listed(given: list[str]) -> list[str]:
    return [part for text in given for part in text.split(",") if part]


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) < int(high)):
        raise argparse.ArgumentTypeError(f"expected LOW-HIGH such as 0-4095, got {text!r}")
    return int(low), int(high)
