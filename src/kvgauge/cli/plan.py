"""`kvgauge plan`: what a plan stands for, the runs it expands to, and roughly how long they take."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table

    from kvgauge.plan.records import Cell, Plan, Run, Test
    from kvgauge.report.records import Results

EXIT_UNDECIDED = 4
PIPED_COLUMNS = 180  # where no terminal says how wide it is


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `plan` to the command line."""
    parser = commands.add_parser("plan", help="show what a plan stands for, its runs, and how long they take")
    parser.add_argument("plan", nargs="?", type=Path, metavar="PLAN.yaml", help="default: the reference plan")
    parser.add_argument("--quick", action="store_true", help="few requests and repetitions: a first look")
    parser.add_argument("--test", action="append", default=[], metavar="NAME", help="only this test; may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--pilot",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="a finished run of 5 repetitions or more: how many would be enough (repeatable: one for each deployment)",
    )
    parser.add_argument(
        "--pilot-after",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="with --pilot: the same of the other arm, where the two are of one test (repeatable)",
    )
    parser.add_argument("--gain", metavar="PCT", help="with --pilot: the gain that would matter (5%%)")
    parser.add_argument("--budget", type=int, metavar="N", help="with --pilot: what N repetitions would show")
    parser.add_argument(
        "--deploy-minutes",
        type=float,
        metavar="M",
        help="with --pilot: what one more deployment takes, if it has those",
    )
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="with --pilot: of a deployment, for GPU-hours")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan. PlanError when it cannot be run as written."""
    from kvgauge.plan import load_plan

    plan = load_plan(args.plan, args.quick, args.test)
    about = (args.pilot, args.gain, args.budget, args.deploy_minutes)
    if any(one is not None for one in about) or args.gpus or args.pilot_after:
        return _propose(args, plan)
    if args.json:
        print(as_json(plan))
    else:
        from rich.console import Console

        console = Console()
        show(plan, console if console.is_terminal else Console(width=PIPED_COLUMNS))
    return 0


def _propose(args: argparse.Namespace, plan: "Plan") -> int:
    """How many repetitions a pilot says are enough. Exit code 4 when it cannot say."""
    from kvgauge.failures import UsageError
    from kvgauge.plan.expand import estimate_s
    from kvgauge.report import results
    from kvgauge.report.against import primary_of
    from kvgauge.report.pilot import has_deployments, propose, render
    from kvgauge.report.text import page

    if args.pilot is None:
        raise UsageError(
            "--gain, --budget, --deploy-minutes, --gpus and --pilot-after are about a pilot: name its folder with "
            "--pilot"
        )
    if args.budget is not None and not 2 <= args.budget <= 1000:
        raise UsageError(f"--budget {args.budget}: expected 2 to 1000 repetitions")
    try:
        gain_pct = float((args.gain or "5").strip().removesuffix("%"))
    except ValueError:
        gain_pct = 0.0
    if not 0 < gain_pct < 100:
        raise UsageError(f"--gain {args.gain}: expected a percentage above 0 and below 100, as in 5%")
    pilots = [(results.read(path), str(path)) for path in args.pilot]
    after = [(results.read(path), str(path)) for path in args.pilot_after]
    if has_deployments([*pilots, *after]):
        return _propose_deployments(args, (pilots, after), gain_pct, plan)
    if len(pilots) > 1 or after:
        raise UsageError("no runs of these folders share a deployment: a pilot is one folder then")
    if args.deploy_minutes is not None or args.gpus:
        raise UsageError(f"{args.pilot[0]}: each run was deployed by itself, so that a repetition is a deployment; "
                         "leave --deploy-minutes and --gpus away")  # fmt: skip
    pilot = pilots[0][0]
    proposed = propose(pilot, pilots[0][1], gain_pct, budget=args.budget)
    if args.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(proposed), indent=1).decode())
    else:
        console = page()
        for part in render(proposed, primary_of(pilot), gain_pct, estimate_s(plan) / plan.repetitions):
            console.print(part)
    return 0 if all(one.design is not None for one in proposed) else EXIT_UNDECIDED


def _propose_deployments(
    args: argparse.Namespace, pilots: "tuple[list[tuple[Results, str]], ...]", gain_pct: float, plan: "Plan"
) -> int:
    """How many deployments, and runs on each. Exit code 4 when the pilot cannot say."""
    from kvgauge.failures import UsageError
    from kvgauge.plan.expand import estimate_s
    from kvgauge.report.against import primary_of
    from kvgauge.report.pilot import Cost, propose_deployments, render_deployments
    from kvgauge.report.text import page

    if args.deploy_minutes is None or not 0 < args.deploy_minutes <= 10_000 or args.gpus < 0:
        raise UsageError(
            "runs of this pilot share deployments: say what one more takes with --deploy-minutes M (above 0), "
            "and with --gpus N how many GPUs it holds"
        )
    if args.budget is not None:
        raise UsageError("--budget counts repetitions; with deployments, set --deploy-minutes and read the hours")
    run_s = estimate_s(plan) / plan.repetitions / len(plan.tests)
    cost = Cost(deploy_s=60 * args.deploy_minutes, run_s=run_s, gpus=args.gpus)
    found = propose_deployments(pilots[0], gain_pct, cost, after=pilots[1], planned=plan.tests)
    if args.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        console = page()
        for part in render_deployments(found, primary_of(pilots[0][0][0]), gain_pct, cost):
            console.print(part)
    return 0 if all(one.levels is not None for one in found) else EXIT_UNDECIDED


def as_json(plan: "Plan") -> str:
    """The plan, its runs by name and place, and the estimate, as JSON text."""
    import msgspec

    from kvgauge.plan.expand import estimate_s, expand

    runs = [
        {
            "run_id": run.run_id,
            "test": run.test.name,
            "repetition": run.repetition,
            "order": run.order,
            "seed": run.seed,
        }
        for run in expand(plan)
    ]
    whole = {"schema": 1, "plan": plan, "runs": runs, "estimate_s": round(estimate_s(plan))}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()


def rehearsal_line(plan: "Plan") -> str | None:
    """What every page of a rehearsal says; None when a test leaves tcp and shm."""
    if not plan.rehearsal:
        return None
    fabrics = sorted({test.fabric for test in plan.tests})
    if len(fabrics) == 1:
        return f"rehearsal: fabric {fabrics[0]} for every test; nothing here transfers to EFA"
    return f"rehearsal: fabrics {' and '.join(fabrics)} only; nothing here transfers to EFA"


def cold_lines(plan: "Plan") -> list[str]:
    """What is imitated of a first run, one line for each kind with the tests it holds for."""
    named: dict[str, list[str]] = {}
    for test in plan.tests:
        if test.cold_start is not None:
            named.setdefault(test.cold_start.line, []).append(test.name)
    whole = [test.name for test in plan.tests]
    return [
        f"cold start modelled{'' if names == whole else ' for ' + ', '.join(names)}: {line}"
        for line, names in named.items()
    ]


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 5 min, 1 h 10 min."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def show(plan: "Plan", console: "Console") -> None:
    """Print the plan as tables: tests, cells, runs; then the estimate."""
    from kvgauge.plan.expand import estimate_s, expand
    from kvgauge.plan.metrics import METRICS

    runs = expand(plan)
    source = f"{plan.source}, quick" if plan.quick else plan.source
    size = f"{len(plan.tests)} tests x {plan.repetitions} repetitions = {len(runs)} runs of {len(plan.cells)} cells"
    lines = [
        f"{plan.name} ({source}): {size}",
        f"decides: {plan.primary.metric} in cell {plan.primary.cell}: {METRICS[plan.primary.metric].meaning}",
        f"estimated time: about {duration(estimate_s(plan))}, rough, without installing builds",
    ]
    rehearsal = rehearsal_line(plan)
    lines += cold_lines(plan)
    lines += [f"planted in {test.name}: {test.planted.line}" for test in plan.tests if test.planted is not None]
    if plan.mode == "paired":
        lines.append("mode paired: both tests' targets at once; a cell's requests, rate and slots are of both together")
    for line in [*lines, rehearsal] if rehearsal else lines:
        console.print(line, markup=False, highlight=False)
    for table in (_tests_table(plan), _cells_table(plan), _runs_table(runs)):
        console.print()
        console.print(table)


def show_cells(plan: "Plan", console: "Console") -> None:
    """Print the cells of a plan that has nothing else to tell."""
    console.print(_cells_table(plan))


def _table(title: str, columns: "Iterable[str]") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        # Names and their labels wrap; numbers stay whole.
        table.add_column(column, no_wrap=column not in {"test", "patches", "compared with", "prompt"})
    return table


def _add(table: "Table", *values: str) -> None:
    """A row taken literally: names are the user's, and brackets in them are not markup."""
    from rich.text import Text

    table.add_row(*(Text(value) for value in values))


