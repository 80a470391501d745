"""`kvgauge compare`: two runs, two tests, or all tests of a plan; with gates for a pipeline."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvgauge.compare.sides import Comparison, Side
    from kvgauge.compare.values import Key
    from kvgauge.report.records import Results

EXIT_FINE, EXIT_WORSE, EXIT_INVALID, EXIT_UNDECIDED = 0, 1, 3, 4


def add_parser(commands: Any) -> None:
    """Add `compare` to argparse's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="say whether one run is better than another, by how much and how surely",
        description="Compare two runs, two tests of one run, or all tests of a plan.",
        epilog="exit codes: without --gate 0, 1 when the primary metric is worse, 4 when it cannot be told; with "
        "--gate 0 all proved within, 1 one proved beyond, 4 undecided; 2 when the sides may not be compared; 3 when "
        "every run of a side is invalid or failed",
    )
    parser.add_argument("before", nargs="?", type=Path, metavar="A", help="folder of a run, or its results.json")
    parser.add_argument("after", nargs="?", type=Path, metavar="B", help="the other one; left out: tests of A")
    for flag, which in (("--before", "A"), ("--after", "B")):
        parser.add_argument(
            flag,
            dest=f"all_{flag[2:]}",
            nargs="+",
            type=Path,
            metavar="DIR",
            help=f"{which} as several folders, each a deployment of its own: these are what is replicated then, or "
            "blocks of one of each side",
        )
    parser.add_argument(
        "--tests",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="a test of A, and one of B (or of A, without B); default: tests of the same name, or A's own baselines",
    )
    parser.add_argument("--all", action="store_true", help="rank all tests of A by its primary metric")
    parser.add_argument(
        "--reference", action="store_true", help="the published earlier results' gains, and what they lack"
    )
    parser.add_argument(
        "--vary", action="append", default=[], metavar="FIELD", help="a difference that is the experiment (repeatable)"
    )
    parser.add_argument(
        "--primary", metavar="METRIC[@CELL]", help="what decides, where the two plans do not declare the same"
    )
    parser.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="METRIC[@CELL]:PCT",
        help="may be worse by so much at most, as in ttft:5%% (repeatable)",
    )
    parser.add_argument(
        "--blocks",
        choices=("auto", "yes", "no"),
        default="auto",
        help="deployments in blocks of two, one of each side: auto where their times show such blocks (default), "
        "yes: refuse where they do not, no: never",
    )
    parser.add_argument("--metrics", choices=("headline", "all"), default="headline", help="which the tables show")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """See the parser's epilog for exit codes; UsageError and SamplesError say why there is nothing to compare."""
    from kvgauge.failures import UsageError

    if args.reference:
        if args.before is not None:
            raise UsageError("--reference stands alone: published numbers are compared with nothing of yours")
        if args.blocks != "auto":
            raise UsageError("--blocks is about deployments, and published numbers tell of none: leave it out")
        return _reference()
    if args.all_before or args.all_after:
        if args.before is not None or not (args.all_before and args.all_after):
            raise UsageError("--before and --after go together, and take the place of A and B")
        if args.all:
            raise UsageError("--all ranks the tests of one run: leave out --before and --after")
    elif args.before is None:
        raise UsageError("name what to compare: kvgauge compare A B, or A alone with --tests or --all")
    if args.all and (args.after is not None or args.tests or args.gate or args.blocks != "auto"):
        raise UsageError("--all ranks the tests of one run: leave out B, --tests, --gate and --blocks")
    if args.all:
        return _rank(args)

    from kvgauge.compare.gates import judge, read_gate, read_key
    from kvgauge.compare.sides import compare_all

    pairs = _joined_pair(args) if args.all_before else _pairs(args)
    primary = pairs[0][1].primary
    chosen = read_key(args.primary, primary[0] if primary else None) if args.primary else None
    cells = {name for pair in pairs for side in pair for name in side.cells}
    _known("--primary", [chosen] if chosen else [], cells)
    if args.after is None and not args.tests and not args.all_before:
        pairs = _that_may(pairs, chosen, args.vary)
    compared = compare_all(pairs, primary=chosen, vary=args.vary, wanted=args.blocks)
    gates = [[read_gate(text, one.primary[0]) for text in args.gate] for one in compared]
    _known("--gate", [(gate.cell, gate.metric) for some in gates for gate in some], cells)
    passed = [judge(one, some) for one, some in zip(compared, gates, strict=True)]
    if args.json:
        _print_json(compared, passed)
    else:
        _print_tables(compared, passed, everything=args.metrics == "all")
    if args.gate:
        return _gates_code(compared, passed)
    return _code(compared)


