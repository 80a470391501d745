"""`kvgauge load`: load one server that is there, and get the files, tables and results.json of `kvgauge run`."""

import argparse
from pathlib import Path

from kvgauge.cli import proving, values, watching, workers
from kvgauge.cli.headers import add_flags, headers_of, proxies_of, tls_of


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "load",
        help="load a server at a URL: AIPerf's flags (vLLM's are accepted), the results of `run`",
        description="Loads one OpenAI-compatible server and keeps every request's moments. Its transport is not seen: "
        "`kvgauge run` proves what carried the KV cache.",
    )
    parser.add_argument("--url", "--base-url", required=True, metavar="URL")
    parser.add_argument("--model", "-m", metavar="NAME", help="as the server calls it (default: the one it serves)")
    load = parser.add_argument_group("load")
    load.add_argument("--concurrency", "--max-concurrency", type=values.whole_numbers, default=(), metavar="N[,N...]",
                      help="requests under way at a time, a cell each (1)")  # fmt: skip
    load.add_argument("--request-rate", type=_rates, default=(), metavar="R[,R...]",
                      help="requests per second, a cell each, whatever has ended")  # fmt: skip
    load.add_argument("--arrival-pattern", choices=("constant", "poisson", "gamma"), help="of a rate (poisson)")
    load.add_argument("--burstiness", "--arrival-smoothness", type=float, metavar="SHAPE",
                      help="gamma's shape: below 1 in clusters, above 1 more even")  # fmt: skip
    load.add_argument("--rate-steps", type=_steps, default=(), metavar="R:S[,R:S...]",
                      help="a rate for so many seconds, then the next, e.g. 1:30,5:30")  # fmt: skip
    load.add_argument("--trace", metavar="FILE", help="replay Mooncake's JSONL: timestamp, input_length, output_length")
    load.add_argument("--speed-up", type=float, metavar="X", help="divide a trace's time by this")
    load.add_argument("--request-count", "--num-prompts", type=values.whole_numbers, default=(), metavar="N[,N...]",
                      help="for every cell, or one for each (10 a slot; 100 of a rate)")  # fmt: skip
    load.add_argument("--benchmark-duration", type=float, metavar="S", help="nothing becomes due later than this")
    load.add_argument("--until", type=_until, metavar="METRIC:SHARE",
                      help="stop when the mean is known so well, e.g. ttft_ms_mean:2%%")  # fmt: skip
    load.add_argument("--warmup-request-count", "--num-warmups", type=int, metavar="N", help="before each cell")
    load.add_argument("--warmup", metavar="steady[:S]",
                      help="until TTFT and latency are steady, in one load with what is measured; after S s (120) "
                      "it is measured all the same, and said to be unsteady")  # fmt: skip
    load.add_argument("--isl", "--input-len", "--synthetic-input-tokens-mean", type=int, metavar="TOKENS",
                      help="of a prompt that is unique to each request (512)")  # fmt: skip
    load.add_argument("--osl", "--output-len", "--output-tokens-mean", type=int, metavar="TOKENS", help="(128)")
    load.add_argument("--prompt", metavar="TEXT", help="this text each time, instead of --isl")
    load.add_argument("--dataset", metavar="FILE", help="prompts of ShareGPT's JSON or of JSONL, instead of --isl")
    load.add_argument("--endpoint-type", choices=("completions", "chat"), help="(completions)")
    load.add_argument("--no-streaming", action="store_true", help="whole answers: nothing is known of first tokens")
    load.add_argument("--shared-prefix", type=int, metavar="TOKENS",
                      help="of --isl, how many all prompts have in common at their start")  # fmt: skip
    load.add_argument("--prompt-kind", choices=("tokens", "text"),
                      help="of prompts that are made (tokens: ids, exact by any tokenizer; chat: text)")  # fmt: skip
    load.add_argument("--tokenizer", metavar="PATH",
                      help="the model's tokenizer.json, or its folder: makes prompts, and counts answers without usage "
                      "(default: Qwen3's, an estimate for other models)")  # fmt: skip
    load.add_argument("--allow-eos", action="store_true", help="the model may end its answers early")
    load.add_argument("--goodput", nargs="+", default=(), metavar="NAME:MS",
                      help="objectives: ttft, tpot and e2el, e.g. ttft:200 tpot:50")  # fmt: skip
    load.add_argument("--repetitions", type=int, default=1, metavar="N", help="do it all N times (1)")
    load.add_argument("--random-seed", "--seed", type=int, default=1, metavar="N")
    _add_conversations(parser.add_argument_group("conversations"))
    add_flags(parser)
    parser.add_argument("--out", "--output-artifact-dir", "--result-dir", type=Path, metavar="DIR",
                        help="a new folder (default: below kvgauge-runs/)")  # fmt: skip
    parser.add_argument(
        "--deployment", metavar="NAME", help="what this deployment is called, to tell it from others there"
    )
    watching.add_flags(parser)
    workers.add_flags(parser)
    proving.add_flags(parser)
    parser.add_argument("--request-timeout", type=float, default=120.0, metavar="S", help="of one request (120)")
    parser.add_argument("--quick-ack", action="store_true", help="acknowledge every read at once (TCP_QUICKACK, Linux)")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the cells; send nothing")
    parser.set_defaults(run=run)


