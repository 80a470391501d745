"""Edits of a file that keep the lines they replace as comments beside them, so that they can be put back.

    # kvgauge switch UCX -> LIBFABRIC, 2 lines kept, 7a1b0c9d, at Deployment/vllm/main
    #|        - name: UCX_TLS
    #|          value: tcp
            - name: FI_PROVIDER
              value: efa
    # kvgauge end

The eight digits are a checksum of the new lines: lines edited by hand since are not thrown away.
"""

import re
import zlib
from dataclasses import dataclass

from kvgauge.switch.spans import CannotPatch, Edit

_BEGIN = re.compile(
    r"^\s*# kvgauge switch (?P<before>\w+) -> (?P<after>\w+), (?P<kept>\d+) lines? kept, (?P<crc>[0-9a-f]{8}), "
    r"at (?P<places>\S+)\s*$"
)
_BEGUN = re.compile(r"^\s*# kvgauge switch ")
_END = re.compile(r"^\s*# kvgauge end\s*$")
_KEPT, _KEPT_UNENDED = "#|", "#!|"  # the second: a last line of the file that had no line end


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A marked piece of a file: lines [first, last) of it, markers included."""

    first: int
    last: int
    before: str
    after: str
    places: tuple[str, ...]
    kept: str
    new: str
    untouched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedEdit:
    """An edit; `hold` is the extent that comments may not cut (a value over several lines), `place` whose it is."""

    edit: Edit
    place: str
    before: str
    hold: tuple[int, int]


def lines_of(text: str) -> list[str]:
    return text.splitlines(keepends=True) if "\n" not in text else re.findall(r"[^\n]*\n|[^\n]+\Z", text)


def find(text: str) -> list[Region]:
    """raises CannotPatch  for markers that do not pair"""
    lines = lines_of(text)
    regions, at = [], 0
    while at < len(lines):
        begin = _BEGIN.match(lines[at])
        if begin is None:
            if _BEGUN.match(lines[at]):
                raise CannotPatch(
                    f"line {at + 1}: this `# kvgauge switch` line was changed; put it back as it was written"
                )
            if _END.match(lines[at]):
                raise CannotPatch(f"line {at + 1}: `# kvgauge end` without its beginning; remove the line by hand")
            at += 1
            continue
        body = at + 1 + int(begin["kept"])
        end = next((i for i in range(body, len(lines)) if _END.match(lines[i]) or _BEGIN.match(lines[i])), None)
        kept = [_unmarked(line) for line in lines[at + 1 : body]]
        if end is None or not _END.match(lines[end]) or None in kept:
            raise CannotPatch(
                f"line {at + 1}: the kept lines or the end of this `# kvgauge switch` are gone; put the file back from "
                "your version control, or remove the marker lines by hand"
            )
        new = "".join(lines[body:end])
        regions.append(
            Region(
                first=at,
                last=end + 1,
                before=begin["before"],
                after=begin["after"],
                places=tuple(begin["places"].split(",")),
                kept="".join(line for line in kept if line is not None),
                new=new,
                untouched=_checksum(new) == begin["crc"],
            )
        )
        at = end + 1
    return regions


def _unmarked(line: str) -> str | None:
    if line.startswith(_KEPT_UNENDED):
        return line[len(_KEPT_UNENDED) :].removesuffix("\n").removesuffix("\r")
    return line[len(_KEPT) :] if line.startswith(_KEPT) else None


def _checksum(new: str) -> str:
    return f"{zlib.crc32(new.rstrip().encode()):08x}"


def put_back(text: str, places: set[str] | None = None) -> str:
    """The file before the switch, for regions of these places (None: all).

    raises CannotPatch  where new lines were edited by hand since
    """
    lines = lines_of(text)
    for region in reversed(find(text)):
        if places is not None and not places & set(region.places):
            continue
        if not region.untouched:
            raise CannotPatch(
                f"lines {region.first + 1}-{region.last}: edited by hand since the switch, and switching would lose "
                "that; remove the `# kvgauge` and `#|` lines there to keep the edit, or undo it"
            )
        lines[region.first : region.last] = [region.kept]
    return "".join(lines)


def without_markers(text: str) -> str:
    """The file as it stands, less the comments of the switch: for showing differences."""
    lines = lines_of(text)
    for region in reversed(find(text)):
        lines[region.first : region.last] = [region.new]
    return "".join(lines)


def write(text: str, edits: list[PlacedEdit], after: str) -> str:
    """The file with these edits, each beside the lines it replaced. Edits do not overlap."""
    newline = "\r\n" if "\r\n" in text else "\n"
    pieces, done = [], 0
    for start, end, inside in _merged(text, edits):
        kept = lines_of(text[start:end])
        new, at = [], start
        for placed in inside:
            new += [text[at : placed.edit.start], placed.edit.new]
            at = placed.edit.end
        changed = "".join([*new, text[at:end]])
        unended = end == len(text) and bool(kept) and not kept[-1].endswith("\n")
        if changed and not changed.endswith("\n"):
            changed += newline
        marked = [_KEPT + line for line in kept]
        if unended:
            marked[-1] = _KEPT_UNENDED + kept[-1] + newline
        indent = " " * _indent(changed or "".join(kept))
        places = ",".join(dict.fromkeys(placed.place for placed in inside))
        count = f"{len(kept)} line{'s' if len(kept) != 1 else ''} kept"
        switch = f"{inside[0].before} -> {after}"
        pieces += [
            text[done:start],
            f"{indent}# kvgauge switch {switch}, {count}, {_checksum(changed)}, at {places}{newline}",
            *marked,
            changed,
            f"{indent}# kvgauge end{'' if unended else newline}",
        ]
        done = end
    return "".join([*pieces, text[done:]])


def _indent(text: str) -> int:
    line = next((line for line in text.split("\n") if line.strip()), "")
    return len(line) - len(line.lstrip(" "))


def _merged(text: str, edits: list[PlacedEdit]) -> list[tuple[int, int, list[PlacedEdit]]]:
    """Line ranges to replace, with their edits; ranges that touch are one."""
    ranges: list[tuple[int, int, list[PlacedEdit]]] = []
    for placed in sorted(edits, key=lambda p: (p.edit.start, p.edit.end)):
        first = min(placed.edit.start, placed.hold[0], _above(text, placed.edit))
        start, end = _whole_lines(text, first, max(placed.edit.end, placed.hold[1]))
        if ranges and start <= ranges[-1][1]:
            first, last, inside = ranges[-1]
            ranges[-1] = (min(first, start), max(last, end), [*inside, placed])
        else:
            ranges.append((start, end, [placed]))
    return ranges


def _above(text: str, edit: Edit) -> int:
    """Where a last line without a line end is to be kept, and may belong to a value over several lines (a script):
    the line which that begins with, no deeper than what is added."""
    if edit.start < len(text) or text.endswith("\n"):
        return edit.start
    at, deepest = len(text), _indent(edit.new)
    while at > 0:
        at = text.rfind("\n", 0, at - 1) + 1
        line = text[at:].split("\n", 1)[0]
        if line.strip() and _indent(line) <= deepest:
            break
    return at


def _whole_lines(text: str, start: int, end: int) -> tuple[int, int]:
    start_line = text.rfind("\n", 0, start) + 1
    if (start == end and start == start_line and start < len(text)) or (end > start and text[end - 1 : end] == "\n"):
        return start_line, end
    if start == end == len(text) and text.endswith("\n"):
        return start, end
    stop = text.find("\n", end)
    return start_line, len(text) if stop < 0 else stop + 1
