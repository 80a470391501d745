"""Lists of environment variables, changed entry by entry in the text that is there. Pure."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from kvgauge.switch.places import Manifest, Place, Variables, get, text_at
from kvgauge.switch.profiles import Wanted
from kvgauge.switch.regions import PlacedEdit
from kvgauge.switch.spans import CannotPatch, Edit

_PLAIN = re.compile(r"(--)?[A-Za-z_/.][\w./+:,-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One variable of one list: its new value, or None where it goes. listed: (owner's name, which of its lists)."""

    listed: tuple[str, int]
    name: str
    value: str | None

    @property
    def says(self) -> str:
        return f"{self.name} removed" if self.value is None else f"{self.name}={self.value}"


def quoted(value: str, *, flow: bool = False, style: str | None = None) -> str:
    """A YAML scalar that reads back as this string, plain where that is safe."""
    if style == "'" or (style is None and '"' in value and "'" not in value):
        return "'" + value.replace("'", "''") + "'"
    if style is None and not flow and _PLAIN.fullmatch(value) and not value.endswith(":"):
        node = yaml.compose(value, Loader=yaml.SafeLoader)
        if node is not None and node.tag == "tag:yaml.org,2002:str" and node.value == value:
            return value
    return json.dumps(value, ensure_ascii=False)


def content_end(source: str, node: yaml.Node) -> int:
    """Where the node's own text ends: before the comments and blank lines that YAML's marks run on to."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return content_end(source, last[1] if isinstance(last, tuple) else last)
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(source[start:end].rstrip())


def list_of(place: Place, index: int) -> tuple[str, int]:
    """What tells a list from others: services that have no main container hold the graph's own at another index."""
    return (place.graph, -1) if place.variables[index].shared else (place.name, index)


def plan(manifest: Manifest, place: Place, want: Wanted, *, selective: bool) -> list[tuple[Edit, Change]]:
    """What makes this place's variables those of `want`.

    selective  only some services of a graph are switched, so that its own list may not change
    raises     CannotPatch
    """
    _no_tricks(manifest, place)
    planned: list[tuple[Edit, Change]] = []
    removed: dict[int, list[yaml.Node]] = {}
    missing: list[tuple[str, str]] = []
    for name, value in want.environment.items():
        holders = list(_holders(place, name))
        if not holders:
            missing.append((name, value))
            continue
        index, entry = holders[0]
        edit = _valued(manifest.text, place, index, entry, name, value, selective=selective)
        if edit is not None:
            planned.append((edit, Change(listed=list_of(place, index), name=name, value=value)))
        for spare_index, spare in holders[1:]:  # one place for a variable: which list wins changed between releases
            if not place.variables[spare_index].shared:
                removed.setdefault(spare_index, []).append(spare)
    for name in (*want.removed, *want.misleading):
        for index, entry in _holders(place, name):
            _fixed(place, entry, name)
            if place.variables[index].shared and selective:
                raise _graph_wide(place, name)
            removed.setdefault(index, []).append(entry)
    target = next((i for i, v in enumerate(place.variables) if v.entries is not None and not v.shared), None)
    target = 0 if target is None else target
    for index, variables in enumerate(place.variables):
        gone = removed.get(index, [])
        added = missing if index == target else []
        if gone or added:
            planned += _listed(manifest.text, variables, list_of(place, index), gone, added)
    _no_references(place, want, removed)
    return planned


def _holders(place: Place, name: str) -> Iterator[tuple[int, yaml.Node]]:
    for index, variables in enumerate(place.variables):
        found = [e for e in _entries(variables) if text_at(e, "name") == name]
        if len(found) > 1:
            raise CannotPatch(f"{place.name}: {name} stands {len(found)} times in {variables.key}; leave one of them")
        yield from ((index, entry) for entry in found)


def _entries(variables: Variables) -> list[yaml.Node]:
    return list(variables.entries.value) if variables.entries is not None else []


