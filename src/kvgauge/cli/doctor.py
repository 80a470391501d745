"""`kvgauge doctor`: what would go wrong on this machine or in this pod, and what to do about it."""

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from kvgauge.doctor.records import Examination, Facts, Finding

PIPED_COLUMNS = 120  # where no terminal says how wide it is
COLOURS = {"problem": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}
HEADS = {
    "problem": "will go wrong",
    "warning": "may go wrong, or spoil figures",
    "note": "worth knowing",
    "ok": "looked at, fine",
}
AREA_COLUMNS = 10


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "doctor", help="what would go wrong on this machine or in this pod, and what to do about it"
    )
    parser.add_argument("--plan", type=Path, metavar="PLAN.yaml", help="look only for what this plan needs")
    parser.add_argument("--reference", action="store_true", help="look only for what the reference plan needs")
    parser.add_argument("--test", action="append", default=[], metavar="NAME", help="only this test of the plan")
    parser.add_argument(
        "--site",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a site-packages folder whose NIXL is meant",
    )
    parser.add_argument("--json", action="store_true", help="findings and facts as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 nothing would go wrong, 1 a problem, 3 something needed could not be looked at. raises PlanError, UsageError"""
    from kvgauge.doctor.examine import examine
    from kvgauge.failures import UsageError

    if args.plan is not None and args.reference:
        raise UsageError("--plan and --reference name two plans: give one")
    if args.test and args.plan is None and not args.reference:
        raise UsageError("--test names a test of a plan: give --plan or --reference too")
    for site in args.site:
        if not site.is_dir():
            raise UsageError(f"--site {site} is no folder: name a site-packages folder")
    plan = None
    if args.plan is not None or args.reference:
        from kvgauge.plan import load_plan

        plan = load_plan(args.plan, quick=False, tests=args.test)
    examination, facts = examine(plan, args.site)
    if args.json:
        print(as_json(examination, facts))
    else:
        from rich.console import Console

        from kvgauge.cli.pages import pages

        console = Console(highlight=False)
        with pages():
            show(examination, console if console.is_terminal else Console(width=PIPED_COLUMNS, highlight=False))
    return examination.exit_code


def as_json(examination: "Examination", facts: "Facts") -> str:
    """Findings, what was not looked at, and the facts they rest on (docs/doctor.md)."""
    import msgspec

    from kvgauge import __version__
    from kvgauge.doctor.records import LEVELS

    whole = {
        "schema": 1,
        "kvgauge": __version__,
        "looked_for": examination.looked_for,
        "exit_code": examination.exit_code,
        "counts": {level: sum(each.level == level for each in examination.findings) for level in LEVELS},
        "findings": examination.findings,
        "not_looked": examination.not_looked,
        "facts": facts,
    }
    return msgspec.json.format(msgspec.json.encode(whole, order="deterministic"), indent=2).decode()


def show(examination: "Examination", console: "Console") -> None:
    """A table for each level, the worst first; then what was not looked at, and the sum of it."""
    from rich.text import Text

    from kvgauge.doctor.records import LEVELS

    console.print(Text(f"kvgauge doctor: {_plain(examination.looked_for)}"))
    for level in LEVELS:
        found = [finding for finding in examination.findings if finding.level == level]
        if found:
            _head(console, f"{level}: {HEADS[level]} ({len(found)})", COLOURS[level])
            console.print(_rows([(finding.area, _told(finding)) for finding in found], COLOURS[level]))
    if examination.not_looked:
        _head(console, f"not looked at ({len(examination.not_looked)})", "dim")
        rows = [
            ("needed" if each.needed else "", Text(_plain(f"{each.what}: {each.why}")))
            for each in examination.not_looked
        ]
        console.print(_rows(rows, "dim"))
    console.print()
    console.print(_sum(examination))


def _head(console: "Console", text: str, style: str) -> None:
    from rich.rule import Rule
    from rich.text import Text

    console.print()
    console.print(Rule(Text(text, style=style), style=style, align="left"))


def _rows(rows: "list[tuple[str, Text]]", style: str) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=AREA_COLUMNS, no_wrap=True)
    table.add_column(overflow="fold")
    for area, text in rows:
        table.add_row(Text(area, style=style), text)
    return table


def _told(finding: "Finding") -> "Text":
    """What was seen; below it, unless it is fine, what was needed, what to do and where that stands."""
    from rich.text import Text

    if finding.level == "ok":
        return Text(_plain(finding.seen))
    text = Text().append(_plain(finding.seen), style="bold")
    for head, said in (("needed", finding.needed), ("do", finding.remedy)):
        if said:
            text.append(f"\n{head}: ", style="italic")
            text.append(_plain(said))
    text.append(f"\n[{_plain(finding.source)}]", style="dim")
    return text


def _sum(examination: "Examination") -> "Text":
    from rich.text import Text

    counts = Counter(finding.level for finding in examination.findings)
    code = examination.exit_code
    if counts["problem"]:
        verdict, style = _counted(counts["problem"], "problem"), COLOURS["problem"]
    elif code:
        verdict, style = "no problem seen, but something needed could not be looked at", COLOURS["warning"]
    else:
        verdict, style = "nothing here would go wrong", COLOURS["ok"]
    rest = [_counted(counts[level], level) for level in ("warning", "note", "ok") if level in counts]
    return Text.assemble((verdict, style), f"; {', '.join(rest)}" if rest else "", f" (exit code {code})")


def _counted(count: int, level: str) -> str:
    return f"{count} {level}" if count == 1 or level == "ok" else f"{count} {level}s"


def _plain(text: str) -> str:
    """What came from files and variables cannot steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text.replace(os.path.expanduser("~/"), "~/"))  # noqa: PTH111 - raises nothing where there is no home
