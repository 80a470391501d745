"""A switch and a check as shell, YAML, JSON or lines to read. Pure."""

import difflib
import json
import shlex
from typing import Any

from kvgauge.switch import regions, table
from kvgauge.switch.check import Amount
from kvgauge.switch.env_edits import quoted
from kvgauge.switch.profiles import Remark, Wanted


def line_of(remark: Remark) -> str:
    source = f" [{remark.source}]" if remark.source else ""
    return f"{remark.level}: {remark.about}: {remark.says}{source}"


def as_shell(want: Wanted) -> str:
    """To be evaluated where the worker is started; arguments stand in comments, for the command line."""
    lines = [f"# {_title(want)}"]
    lines += [f"unset {name}" for name in want.removed]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in want.environment.items()]
    if want.arguments:
        lines.append(f"# on its command line: {shlex.join(want.arguments)}")
    for section, values in want.config.items():
        lines.append(f"# in its YAML: {section}: {{{', '.join(f'{k}: {v}' for k, v in values.items())}}}")
    return "\n".join([*lines, *(f"# {line_of(remark)}" for remark in want.remarks), ""])


def as_yaml(want: Wanted) -> str:
    """What a container's entry of a manifest, or a chart's values, must hold."""
    lines = [f"# {_title(want)}", "env:"]
    for name, value in want.environment.items():
        lines += [f"- name: {name}", f"  value: {quoted(value)}"]
    if want.arguments:
        lines += ["args:  # besides the others", *(f"- {quoted(a)}" for a in want.arguments)]
    for section, values in want.config.items():
        lines += [f"# in the engine's YAML:\n# {section}:", *(f"#   {k}: {v}" for k, v in values.items())]
    lines += ["# must not be there:", *(f"#   {name}" for name in want.removed)]
    return "\n".join([*lines, *(f"# {line_of(remark)}" for remark in want.remarks), ""])


def as_json(want: Wanted) -> str:
    return _json(
        {
            "framework": want.engine,
            "backend": want.backend,
            "fabric": want.fabric,
            "profile": want.profile,
            "set": want.environment,
            "remove": list(want.removed),
            "arguments": list(want.arguments),
            "config": want.config,
            "remarks": [_remark(remark) for remark in want.remarks],
        }
    )


def _title(want: Wanted) -> str:
    return f"{table.NAMES[want.engine]} over {want.backend}, fabric {want.fabric}, profile {want.profile}"


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _remark(remark: Remark) -> dict[str, str]:
    return {"level": remark.level, "about": remark.about, "says": remark.says, "source": remark.source}


def check_lines(amounts: list[Amount], across: list[Remark]) -> str:
    lines: list[str] = []
    for amount in amounts:
        engine = table.NAMES.get(amount.settings.engine or "", "engine unknown")
        over = f" over {amount.carried.fabric or 'what it finds'}" if amount.carried else ""
        lines.append(f"{amount.settings.where} ({engine}): {amount.backend or 'backend unknown'}{over}")
        says = f"; {amount.carried.says}" if amount.carried else ""
        lines.append(f"  because {amount.because}{says}")
        lines += [f"  {line_of(remark)}" for remark in amount.remarks]
    return "\n".join([*lines, *(line_of(remark) for remark in across), ""])


def check_json(amounts: list[Amount], across: list[Remark]) -> str:
    found: list[dict[str, Any]] = [
        {
            "where": amount.settings.where,
            "framework": amount.settings.engine,
            "backend": amount.backend,
            "because": amount.because,
            "fabric": amount.carried.fabric if amount.carried else None,
            "tcp_without_an_error": amount.carried.fallback if amount.carried else None,
            "says": amount.carried.says if amount.carried else None,
            "remarks": [_remark(remark) for remark in amount.remarks],
        }
        for amount in amounts
    ]
    return _json({"workers": found, "together": [_remark(remark) for remark in across]})


def contradicts(amounts: list[Amount], across: list[Remark]) -> bool:
    return any(r.level == "contradiction" for r in [*across, *(r for a in amounts for r in a.remarks)])


def difference(before: str, after: str, name: str) -> str:
    """The lines that change, none beside them: other lines of a manifest may hold secrets. Markers are left out."""
    return "".join(
        line if line.endswith("\n") else f"{line}\n"
        for line in difflib.unified_diff(
            regions.lines_of(regions.without_markers(before)),
            regions.lines_of(regions.without_markers(after)),
            name,
            name,
            n=0,
        )
    )