def _tests_table(plan: "Plan") -> "Table":
    from kvgauge.models import MODELS, descriptor_bytes, descriptors, transfer_bytes
    from kvgauge.plan.expand import prompt_tokens

    deciding = next(cell for cell in plan.cells if cell.name == plan.primary.cell)
    tokens = prompt_tokens(deciding)
    columns = (
        "test",
        "backend",
        "fabric",
        "NIXL",
        "patches",
        "model",
        "TP",
        "KV/request",
        "descriptors",
        "compared with",
    )
    table = _table(f"Tests (KV of one request of {deciding.name}, {tokens} prompt tokens)", columns)
    for test in plan.tests:
        model = MODELS[test.model]
        moved = transfer_bytes(model, test.kv_dtype, tokens, test.decode_tp)
        count = descriptors(model, tokens, test.prefill_tp, test.decode_tp)
        each = descriptor_bytes(model, test.kv_dtype, test.prefill_tp, test.decode_tp)
        _add(
            table,
            test.name if test.stand_in is None else f"{test.name}\n({test.stand_in})",
            test.backend,
            test.fabric,
            test.build,
            test.patches,
            f"{test.model} {test.kv_dtype}",
            _tp(test),
            f"{moved / 2**20:.1f} MiB",
            f"{count:,} x {each / 1024:g} KiB",
            ", ".join(test.baseline) or "nothing: a baseline",
        )
    return table


