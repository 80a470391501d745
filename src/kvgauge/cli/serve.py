"""`kvgauge serve`: the embedded stack by itself, for any load generator."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvgauge.plan.records import Test


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("serve", help="start the embedded disaggregated stack and keep it running")
    parser.add_argument("--model", default="Qwen3-0.6B")
    parser.add_argument("--backend", choices=("UCX", "LIBFABRIC"), default="UCX")
    parser.add_argument("--build", default="1.5.0", help="NIXL version (default 1.5.0)")
    parser.add_argument("--tp", type=int, default=1, help="tensor parallelism of both sides")
    parser.add_argument("--prefill-tp", type=int, help="of prefill, where it differs")
    parser.add_argument("--decode-tp", type=int, help="of decode, where it differs")
    parser.add_argument("--prefill-workers", type=int, default=1)
    parser.add_argument("--decode-workers", type=int, default=1)
    parser.add_argument("--kv-dtype", default="bf16")
    parser.add_argument(
        "--operation", choices=("READ", "WRITE"), default="READ", help="decode reads, or prefill writes"
    )
    parser.add_argument("--progress-thread", action="store_true", help="NIXL's own thread; it takes a core for itself")
    parser.add_argument("--full-check", action="store_true", help="compare every byte of every block")
    parser.add_argument("--gpu", default="H100", help="whose compute times are modelled")
    parser.add_argument("--compute", type=float, default=1.0, help="multiplies modelled compute time; 0: none")
    parser.add_argument("--no-kv", action="store_true", help="no NIXL and no transfer: the stack by itself")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--concurrency", type=int, default=20, help="requests of --context tokens that fit at once")
    parser.add_argument("--context", type=int, default=1024, help="prompt and answer together, in tokens")
    parser.add_argument("--log-folder", default=None, help="where workers' logs go (default: a temporary folder)")
    parser.add_argument("--recompute-every", type=int, default=0, help=argparse.SUPPRESS)  # a fault, for tests
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """raises TargetError, BuildError, UsageError"""
    import signal
    import sys
    import tempfile
    import time
    from pathlib import Path

    from kvgauge.builds.install import install
    from kvgauge.failures import TargetError
    from kvgauge.load.open_files import raise_limit
    from kvgauge.plan.records import Cell, Run
    from kvgauge.target.embedded import EmbeddedTarget, Options

    test = _test(args)
    raise_limit()
    answer = max(1, args.context // 4)
    prompt = max(1, args.context - answer)
    cell = Cell(
        name="serve",
        load="closed",
        concurrency=args.concurrency,
        requests=0,
        output_tokens=answer,
        warmup_requests=0,
        input_tokens=prompt,
    )
    options = Options(
        host=args.host,
        port=args.port,
        compute=args.compute,
        kv=not args.no_kv,
        context_tokens=args.context,
        recompute_every=args.recompute_every,
    )
    logs = Path(args.log_folder) if args.log_folder else Path(tempfile.mkdtemp(prefix="kvgauge-serve-"))
    target = EmbeddedTarget(logs, lambda version: install(version, lambda line: print(line, flush=True)), options)
    stopped: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _frame: stopped.append(number))
    try:
        target.prepare(test)
        endpoint = target.start(Run(run_id="serve", test=test, repetition=1, order=0, seed=0, cells=(cell,)))
        what = "no KV transfer" if args.no_kv else f"{test.backend} over {test.fabric}, NIXL {test.build}"
        print(f"{test.model} ({what}) at {endpoint.url}/v1 - Ctrl-C ends it; logs in {logs}", flush=True)
        for note in target.notes:
            print(f"note: {note}", flush=True)
        while not stopped:
            target.phases()
            if (how := target.trouble()) is not None:
                raise TargetError(how)
            time.sleep(0.05)
        print("stopping", file=sys.stderr)
    finally:
        target.stop()
    return 0


def _test(args: argparse.Namespace) -> "Test":
    """The one test that these flags describe. raises UsageError"""
    from math import inf

    from kvgauge.builds.pins import known_versions
    from kvgauge.failures import UsageError
    from kvgauge.gpus import GPUS
    from kvgauge.models import DTYPE_BYTES, MODELS, check_tp
    from kvgauge.plan.nodes import nearest
    from kvgauge.plan.records import Test

    for word, known, what in (
        (args.model, MODELS, "model"),
        (args.kv_dtype, DTYPE_BYTES, "KV dtype"),
        (args.gpu, GPUS, "GPU"),
        (args.build, known_versions(), "build"),
    ):
        if word not in known:
            raise UsageError(f"unknown {what} {word!r}; {nearest(word, list(known))}")
    prefill_tp, decode_tp = args.prefill_tp or args.tp, args.decode_tp or args.tp
    if args.recompute_every and (args.operation != "READ" or args.recompute_every < 0):
        raise UsageError("--recompute-every N is a fault of decode's READ: give a number above 0 and --operation READ")
    for tp in (prefill_tp, decode_tp):
        if (reason := check_tp(MODELS[args.model], tp)) is not None:
            raise UsageError(reason)
    if (
        min(args.prefill_workers, args.decode_workers, args.concurrency) < 1
        or args.context < 2
        or not 0 <= args.compute < inf
    ):
        raise UsageError("workers and concurrency must be at least 1, context at least 2, compute at least 0")
    return Test(
        name="serve",
        backend=args.backend,
        fabric="tcp",
        build=args.build,
        patches="none",
        stand_in=None,
        model=args.model,
        prefill_tp=prefill_tp,
        decode_tp=decode_tp,
        prefill_workers=args.prefill_workers,
        decode_workers=args.decode_workers,
        kv_dtype=args.kv_dtype,
        operation=args.operation,
        progress_thread=args.progress_thread,
        full_check=args.full_check,
        gpu=args.gpu,
    )
