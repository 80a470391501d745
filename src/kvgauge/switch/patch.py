"""A manifest switched from one backend to the other, every other byte of it as it was. Pure: text in, text out."""

from dataclasses import dataclass
from typing import Any

import yaml

from kvgauge.switch import env_edits, regions
from kvgauge.switch.argument_edits import argument_edits
from kvgauge.switch.arguments import past_nixl, set_in_shell, transceiver
from kvgauge.switch.check import Amount, check, settings_of, transceiver_of
from kvgauge.switch.env_edits import Change
from kvgauge.switch.places import Manifest, Place, Variables, Word, chosen, get, read, text_at
from kvgauge.switch.profiles import Remark, Wanted, wanted
from kvgauge.switch.regions import PlacedEdit
from kvgauge.switch.spans import CannotPatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user wants of a file. engine None: as each command line shows."""

    backend: str
    fabric: str | None = None
    profile: str = "minimal"
    engine: str | None = None
    containers: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    net_devices: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Patched:
    """The new text; what was done at each place, in words; and what there is to know."""

    text: str
    done: tuple[str, ...]
    remarks: tuple[Remark, ...]


def switched(text: str, asked: Asked) -> Patched:
    """The manifest with `asked.backend`.

    A place that was switched before is first put back as it was. If it then uses the backend asked for, that is the
    answer: its own values, byte for byte. Otherwise the profile's values are written, and the lines they replace stay
    beside them as comments. A place that uses the backend already keeps its values unless `overwrite`.

    raises CannotPatch, UsageError
    """
    if text.lstrip().startswith(("{", "[")):
        raise CannotPatch(
            "this manifest is JSON, which has no comments to keep the replaced lines in; make it YAML first"
        )
    marked = {name for region in regions.find(text) for name in region.places}
    manifest = read(text)
    gone = marked - {place.name for place in manifest.places} - {place.graph for place in manifest.places}
    if gone:
        raise CannotPatch(
            f"lines of this file were switched for {', '.join(sorted(gone))}, which it no longer holds (renamed?); "
            "--undo puts those lines back"
        )
    picked = chosen(manifest, asked.engine, asked.containers, asked.services)
    names = {place.name for place, _ in picked} | {place.graph for place, _ in picked if place.graph}
    _whole_graph(text, asked, names)
    base = regions.put_back(text, names)
    if base != text:
        manifest = read(base)
    edits: list[PlacedEdit] = []
    changes: list[Change] = []
    words: dict[str, tuple[str, ...]] = {}
    done, remarks = [], []
    for place, engine in chosen(manifest, asked.engine, asked.containers, asked.services):
        amount = check(settings_of(manifest, place, engine), asked.fabric)
        was = marked & {place.name, place.graph}
        if amount.clean == asked.backend and not asked.overwrite:
            done.append(_kept(place, amount, put_back=bool(was)))
            remarks += [r for r in amount.remarks if r.level in ("contradiction", "warning") and r not in remarks]
            continue
        want = wanted(engine, asked.backend, asked.fabric, asked.profile, net_devices=asked.net_devices)
        place_edits, place_changes, place_words = _edits(manifest, place, want, amount, selective=bool(asked.services))
        for placed in place_edits:  # variables of a whole graph are found once for each of its services
            if placed.edit not in [known.edit for known in edits]:
                edits.append(placed)
        changes += place_changes
        words[place.name] = place_words
        said = ", ".join(_said(place, place_changes, place_words)) or "nothing to change"
        done.append(f"{place.name}: {amount.clean} -> {asked.backend}: {said}")
        remarks += [remark for remark in want.remarks if remark not in remarks]
    label = {e.before for e in edits}
    if label == {asked.backend}:  # --overwrite of what is there: the file's own values from now on
        result = _plainly(base, edits)
    else:
        result = regions.write(base, edits, asked.backend) if edits else base
        if regions.put_back(result, names) != base:
            raise CannotPatch("a mistake of kvgauge's own: this file could not be put back after the switch")
    _verify(manifest, result, changes, words)
    return Patched(text=result, done=tuple(done), remarks=tuple(remarks))


def _said(place: Place, changes: list[Change], words: tuple[str, ...]) -> list[str]:
    said = list(dict.fromkeys(change.says for change in changes))
    if words != tuple(word.text for word in place.words):
        said.append("the command line's backend")
    return said


def put_back(text: str) -> Patched:
    """The manifest as it was before any switch."""
    found = regions.find(text)
    if not found:
        raise CannotPatch("nothing to undo: this file holds no lines of an earlier switch")
    names = dict.fromkeys(name for region in found for name in region.places)
    return Patched(text=regions.put_back(text), done=tuple(f"{name}: as it was" for name in names), remarks=())


def _whole_graph(text: str, asked: Asked, names: set[str]) -> None:
    if asked.services and any(
        set(region.places) & names and any(p.count("/") == 1 for p in region.places) for region in regions.find(text)
    ):
        raise CannotPatch(
            "variables of the whole graph were switched for all services: switch them all, without --service"
        )


def _kept(place: Place, amount: Amount, *, put_back: bool) -> str:
    if put_back:
        return f"{place.name}: put back as it was: {amount.backend} ({amount.carried.says if amount.carried else ''})"
    return (
        f"{place.name}: uses {amount.backend} already ({amount.because}); nothing changed, --overwrite writes the "
        "profile's values"
    )


def _edits(
    manifest: Manifest, place: Place, want: Wanted, amount: Amount, *, selective: bool
) -> tuple[list[PlacedEdit], list[Change], tuple[str, ...]]:
    """Edits of the text; changes of variables; and the words of the command line as they must read then."""
    for name in (*want.environment, *want.removed, *want.misleading):
        if set_in_shell(place.words, name) and not _shell_agrees(place.words, name, want):
            raise CannotPatch(f"{place.name}: its shell script sets {name} itself; take that out of the script first")
    _outside(manifest, place, want)
    _transceiver(manifest, place, want)
    edits, changes = [], []
    words = [word.text for word in place.words]
    for spoken in sorted(argument_edits(manifest.text, place, want), key=lambda s: s.at, reverse=True):
        node = spoken.node
        hold = (node.start_mark.index, env_edits.content_end(manifest.text, node))
        hold = hold if hold[0] <= spoken.edit.start < hold[1] else (spoken.edit.start, spoken.edit.end)
        edits.append(PlacedEdit(edit=spoken.edit, place=place.name, before=amount.clean, hold=hold))
        words[spoken.at : spoken.at + spoken.replaces] = spoken.words
    # after the arguments: where both come at one point, a list's items must precede a new key
    for edit, change in env_edits.plan(manifest, place, want, selective=selective):
        edits.append(env_edits.placed(amount.clean, edit, change))
        changes.append(change)
    return edits, changes, tuple(words)


def _shell_agrees(words: tuple[Word, ...], name: str, want: Wanted) -> bool:
    return name in want.environment and all(
        w.text == f"{name}={want.environment[name]}" for w in words if set_in_shell((w,), name)
    )


def _outside(manifest: Manifest, place: Place, want: Wanted) -> None:
    """Variables that come from a ConfigMap of this file and would have to go: they cannot be taken out here."""
    for kind, name in place.outside:
        data = get(manifest.config_maps.get(name), "data") if kind == "ConfigMap" else None
        held = {str(k.value) for k, _ in data.value} if isinstance(data, yaml.MappingNode) else set()
        wrong = [n for n in (*want.removed, *want.misleading) if n in held]
        if wrong:
            raise CannotPatch(
                f"{place.name}: {', '.join(wrong)} must go and come from ConfigMap {name} (envFrom); take them out "
                "there, or make a second ConfigMap for this backend"
            )


def _transceiver(manifest: Manifest, place: Place, want: Wanted) -> None:
    backend = transceiver_of(manifest, place) if want.engine == "trtllm" else None
    if past_nixl(backend, want.backend) and transceiver(place.words) is None:
        raise CannotPatch(
            f"{place.name}: a ConfigMap of this file says cache_transceiver_config.backend: {backend}, which goes past "
            "NIXL; write NIXL there first"
        )


def _plainly(text: str, edits: list[PlacedEdit]) -> str:
    for placed in sorted(edits, key=lambda p: (p.edit.start, p.edit.end), reverse=True):
        text = text[: placed.edit.start] + placed.edit.new + text[placed.edit.end :]
    return text


def _verify(base: Manifest, text: str, changes: list[Change], words: dict[str, tuple[str, ...]]) -> None:
    """Parse what was written: the variables and words that were to change did so, and nothing else in any document.

    raises CannotPatch  where YAML reads the result otherwise than meant
    """
    wrong = CannotPatch(
        "this file cannot be patched safely: YAML would read the result otherwise than meant, so nothing was written; "
        "write `env` and `args` as lists with dashes, one line an entry"
    )
    try:
        after = read(text)
    except CannotPatch:
        raise wrong from None
    if [p.name for p in base.places] != [p.name for p in after.places]:
        raise wrong
    for old, new in zip(base.places, after.places, strict=True):
        if tuple(w.text for w in new.words) != words.get(old.name, tuple(w.text for w in old.words)):
            raise wrong
        for index, variables in enumerate(old.variables):
            expected = dict(_read(variables))
            for change in changes:
                if change.listed == env_edits.list_of(old, index):
                    expected.pop(change.name, None)
                    if change.value is not None:
                        expected[change.name] = {"name": change.name, "value": change.value}
            if expected != dict(_read(new.variables[index])):
                raise wrong
    if _rest(base) != _rest(after):
        raise wrong


def _read(variables: Variables) -> list[tuple[str, Any]]:
    entries = variables.entries.value if variables.entries is not None else []
    return [
        (text_at(e, "name") or "", {str(k.value): _plain(v, {}) for k, v in e.value})
        for e in entries
        if isinstance(e, yaml.MappingNode)
    ]


def _rest(manifest: Manifest) -> list[Any]:
    """The documents without what a switch may change: lists of variables and command lines."""
    masked: dict[int, set[str]] = {}
    for place in manifest.places:
        for variables in place.variables:
            masked.setdefault(id(variables.parent), set()).add(variables.key)
        if place.arguments is not None:
            masked.setdefault(id(place.arguments), set())
        for word in place.words:
            masked.setdefault(id(word.node), set())
    return [_plain(document, masked) for document in manifest.documents]


def _plain(node: yaml.Node | None, masked: dict[int, set[str]]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return [(k.value, _plain(v, masked)) for k, v in node.value if k.value not in masked.get(id(node), ())]
    if node is None or id(node) in masked:
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, masked) for item in node.value]
    return node.value if node.tag == "tag:yaml.org,2002:str" else (node.tag, node.value)