def _tp(test: "Test") -> str:
    """8, or 4 -> 8 where prefill and decode differ; with worker counts where there are several."""
    same = test.prefill_tp == test.decode_tp
    tp = str(test.prefill_tp) if same else f"{test.prefill_tp} -> {test.decode_tp}"
    if test.prefill_workers == test.decode_workers == 1:
        return tp
    return f"{tp} ({test.prefill_workers} prefill, {test.decode_workers} decode)"


def _cells_table(plan: "Plan") -> "Table":
    from kvgauge.plan.open import said

    columns = ("cell", "load", "concurrency", "end", "warm-up", "prompt", "output tokens", "")
    table = _table("Cells of every run, in order", columns)
    for cell in plan.cells:
        _add(
            table,
            cell.name,
            said(cell),
            f"at most {cell.concurrency}" if cell.is_open else str(cell.concurrency),
            _end(cell),
            str(cell.warmup_requests) if cell.steady is None else f"until steady, at most {cell.steady.limit_s:g} s",
            _prompt(cell) + _asking(cell),
            str(cell.output_tokens) if cell.trace is None else f"{cell.trace.output_tokens_mean:.0f} on average",
            "decides" if cell.name == plan.primary.cell else "",
        )
    return table


def _end(cell: "Cell") -> str:
    """What ends a cell: 50 requests; 60 s; ttft_ms_mean known within 2%, at most 60 s"""
    from kvgauge.plan.cells import REQUESTS_MAX

    count, what = (cell.requests, "requests") if cell.sessions is None else (cell.sessions, "sessions")
    counted = count < REQUESTS_MAX or cell.duration_s is None
    ends = [f"{count:,} {what}"] if counted else []
    ends += [f"{cell.duration_s:g} s"] if cell.duration_s is not None else []
    if cell.until is None:
        return " or ".join(ends)
    return f"{cell.until.metric} within {cell.until.half_width:.2%}, at most {' or '.join(ends)}"


def _asking(cell: "Cell") -> str:
    """What is unusual about the requests of a cell: , as text over chat, not streamed"""
    said = ", as text" if cell.prompt_kind == "text" and cell.prompt is None and cell.dataset is None else ""
    said += " over chat" if cell.api == "chat" else ""
    said += _turns(cell)
    said += "" if cell.stream else ", not streamed"
    said += "" if cell.ignore_eos else ", the model may end its answer"
    return said + (f", with {', '.join(cell.extra_body)}" if cell.extra_body else "")


def _turns(cell: "Cell") -> str:
    """, in 3 turns, 1000 ms apart"""
    from kvgauge.plan.conversation import turns_mean

    if cell.conversation is None:
        return ""
    apart = f", {cell.conversation.delay_ms:g} ms apart" if cell.conversation.delay_ms else ""
    return f", in {turns_mean(cell):.3g} turns{apart}"


def _prompt(cell: "Cell") -> str:
    if cell.trace is not None:
        return f"{cell.trace.input_tokens_mean:.0f} tokens on average, of {cell.trace.path}"
    if cell.dataset is not None:
        return f"{cell.dataset.prompts:,} of {cell.dataset.path}, in turn"
    if cell.prompt is None:
        shared = f"{cell.shared_prefix_tokens} of them shared" if cell.shared_prefix_tokens else "unique"
        prefixes = f" ({cell.prefixes} prefixes)" if cell.prefixes > 1 else ""
        return f"{cell.input_tokens} tokens, {shared}{prefixes}"
    return repr(cell.prompt if len(cell.prompt) <= 40 else cell.prompt[:40] + "...")


def _runs_table(runs: "list[Run]") -> "Table":
    table = _table("Runs, in order", ("order", "run", "test", "repetition"))
    for run in runs:
        label = f" ({run.test.stand_in})" if run.test.stand_in else ""
        _add(table, str(run.order + 1), run.run_id, run.test.name + label, str(run.repetition))
    return table