def _that_may(
    pairs: "list[tuple[Side, Side]]", primary: "Key | None", vary: Sequence[str]
) -> "list[tuple[Side, Side]]":
    """Of a plan's own pairs those that may be compared; why the others may not, on standard error.

    raises  UsageError when none may
    """
    from kvgauge.compare.differences import check_varied, refusal
    from kvgauge.failures import UsageError

    check_varied(vary)
    kept, refused = [], []
    for before, after in pairs:
        key = primary or after.primary
        why = None if key is None else refusal(before, after, key, vary)
        if why is None:
            kept.append((before, after))
        else:
            refused.append(why)
    if not kept:
        raise UsageError("; ".join(refused))
    for why in refused:
        print(f"kvgauge: {why}", file=sys.stderr)
    return kept


def _known(flag: str, keys: "list[Key]", cells: set[str]) -> None:
    """raises UsageError when a cell is named that no side has: a slip must not look like a measurement"""
    from kvgauge.failures import UsageError

    for cell, metric in keys:
        if cell is not None and cell not in cells:
            raise UsageError(f"{flag} {metric}@{cell}: there is no cell {cell!r}; there are {', '.join(sorted(cells))}")


def _code(compared: "list[Comparison]") -> int:
    verdicts = {row.row.verdict for one in compared for row in one.rows if row.row.primary}
    if "worse" in verdicts:
        return EXIT_WORSE
    if "invalid" in verdicts:
        return EXIT_INVALID
    return EXIT_UNDECIDED if "cannot tell" in verdicts else EXIT_FINE


def _gates_code(compared: "list[Comparison]", passed: Any) -> int:
    outcomes = {one.outcome for gates in passed for one in gates}
    if "beyond" in outcomes:
        return EXIT_WORSE
    if any(row.row.verdict == "invalid" for one in compared for row in one.rows if row.row.primary):
        return EXIT_INVALID
    return EXIT_UNDECIDED if "undecided" in outcomes else EXIT_FINE


def _pairs(args: argparse.Namespace) -> "list[tuple[Side, Side]]":
    from kvgauge.failures import UsageError
    from kvgauge.report import results
    from kvgauge.report.against import side_of

    first = _read(args.before)
    second = first if args.after is None else results.read(args.after)
    sources = _source(args.before), _source(args.after or args.before)
    if args.tests:
        names = [tuple(args.tests)]
    elif args.after is None:
        here = {test.name for test in first.tests}
        names = [(baseline, test.name) for test in first.tests for baseline in test.baseline if baseline in here]
        if not names:
            raise UsageError(f"{args.before} has no test with a baseline: name two with --tests, or a second run")
    elif len(first.tests) == len(second.tests) == 1:
        names = [(first.tests[0].name, second.tests[0].name)]
    else:
        there = {test.name for test in second.tests}
        names = [(test.name, test.name) for test in first.tests if test.name in there]
        if not names:
            mine, theirs = (", ".join(repr(test.name) for test in one.tests) for one in (first, second))
            raise UsageError(f"no test is in both: A has {mine}; B has {theirs}. Name two: --tests BEFORE AFTER")
    pairs = []
    for before, after in names:
        alike = before == after
        labels = [
            f"{name} ({path})" if alike else name for name, path in zip((before, after), _folders(args), strict=True)
        ]
        pairs.append(
            (
                side_of(first, sources[0], before, label=labels[0]),
                side_of(second, sources[1], after, label=labels[1]),
            )
        )
    for pair in pairs:
        _refuse_copies(pair)
    return pairs


def _source(path: Path) -> str:
    """Where results lie, the same whether the folder or its results.json was named."""
    whole = path.resolve()
    return str(whole.parent if whole.name == "results.json" else whole)


