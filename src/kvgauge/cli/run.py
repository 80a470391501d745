"""`kvgauge run`: conduct a plan on the embedded target, show what happens, print what it gave."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kvgauge.cli import headers as header_flags
from kvgauge.cli import proving, watching, workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvgauge.builds.records import Build
    from kvgauge.evidence.facts import Proving
    from kvgauge.load.headers import Headers
    from kvgauge.load.proxy import Proxies
    from kvgauge.load.tls import Tls
    from kvgauge.plan.records import Plan, Test
    from kvgauge.resume import Saved
    from kvgauge.target.contract import Target

RUNS_FOLDER = "kvgauge-runs"
REFERENCE_SOURCE = "reference plan"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("run", help="conduct a plan (default: the reference plan) and print its tables")
    parser.add_argument("plan", nargs="?", type=Path, metavar="PLAN.yaml")
    parser.add_argument("--quick", action="store_true", help="few requests and repetitions: a first look in minutes")
    parser.add_argument("--test", action="append", default=[], metavar="NAME", help="only this test; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="check the plan and print its runs; start nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"a new folder (default: below {RUNS_FOLDER}/)")
    parser.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on where a run was cut off; repeats nothing done"
    )
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        metavar="[TEST=]URL",
        help="measure the deployment there instead: one test, nothing restarted; a paired plan takes two",
    )
    parser.add_argument("--model", metavar="NAME", help="with --url: what the server calls the model")
    parser.add_argument(
        "--deployment", metavar="NAME", help="with --url: what this deployment is called, to tell it from others there"
    )
    watching.add_flags(parser)
    workers.add_flags(parser)
    header_flags.add_flags(parser)
    proving.add_flags(parser)
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="start prefill's or decode's workers in this existing network namespace: two hosts on one machine",
    )
    parser.add_argument("--request-timeout", type=float, default=120.0, metavar="S", help="of one request (120)")
    parser.add_argument("--quick-ack", action="store_true", help="acknowledge every read at once (TCP_QUICKACK, Linux)")
    parser.add_argument("--transfer-timeout", type=float, default=60.0, metavar="S", help="of one KV transfer (60)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """raises UsageError, PlanError, SamplesError"""
    from msgspec.structs import replace

    from kvgauge.cli.urls import read_urls
    from kvgauge.failures import UsageError
    from kvgauge.plan import load_plan

    if args.resume is not None and (args.out or args.dry_run):
        raise UsageError("--resume goes on in its own folder with its own plan: leave --out and --dry-run away")
    if args.resume is not None and args.quick_ack:
        raise UsageError("--resume keeps the plan's own quick_ack: leave --quick-ack away")
    saved, plan = _saved(args) if args.resume is not None else (None, load_plan(args.plan, args.quick, args.test))
    if args.quick_ack:
        plan = replace(plan, quick_ack=True)
    args.urls = read_urls(args.url, plan)
    args.url = next(iter(args.urls.values()), None)
    _check_modelled(plan, args)
    proving.asked(args)
    if args.prove and plan.mode == "paired":
        raise UsageError("--prove is of one deployment: of a paired plan prove each by itself, `kvgauge prove URL`")
    if plan.mode == "paired" and args.workers not in (None, 1, "1"):
        raise UsageError("--workers: a paired plan sends every request from one process, which draws its arm")
    if plan.mode == "paired" and args.deployment is not None:
        raise UsageError("--deployment names one deployment, and a paired plan has two: their URLs name them")
    if args.deployment is not None and args.url is None:
        raise UsageError("--deployment names what is there at --url; the embedded target is deployed anew for each run")
    if args.dry_run:
        from rich.console import Console

        from kvgauge.cli.plan import show

        show(plan, Console())
        return 0
    return conduct_plan(plan, args, saved)


def _check_modelled(plan: "Plan", args: argparse.Namespace) -> None:
    """raises UsageError where nobody would imitate one, PlanError where requests would not outlast one"""
    from kvgauge.failures import UsageError
    from kvgauge.plan.expand import refuse_long_cold_starts

    planted = [test.name for test in plan.tests if test.planted is not None]
    if planted and args.url is not None:
        raise UsageError(
            f"planted of {', '.join(planted)} is put into the embedded target's modelled compute; nobody does that to "
            f"the deployment at {args.url}. Remove it from the plan, or leave --url away"
        )
    cold = [test.name for test in plan.tests if test.cold_start is not None]
    if cold and args.url is not None:
        raise UsageError(
            f"cold_start of {', '.join(cold)} is modelled by the embedded target only; the deployment at {args.url} "
            "has its own. Remove it from the plan, or leave --url away"
        )
    refuse_long_cold_starts(plan, args.request_timeout)


def _saved(args: argparse.Namespace) -> "tuple[Saved, Plan]":
    """The folder to go on in, and its plan. raises UsageError when another plan is named beside it"""
    from kvgauge import resume
    from kvgauge.plan import load_plan

    saved = resume.load(args.resume)
    if args.plan is not None or args.quick or args.test:
        again = load_plan(args.plan, args.quick, args.test)
        resume.refuse_changes(saved, again, saved.conditions)
    return saved, saved.plan


def conduct_plan(plan: "Plan", args: argparse.Namespace, saved: "Saved | None") -> int:
    import signal
    from math import inf

    from rich.console import Console

    from kvgauge import resume
    from kvgauge.builds.verdicts import status_line
    from kvgauge.cli.pages import pages
    from kvgauge.conduct import Conductor
    from kvgauge.failures import SamplesError, UsageError
    from kvgauge.load.open_files import raise_limit, refuse_too_few
    from kvgauge.plan import load_files, load_tokenizers
    from kvgauge.plan.expand import estimate_s
    from kvgauge.report.live import Live
    from kvgauge.report.published import published
    from kvgauge.report.text import page, print_results

    console = Console(stderr=True)
    if not all(0 < seconds < inf for seconds in (args.request_timeout, args.transfer_timeout)):
        raise UsageError("time-outs must be above 0 s and finite")
    proxies = header_flags.proxies_of(args)
    watched = watching.watching_of(args, proxies)
    refuse_too_few(plan, raise_limit(), embedded=args.url is None)
    wanted, workers_for = workers.workers_of(args, plan)
    headers, tls = header_flags.headers_of(args), header_flags.tls_of(args)
    interrupted: list[int] = []
    prove = proving.prover(args, lambda: bool(interrupted))
    target_for, builds = _target_for(
        plan, args, (headers, tls, proxies), prove, lambda line: console.print(line, markup=False, highlight=False)
    )
    options = {
        "request_timeout_s": args.request_timeout,
        "transfer_timeout_s": args.transfer_timeout,
        "model": args.model,
        "namespaces": ",".join(sorted(args.namespace)) or None,
        **watching.conditions(watched),
        **proving.conditions(args),
        "headers": "; ".join(args.header) or None,
        "headers from the environment": ", ".join(args.header_env) or None,
        "key from": args.api_key_env,
        "certificates": header_flags.tls_text(args),
        "deployment": args.deployment,
        "load workers": None if wanted == 1 else str(wanted),
        "proxy": proxy.shown if args.url is not None and (proxy := proxies.of(args.url)) is not None else None,
    }
    conditions = resume.conditions_now({n: build.sha256 for n, build in builds.items()}, _targets(args.urls), options)
    if saved is not None:
        resume.refuse_changes(saved, None, conditions)
    files, tokenizers = load_files(plan.cells), load_tokenizers(plan.tests)
    folder = saved.folder if saved is not None else _new_folder(args.out, plan)
    for build in builds.values():
        console.print(status_line(build), markup=False, highlight=False, soft_wrap=True)

    def on_signal(number: int, _frame: object) -> None:
        interrupted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, on_signal)
    with resume.held(folder), Live(plan, estimate_s(plan), console) as live:
        conductor = Conductor(
            plan,
            folder,
            target_for,
            watcher=live,
            stop=lambda: bool(interrupted),
            conditions=conditions,
            done=saved.done if saved is not None else None,
            request_timeout_s=args.request_timeout,
            files=files,
            headers=headers,
            tls=tls,
            watching=watched,
            workers=workers_for,
            tokenizers=tokenizers,
            proxies=proxies,
            deployment=args.deployment,
        )
        try:
            results = conductor.conduct()
        except SamplesError as error:
            raise SamplesError(f"{error} {_after(folder)}") from error
    with pages():
        print_results(results, page(), published=published() if plan.source == REFERENCE_SOURCE else None)
    console.print(f"results: {folder}/results.json", markup=False, highlight=False)
    if interrupted:
        more = f"interrupted: `kvgauge run --resume {folder}` goes on"
        console.print(more, style="yellow", markup=False, highlight=False)
    return conductor.exit_code()


def _targets(urls: dict[str, str]) -> str:
    """The deployments, or the embedded target, as the conditions of a run name it."""
    if len(urls) < 2:
        return next(iter(urls.values()), "embedded")
    return ", ".join(f"{name}={url}" for name, url in urls.items())


def _after(folder: Path) -> str:
    """What to do with a folder that could not be written to the end."""
    from kvgauge.resume import CONDITIONS

    if (folder / CONDITIONS).exists():
        return f"With room, `kvgauge run --resume {folder}` goes on where it stopped."
    return f"Nothing was begun in {folder}: remove it."


def _target_for(
    plan: "Plan",
    args: argparse.Namespace,
    asking: "tuple[Headers, Tls | None, Proxies]",
    prove: "Callable[[Path], Callable[[Test, str], Proving]] | None",
    say: "Callable[[str], None]",
) -> "tuple[Callable[[Path, Test], Target], dict[str, Build]]":
    """What makes the target of each run, and its builds, which are installed first.

    raises UsageError, BuildError, LoadError
    """
    from kvgauge.failures import UsageError

    if args.url is not None:
        from functools import partial

        from kvgauge.load import site
        from kvgauge.target.url import UrlTarget

        if args.namespace:
            raise UsageError("--namespace goes with the embedded target; where a deployment runs is its own affair")
        headers, tls, proxies = asking

        def at(logs: Path, test: "Test") -> "Target":
            url = args.urls[test.name]
            proxy = proxies.of(url)
            return UrlTarget(
                url,
                wait_ready=partial(site.wait_ready, headers=headers, tls=tls, proxy=proxy),
                models=partial(site.models, headers=headers, tls=tls, proxy=proxy),
                model=args.model,
                proxy=proxy.shown if proxy is not None else None,
                prove=prove(logs.parent) if prove is not None else None,
            )

        for url in args.urls.values():
            site.site_of(url, tls, proxy=proxies.of(url))
        return at, {}
    from kvgauge.builds.own import finder
    from kvgauge.target.embedded import EmbeddedTarget, Options
    from kvgauge.target.namespaces import read_namespaces

    namespaces = read_namespaces(args.namespace)
    if args.model is not None:
        raise UsageError("--model goes with --url; the embedded target's models are the plan's")
    find = finder({test.build: test.build_source for test in plan.tests}, say)
    builds = {name: find(name) for name in dict.fromkeys(test.build for test in plan.tests)}
    options = Options(transfer_timeout_s=args.transfer_timeout, namespaces=namespaces)
    return lambda logs, _test: EmbeddedTarget(logs, find, options), builds


def _new_folder(out: Path | None, plan: "Plan") -> Path:
    """A folder that did not exist, and `latest` beside it. raises UsageError"""
    from datetime import datetime

    from kvgauge.failures import UsageError
    from kvgauge.plan.read import slug

    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = out or Path(RUNS_FOLDER) / f"{stamp}-{slug(plan.name)}"
    link = Path(RUNS_FOLDER) / "latest"
    if out is None and link.exists() and not link.is_symlink():
        raise UsageError(f"{link} is not a link that kvgauge made; move it away, or give --out a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=False)
    except FileExistsError:
        raise UsageError(f"{folder} exists already; give --out a new folder: runs are never overwritten") from None
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}; give --out a folder that can be written") from None
    if out is None:
        _point_latest(folder)
    return folder


def _point_latest(folder: Path) -> None:
    link, made = folder.parent / "latest", folder.parent / f".latest-{folder.name}"
    made.symlink_to(folder.name)
    made.replace(link)
