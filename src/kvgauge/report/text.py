"""The report for a terminal: one table per test, one across tests. Markup in names is never obeyed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvgauge.plan.records import UNOBSERVED
from kvgauge.report import rows
from kvgauge.report.across import across_tests
from kvgauge.report.gains import gains_table
from kvgauge.report.loads import load_tables
from kvgauge.report.numbers import MIB, NONE, interval_text, number, plain, value_text, with_interval
from kvgauge.report.packed import Column, Footnotes, Packed, Value
from kvgauge.report.parts import part_lines, remark_lines
from kvgauge.report.records import Results, RunResult, TestResult
from kvgauge.report.server import server_line
from kvgauge.report.transfers import moves_only, transfers_table
from kvgauge.stats.cells import PHASES
from kvgauge.stats.estimate import Estimate

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

INVALID = "red"
PAIRED = (
    "mode paired: both tests stood side by side and each had half of one load; their difference is of these "
    "deployments under what they shared, and no capacity"
)
PIPED_COLUMNS = 120


def page() -> "Console":
    """Standard output, as wide as its terminal; a file or a pipe gets pages of 120 columns."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_COLUMNS)


def print_results(results: Results, console: "Console", *, published: Results | None = None) -> None:
    """Everything `render` gives, then the earlier results in the same form."""
    for part in render(results):
        console.print(part)
    if published is not None:
        for part in render(published):
            console.print(part)


def render(results: Results) -> "list[RenderableType]":
    """Parts to print in order. The console's width decides how tables are stacked."""
    outside = all(test.backend == UNOBSERVED for test in results.tests) and len(results.tests) == 1
    return [*_title(results), *_tests(results), *([] if outside else across_tests(results))]


def _title(results: Results) -> "Iterator[RenderableType]":
    from rich.rule import Rule
    from rich.text import Text

    yield Rule(Text(plain(f"kvgauge: {results.plan.get('name', 'unnamed plan')}"), style="bold"), characters="━")
    if results.published:
        yield Text(plain(f"As published, no interval. {results.published}."))
        yield Text("")
        return
    facts = [f"plan {results.plan.get('source', 'not named')}"]
    facts += ["quick acknowledgements (TCP_QUICKACK)"] if results.plan.get("quick_ack") else []
    if results.machine:
        facts += [f"{key} {value}" for key, value in results.machine.items() if isinstance(value, str | int | float)]
    yield Text(plain(" · ".join(facts)), style="dim")
    if results.plan.get("mode") == "paired":
        yield Text(PAIRED, style="yellow")
    if results.ended:
        yield Text(plain(f"ended {results.ended}; intervals of gains are wider for it, so that they hold at 95 %"))
    if results.scope:
        yield Text(plain(f"about {results.scope}"), style="yellow")
    yield from _rehearsal(results)


def _rehearsal(results: Results) -> "Iterator[RenderableType]":
    from rich.text import Text

    warning = rows.rehearsal_text(results)
    if warning:
        yield Text(warning, style="yellow")


def _tests(results: Results) -> "Iterator[RenderableType]":
    if results.published:
        return
    for test in results.tests:
        yield from section_of(results, test)


def section_of(results: Results, test: TestResult) -> "Iterator[RenderableType]":
    """One test: what it is, its table, what was proved, which runs do not count, its gains."""
    from rich.text import Text

    notes = Footnotes()
    yield Text("")
    yield Text(plain(test.name), style="bold cyan").append(_about(test), style="not bold default")
    yield from _rehearsal(results)
    yield Text("")
    if test.backend == UNOBSERVED:
        yield from transfers_table(test, notes) if moves_only(test) else load_tables(test, notes)
        limits = [f"limit: {limit}" for limit in rows.limits_of(test)]
        yield from (Text(plain(line)) for line in (limits or _outside(test, notes)))
    else:
        yield _cells_table(test, notes)
        yield Text("")
        for cell in rows.cells_of(test):
            yield from (Text(plain(f"{cell}: {line}")) for line in part_lines(test, cell))
        yield from (Text(line) for line in _run_level(test, rows.deciding_cell(results), notes))
    yield from (Text(plain(f"remark: {line}"), style="yellow") for line in remark_lines(test))
    for where, state, reasons in rows.not_valid(test):
        yield Text(plain(f"{where}: {state.upper()}: {'; '.join(reasons) or 'no reason given'}"), style=INVALID)
    waiting = [str(repetition) for repetition, state in rows.run_states(test) if state == "pending"]
    if waiting:
        yield Text(f"run {', '.join(waiting)}: pending")
    yield from gains_table(results, test, notes)
    yield from (Text(plain(note), style="dim") for note in notes.texts())