def _add_conversations(group: "argparse._ArgumentGroup") -> None:
    """AIPerf's names, and those it had before."""
    group.add_argument("--conversation-num", "--num-conversations", "--num-sessions", type=values.whole_numbers,
                       default=(), metavar="N[,N...]",
                       help="instead of --request-count (10 a slot; 100 of a rate)")  # fmt: skip
    group.add_argument("--conversation-turn-mean", "--session-turns-mean", type=float, metavar="N",
                       help="requests of each (1); of a dataset the most (all)")  # fmt: skip
    group.add_argument("--conversation-turn-stddev", "--session-turns-stddev", type=float, metavar="N", help="(0)")
    group.add_argument("--conversation-turn-delay-mean", "--session-turn-delay-mean", type=float, metavar="MS",
                       help="from the end of an answer to the next turn (0)")  # fmt: skip
    group.add_argument("--conversation-turn-delay-stddev", "--session-turn-delay-stddev", type=float, metavar="MS",
                       help="(0)")  # fmt: skip
    group.add_argument("--conversation-history", choices=("answers", "recorded"),
                       help="in later turns: the model's own, or the dataset's (answers)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """raises UsageError, LoadError, SamplesError"""
    from kvgauge.cli.run import conduct_plan
    from kvgauge.failures import UsageError
    from kvgauge.load import site
    from kvgauge.plan import file_bytes
    from kvgauge.plan.asked import Asked, plan_of

    if args.repetitions < 1 or args.repetitions > 1000:
        raise UsageError(f"--repetitions: expected 1 to 1000, got {args.repetitions}")
    if not 0 <= args.random_seed < 2**31:
        raise UsageError(f"--random-seed: expected 0 to 2147483647, got {args.random_seed}")
    site.site_of(args.url, tls_of(args), proxy=proxies_of(args).of(args.url))
    headers_of(args)  # and what is wrong with them
    proving.asked(args)
    asked = Asked(
        concurrency=args.concurrency,
        requests=args.request_count,
        duration_s=args.benchmark_duration,
        rates=args.request_rate,
        pattern=args.arrival_pattern,
        burstiness=args.burstiness,
        input_tokens=args.isl,
        output_tokens=args.osl,
        prompt=args.prompt,
        warmup_requests=args.warmup_request_count,
        warmup=args.warmup,
        trace=args.trace,
        speed_up=args.speed_up,
        until=args.until,
        repetitions=args.repetitions,
        seed=args.random_seed,
        dataset=args.dataset,
        api=args.endpoint_type,
        stream=not args.no_streaming,
        shared_prefix_tokens=args.shared_prefix,
        ignore_eos=not args.allow_eos,
        prompt_kind=args.prompt_kind,
        tokenizer=args.tokenizer,
        goodput=tuple(" ".join(args.goodput).split()),
        steps=args.rate_steps,
        sessions=args.conversation_num,
        turns=args.conversation_turn_mean,
        turns_stddev=args.conversation_turn_stddev,
        delay_ms=args.conversation_turn_delay_mean,
        delay_ms_stddev=args.conversation_turn_delay_stddev,
        history=args.conversation_history,
        quick_ack=args.quick_ack,
    )
    plan_of(asked, "unknown", file_bytes)  # what is wrong with the flags is said before the server is asked
    plan = plan_of(asked, args.model or ("unknown" if args.dry_run else _only_model(args)), file_bytes)
    if args.dry_run:
        from rich.console import Console

        from kvgauge.cli.plan import show_cells

        show_cells(plan, Console())
        return 0
    urls = {test.name: args.url for test in plan.tests}
    given = argparse.Namespace(
        **{"namespace": [], "transfer_timeout": 60.0, "resume": None, "urls": urls, **vars(args)}
    )
    return conduct_plan(plan, given, None)


def _only_model(args: argparse.Namespace) -> str:
    """raises UsageError when the server offers none or several, LoadError when it does not answer"""
    from kvgauge.failures import UsageError
    from kvgauge.load import site

    proxy = proxies_of(args).of(args.url)
    served = site.models(args.url, headers=headers_of(args), tls=tls_of(args), proxy=proxy)
    if len(served) != 1:
        raise UsageError(f"{args.url} serves {', '.join(served) or 'no model'}: name the one to load with --model")
    return served[0]


def _rates(text: str) -> tuple[float, ...]:
    if text.strip() == "inf":
        raise argparse.ArgumentTypeError("an infinite rate is a closed loop: give --concurrency instead")
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected requests per second, separated by commas, got {text!r}") from None


def _steps(text: str) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return tuple((float(rate), float(for_s)) for rate, for_s in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected RATE:SECONDS, separated by commas, such as 1:30,5:30, got {text!r}"
        ) from None


def _until(text: str) -> tuple[str, str]:
    metric, separator, share = text.rpartition(":")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected METRIC:SHARE such as ttft_ms_mean:2%, got {text!r}")
    return metric, share