def _fixed(place: Place, entry: yaml.Node, name: str) -> None:
    if get(entry, "valueFrom") is not None:
        raise CannotPatch(
            f"{place.name}: {name} takes its value from elsewhere (valueFrom), and the switch would have to overwrite "
            "that; give it a plain value, or take it out here and switch it where it comes from"
        )


def _graph_wide(place: Place, name: str) -> CannotPatch:
    return CannotPatch(
        f"{place.name}: {name} stands in the graph's own variables, which every service sees; switch all services, or "
        "move it into the services first"
    )


def _valued(
    source: str, place: Place, index: int, entry: yaml.Node, name: str, value: str, *, selective: bool
) -> Edit | None:
    _fixed(place, entry, name)
    node = get(entry, "value")
    if node is not None and node.value == value and node.tag == "tag:yaml.org,2002:str":
        return None
    if place.variables[index].shared and selective:
        raise _graph_wide(place, name)
    if not isinstance(node, yaml.ScalarNode) or not node.value:
        raise CannotPatch(f"{place.name}: {name} has no value that could be changed; write `value:` or take it out")
    if node.style in ("|", ">"):
        raise CannotPatch(f"{place.name}: {name} is a block of text; write its value on one line")
    flow = isinstance(entry, yaml.MappingNode) and bool(entry.flow_style)
    style = node.style if node.style in ("'", '"') else None
    start, at = entry.start_mark.index, node.start_mark.index  # the whole entry, so that it is kept whole
    return Edit(start=start, end=node.end_mark.index, new=source[start:at] + quoted(value, flow=flow, style=style))


def _listed(
    source: str, variables: Variables, listed: tuple[str, int], gone: list[yaml.Node], added: list[tuple[str, str]]
) -> Iterator[tuple[Edit, Change]]:
    """Edits of one list: an edit for each entry that goes, one for all that come."""
    coming = [Change(listed=listed, name=name, value=value) for name, value in added]
    node = variables.entries
    if node is None:
        yield from ((_new_list(source, variables, added), change) for change in coming)
        return
    if node.flow_style:
        if node.value:
            line = node.start_mark.line + 1
            raise CannotPatch(f"line {line}: {variables.key} is written in brackets; write it as a list with dashes")
        block = _block(source, " " * _key(variables).start_mark.column, added, flow=False).rstrip("\r\n")
        colon = source.index(":", _key(variables).end_mark.index) + 1
        edit = Edit(start=colon, end=node.end_mark.index, new=_nl(source) + block)
        yield from ((edit, change) for change in coming)
        return
    last = node.value[-1]
    for entry in gone:
        yield _dropped(source, entry), Change(listed=listed, name=text_at(entry, "name") or "", value=None)
    if added:
        flow = isinstance(last, yaml.MappingNode) and bool(last.flow_style)
        edit = _after(source, last, _block(source, " " * _dash(source, last), added, flow=flow))
        yield from ((edit, change) for change in coming)
    elif len(gone) == len(node.value):
        colon = source.index(":", _key(variables).end_mark.index) + 1
        change = Change(listed=listed, name=text_at(gone[0], "name") or "", value=None)
        yield Edit(start=colon, end=colon, new=" []"), change


def _key(variables: Variables) -> yaml.Node:
    key: yaml.Node = next(key for key, _ in variables.parent.value if key.value == variables.key)
    return key


def _nl(source: str) -> str:
    return "\r\n" if "\r\n" in source else "\n"


def _block(source: str, indent: str, added: list[tuple[str, str]], *, flow: bool) -> str:
    nl = _nl(source)
    if flow:
        return "".join(f"{indent}- {{name: {n}, value: {quoted(v, flow=True)}}}{nl}" for n, v in added)
    return "".join(f"{indent}- name: {n}{nl}{indent}  value: {quoted(v)}{nl}" for n, v in added)


def _dash(source: str, entry: yaml.Node) -> int:
    """The column of the dash before a list's entry, which must begin its line.

    raises CannotPatch
    """
    start = source.rfind("\n", 0, entry.start_mark.index) + 1
    match = re.fullmatch(r"( *)- +", source[start : entry.start_mark.index])
    if match is None:
        raise CannotPatch(
            f"line {entry.start_mark.line + 1}: this entry does not begin its line with a dash (an anchor, a list in a "
            "list?); write it as `- name: ...`"
        )
    return len(match[1])