def _about(test: TestResult) -> str:
    """stand-in, backend, fabric, build, model on the lines after the name"""
    stand_in = rows.stand_in_text(test.stand_in)
    tp = f"TP {test.tp.prefill}" if test.tp.prefill == test.tp.decode else f"TP {test.tp.prefill}→{test.tp.decode}"
    named = f"  ({stand_in})" if stand_in else ""
    if test.backend == UNOBSERVED:
        facts = [f"{test.model}, transport unobserved"]
    else:
        facts = [f"{test.backend} over {test.fabric}", rows.build_text(test.build), f"patches {test.patches}"]
        facts.append(f"{test.model} {tp}")
    facts.append(f"valid runs {rows.runs_text(test)}")
    if test.expect != "valid":
        facts.append(f"expected {test.expect}")
    if test.cold_start is not None:
        facts.append(f"cold start modelled: {test.cold_start.line}")
    if test.planted is not None:
        named = f"{named}  (planted: {test.planted.line})"
    return plain(named) + "\n" + plain(" · ".join(facts))


def _cells_table(test: TestResult, notes: Footnotes) -> Packed:
    """Rows: each cell over its valid runs, and under it each run that has numbers but does not count."""
    lines: list[tuple[str, RunResult | None]] = []
    for cell in rows.cells_of(test):
        lines.append((cell, None))
        lines += [(cell, run) for run in rows.runs_in(test, cell) if run.status != "valid" and run.metrics]
    label = Column(("cell", "", ""), tuple(_label(test, cell, run) for cell, run in lines))
    columns = [
        Column(head, tuple(_shown(test, cell, run, metric, notes) for cell, run in lines))
        for metric, head in rows.headline(test).items()
    ]
    columns.append(Column(("KV bytes", "expected", "MiB"), tuple(_bytes(test, *line, notes) for line in lines)))
    columns.append(Column(("failed", "requests", ""), tuple(_failures(test, *line) for line in lines)))
    return Packed(label, columns)


def _label(test: TestResult, cell: str, run: RunResult | None) -> Value:
    if run is not None:
        return Value((f"  run {run.repetition}: {run.status.upper()}",), INVALID)
    n = len(rows.runs_in(test, cell, "valid"))
    return Value((cell, f"n={n} run: no interval" if n == 1 else f"n={n} runs"))


def _shown(test: TestResult, cell: str, run: RunResult | None, metric: str, notes: Footnotes) -> Value:
    """Value, its interval under it, and n where it is not that of the row."""
    if run is not None:
        within = run.metrics.get(metric)
        return Value((NONE if within is None else value_text(within),), INVALID)
    estimate = rows.summary_of(test, cell, metric)
    n = len(rows.runs_in(test, cell, "valid"))
    under = interval_text(estimate)
    if estimate.point is not None and estimate.n != n:
        under = f"{under} n={estimate.n}".strip()
    return Value((value_text(estimate) + _mark(estimate, n, notes), under))


def _mark(estimate: Estimate, n: int, notes: Footnotes) -> str:
    """A footnote for what is missing. That one run has no interval stands beside the row's name already."""
    noted = notes.mark(estimate.note) if estimate.note else ""
    if estimate.reason is None or (n == 1 and estimate.reason.startswith("one run")):
        return noted
    return notes.mark(estimate.reason) + noted


def _bytes(test: TestResult, cell: str, run: RunResult | None, notes: Footnotes) -> Value:
    """Bytes expected, and whether as many moved in each run that counts."""
    runs = rows.runs_in(test, cell, "valid") if run is None else [run]
    pairs = [(r.metrics.get("kv_bytes_expected"), r.metrics.get("kv_bytes_moved")) for r in runs]
    known = [(expected, moved) for expected, moved in pairs if expected is not None and expected.point is not None]
    style = INVALID if run is not None else ""
    if not known:
        why = next((expected.reason for expected, _ in pairs if expected is not None and expected.reason), None)
        return Value((NONE + (notes.mark(why) if why else ""),), style)
    expected_sum = sum(expected.point or 0 for expected, _ in known) / len(known)
    if run is not None and all(moved is not None and moved.point == e.point for e, moved in known):
        return Value((number(expected_sum / MIB, 1),), style)
    for expected, moved in known:
        if moved is None or moved.point is None:
            why = moved.reason if moved is not None and moved.reason else "not counted"
            return Value((number(expected_sum / MIB, 1), f"moved {NONE}{notes.mark(why)}"), style)
        if moved.point != expected.point:
            return Value((number(expected_sum / MIB, 1), f"≠ {number(moved.point / MIB, 3)} moved"), INVALID)
    return Value((number(expected_sum / MIB, 1), "= moved"), style)