def _refuse_copies(sides: "Sequence[Side]") -> None:
    """Of runs that are in twice nothing can be told: they are alike to the last digit, and are no replication.

    raises  UsageError naming both
    """
    from itertools import combinations

    from kvgauge.failures import UsageError

    for one, other in combinations(sides, 2):
        if one.values.values and one.values.values == other.values.values:
            same = one.source == other.source
            raise UsageError(
                f"{one.label} and {other.label} are the same runs"
                + (f" of {one.source}" if same else f": {other.source} holds what {one.source} does, to the last digit")
                + ". Name two that were measured apart"
            )


def _joined_pair(args: argparse.Namespace) -> "list[tuple[Side, Side]]":
    """Each side from several folders. raises UsageError when they have not one test in common"""
    from kvgauge.compare.sides import joined
    from kvgauge.failures import UsageError
    from kvgauge.report.against import side_of

    read = [[(path, _read(path)) for path in paths] for paths in (args.all_before, args.all_after)]
    common = [set.intersection(*({test.name for test in one.tests} for _, one in group)) for group in read]
    if args.tests:
        names = list(args.tests)
    elif all(len(one) == 1 for one in common):
        names = [next(iter(one)) for one in common]
    else:
        known = " and ".join(", ".join(sorted(one)) or "none" for one in common)
        raise UsageError(f"the folders of each side have in common {known}: name one of each with --tests BEFORE AFTER")
    same = names[0] == names[1]
    labels = [f"{name} ({which})" if same else name for name, which in zip(names, ("before", "after"), strict=True)]
    sides = [
        [side_of(one, _source(path), name, label=label) for path, one in group]
        for group, name, label in zip(read, names, labels, strict=True)
    ]
    _refuse_copies([*sides[0], *sides[1]])
    return [(joined(sides[0], args.vary), joined(sides[1], args.vary))]


def _folders(args: argparse.Namespace) -> tuple[str, str]:
    """A and B as short as they can be told apart."""
    paths = [path.parent if path.name == "results.json" else path for path in (args.before, args.after or args.before)]
    names = [path.name or str(path) for path in paths]
    return (names[0], names[1]) if names[0] != names[1] else (str(paths[0]), str(paths[1]))


def _read(path: Path) -> "Results":
    from kvgauge.report import results

    return results.read(path)


def _rank(args: argparse.Namespace) -> int:
    from kvgauge.compare.differences import check_varied
    from kvgauge.compare.gates import read_key
    from kvgauge.compare.ranks import rank, winner
    from kvgauge.failures import UsageError
    from kvgauge.report.against import all_values, primary_of, render_ranks

    results = _read(args.before)
    declared = primary_of(results)
    key: Key | None = read_key(args.primary, declared[0] if declared else None) if args.primary else declared
    if key is None:
        raise UsageError(f"{args.before} declares no primary metric: --primary METRIC@CELL")
    check_varied(args.vary)
    ranked = rank(all_values(results, str(args.before)), key, vary=args.vary)
    first, sentence = winner(ranked, rehearsal=results.rehearsal)
    if args.json:
        import msgspec

        found = {"key": key, "ranked": ranked, "winner": first, "sentence": sentence, "scope": results.scope}
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        from kvgauge.cli.pages import pages
        from kvgauge.report.text import page

        console = page()
        with pages():
            for part in render_ranks(ranked, key, sentence, scope=results.scope):
                console.print(part)
    return EXIT_FINE if len(ranked) > 1 and all(one.apart for one in ranked[1:]) else EXIT_UNDECIDED


def _reference() -> int:
    """The published gains again. They carry no n, so that nothing can be told from them."""
    from kvgauge.cli.pages import pages
    from kvgauge.report.published import published
    from kvgauge.report.text import page, print_results

    with pages():
        print_results(published(), page())
    return EXIT_UNDECIDED


def _print_json(compared: "list[Comparison]", passed: Any) -> None:
    import msgspec

    found = [{"comparison": one, "gates": gates} for one, gates in zip(compared, passed, strict=True)]
    print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())


def _print_tables(compared: "list[Comparison]", passed: Any, *, everything: bool) -> None:
    from kvgauge.cli.pages import pages
    from kvgauge.report.against import render, render_gates
    from kvgauge.report.text import page

    console = page()
    with pages():
        for one, gates in zip(compared, passed, strict=True):
            for part in render(one, everything=everything):
                console.print(part)
            if gates:
                for part in render_gates(gates):
                    console.print(part)
            console.print()