def _dropped(source: str, entry: yaml.Node) -> Edit:
    _dash(source, entry)
    start = source.rfind("\n", 0, entry.start_mark.index) + 1
    stop = source.find("\n", content_end(source, entry))
    return Edit(start=start, end=len(source) if stop < 0 else stop + 1, new="")


def _after(source: str, node: yaml.Node, block: str) -> Edit:
    """Whole lines behind a node's last line."""
    stop = source.find("\n", content_end(source, node))
    if stop < 0:
        return Edit(start=len(source), end=len(source), new=_nl(source) + block.rstrip("\r\n"))
    return Edit(start=stop + 1, end=stop + 1, new=block)


def _new_list(source: str, variables: Variables, added: list[tuple[str, str]]) -> Edit:
    parent = variables.parent
    if parent.flow_style or not parent.value:
        line = parent.start_mark.line + 1
        raise CannotPatch(f"line {line}: this container is written in braces; write it as lines")
    empty = next((value for key, value in parent.value if key.value == variables.key), None)
    indent = " " * parent.value[0][0].start_mark.column
    block = _block(source, indent, added, flow=False)
    if empty is not None:
        raise CannotPatch(
            f"line {empty.start_mark.line + 1}: {variables.key} is there and is no list; take the key out"
        )
    return _after(source, parent, f"{indent}{variables.key}:{_nl(source)}{block}")


def list_end(source: str, node: yaml.SequenceNode, items: list[str]) -> Edit:
    """Items more at the end of a list of plain values.

    raises CannotPatch  for an empty one
    """
    if not node.value:
        raise CannotPatch(
            f"line {node.start_mark.line + 1}: an empty list of arguments; write it as a list with dashes"
        )
    if node.flow_style:
        end = node.value[-1].end_mark.index
        return Edit(start=end, end=end, new="".join(f", {item}" for item in items))
    indent = " " * _dash(source, node.value[-1])
    return _after(source, node.value[-1], "".join(f"{indent}- {item}{_nl(source)}" for item in items))


def _no_tricks(manifest: Manifest, place: Place) -> None:
    """Anchors, merges and double keys make one text mean several things: those are refused.

    raises CannotPatch
    """
    for variables in place.variables:
        keys = [str(key.value) for key, _ in variables.parent.value]
        wrong = [key for key in {variables.key, "args", "command"} if keys.count(key) > 1]
        if wrong:
            raise CannotPatch(f"{place.name}: {wrong[0]} stands twice in one mapping; leave one")
        if "<<" in keys:
            raise CannotPatch(f"{place.name}: a YAML merge (<<) is used here; write its keys out before switching")
        nodes: list[yaml.Node] = [n for n in (variables.entries, variables.parent) if n is not None]
        nodes += [*_entries(variables), *(word.node for word in place.words)]
        nodes += [place.arguments] if place.arguments is not None else []
        if any(manifest.shared[id(node)] > 1 for node in nodes):
            raise CannotPatch(
                f"{place.name}: its variables or arguments are shared by a YAML anchor (&, *), so a change would reach "
                "other containers too; write them out for each"
            )


def _no_references(place: Place, want: Wanted, removed: dict[int, list[yaml.Node]]) -> None:
    gone = {text_at(entry, "name") for entries in removed.values() for entry in entries} - set(want.environment)
    texts = [word.text for word in place.words]
    texts += [text_at(e, "value") or "" for v in place.variables for e in _entries(v)]
    for name in sorted(n for n in gone if n):
        if any(f"$({name})" in text for text in texts):
            raise CannotPatch(
                f"{place.name}: $({name}) is used elsewhere in it, and {name} would go; write the value out"
            )


def placed(before: str, edit: Edit, change: Change) -> PlacedEdit:
    return PlacedEdit(edit=edit, place=change.listed[0], before=before, hold=(edit.start, edit.end))