def _failures(test: TestResult, cell: str, run: RunResult | None) -> Value:
    """Failed of all measured requests, over the runs of this row together."""
    runs = rows.runs_in(test, cell, "valid") if run is None else [run]
    failed = [r.metrics["failures"] for r in runs if "failures" in r.metrics]
    style = INVALID if run is not None else ""
    if not failed:
        return Value((NONE,), style)
    count = sum(estimate.point or 0 for estimate in failed)
    if run is not None:
        return Value((f"{count:,.0f}",), style)
    return Value((f"{count:,.0f}", f"of {sum(estimate.n for estimate in failed):,}"), INVALID if count else "")


def _run_level(test: TestResult, cell: str | None, notes: Footnotes) -> Iterator[str]:
    """What holds for whole runs: proof, where TTFT goes in the deciding cell, handshakes, connections, machine."""
    said = [f"{name} {value}" for name, value in rows.proved_texts(test).items()]
    checked, wrong = (rows.sum_over_runs(test, f"kv_pieces_{which}") for which in ("checked", "wrong"))
    if checked is not None:
        said.append(f"KV pieces checked on arrival {checked:,}, wrong {wrong or 0:,}")
    wire = rows.summary_of(test, None, "wire_bytes")
    if wire.point is not None:
        said.append(f"{wire.point / MIB:,.0f} MiB a run on network interfaces")
    yield plain("proved: " + (" · ".join(said) if said else "nothing: no valid run has shown its transport"))
    phases = _phases(test, cell)
    if phases:
        yield plain(phases)
    served = server_line(test, cell)
    if served:
        yield plain(served)
    yield "handshakes: " + ", ".join(
        f"{name} {_one_line(test, metric, notes)}"
        for name, metric in (("NIXL", "handshake_count_nixl"), ("EFA", "handshake_count_efa"))
    )
    cold = test.cold_start
    modelled = f" ({cold.connect_s:g} s of each modelled)" if cold is not None and cold.connect_s else ""
    yield (
        f"connection{modelled}: slowest pair {_one_line(test, 'connection_ms_max', notes, ' ms')}, "
        f"mean {_one_line(test, 'connection_ms_mean', notes, ' ms')}; "
        f"first request's penalty {_one_line(test, 'first_request_penalty_s', notes, ' s')}"
    )
    yield (
        f"machine: busy {_one_line(test, 'machine_busy_pct', notes, ' %')}, "
        f"steal {_one_line(test, 'machine_steal_pct', notes, ' %')}; GPU memory {_memory(test, notes)}"
    )


def _outside(test: TestResult, notes: Footnotes) -> Iterator[str]:
    """What holds for whole runs against a server that is seen from outside."""
    yield "transport: not observed; `kvgauge run` proves what carried the KV cache"
    if proxy := rows.proved_texts(test).get("proxy"):
        yield plain(f"through the proxy {proxy}: what it adds is in every latency")
    yield (
        f"first request's penalty {_one_line(test, 'first_request_penalty_s', notes, ' s')}; "
        f"this machine: busy {_one_line(test, 'machine_busy_pct', notes, ' %')}, "
        f"steal {_one_line(test, 'machine_steal_pct', notes, ' %')}"
    )


def _phases(test: TestResult, cell: str | None) -> str | None:
    """TTFT taken apart, in ms; None where the target does not tell."""
    parts = {name: rows.summary_of(test, cell, f"phase_{name}_ms_mean") for name in ("client", *PHASES)}
    share = rows.summary_of(test, cell, "phases_of_ttft_pct")
    if share.point is None or any(part.point is None for part in parts.values()):
        return None
    told = " + ".join(f"{name.replace('_', ' ')} {value_text(part)}" for name, part in parts.items())
    return f"TTFT in {cell}: {told} ms = {share.point:.1f} % of it (n={share.n})"


def _one_line(test: TestResult, metric: str, notes: Footnotes, unit: str = "") -> str:
    estimate = rows.summary_of(test, None, metric)
    if estimate.point is None:
        return NONE + (notes.mark(estimate.reason) if estimate.reason else "")
    return f"{with_interval(estimate)}{unit} (n={estimate.n})"


def _memory(test: TestResult, notes: Footnotes) -> str:
    estimate = rows.summary_of(test, None, "gpu_memory_bytes")
    if estimate.point is None:
        return NONE + (notes.mark(estimate.reason) if estimate.reason else "")
    return f"{number(estimate.point / MIB)} MiB (n={estimate.n})"
