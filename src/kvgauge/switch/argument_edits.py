"""Command lines changed so that they name the backend wanted. Pure."""

import re
from dataclasses import dataclass

import yaml

from kvgauge.switch import kv_json, table
from kvgauge.switch.arguments import (
    BACKENDS_KEY,
    OVERRIDES,
    TRANSCEIVER,
    Value,
    dotted_backends,
    past_nixl,
    role_of,
    transceiver,
    values,
)
from kvgauge.switch.env_edits import list_end, quoted
from kvgauge.switch.places import Place
from kvgauge.switch.profiles import Wanted
from kvgauge.switch.spans import CannotPatch, Edit

_VLLM_PROGRAMS = ("dynamo.vllm", "serve", "vllm.entrypoints.openai.api_server")
_SGLANG_PROGRAMS = ("dynamo.sglang", "serve", "sglang.launch_server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """An edit inside `node`, after which words[at : at + replaces] of the command line read `words`."""

    edit: Edit
    node: yaml.Node
    at: int
    replaces: int
    words: tuple[str, ...]


def argument_edits(source: str, place: Place, want: Wanted) -> list[Spoken]:
    """raises CannotPatch"""
    if want.engine == "vllm":
        return _vllm(source, place, want)
    if want.engine == "sglang":
        given = list(values(place.words, table.SGLANG_FLAG))
        if not given:
            _moves_kv(place, table.SGLANG_FLAG)
            return _append(source, place, want.arguments, _SGLANG_PROGRAMS)
        return [_changed(place, v, [(0, len(v.text), "nixl")]) for v in given if v.text != "nixl"]
    if not past_nixl(transceiver(place.words), want.backend):
        return []
    found = []
    for value in values(place.words, *OVERRIDES):
        span = kv_json.transceiver_backend(value.text)[1]
        if span is not None:
            found.append(_changed(place, value, [(*span, '"NIXL"')]))
    return found + [_changed(place, v, [(0, len(v.text), "NIXL")]) for v in values(place.words, TRANSCEIVER)]


def _vllm(source: str, place: Place, want: Wanted) -> list[Spoken]:
    dotted = dotted_backends(place.words)
    if dotted:
        if len(dotted) > 1:
            raise CannotPatch(f"{place.name}: several {table.VLLM_FLAG}.{BACKENDS_KEY}; leave one of them")
        text = dotted[0].text
        name = re.search(r"[A-Z_]+", text)
        if name is None:
            raise CannotPatch(f"{place.name}: {table.VLLM_FLAG}.{BACKENDS_KEY} names no backend: {text}")
        if name[0] == want.backend:
            return []
        return [_changed(place, dotted[0], [(*name.span(), want.backend)])]
    given = list(values(place.words, table.VLLM_FLAG))
    if len(given) > 1:
        raise CannotPatch(f"{place.name}: {table.VLLM_FLAG} stands {len(given)} times; leave the one that counts")
    if given:
        kv_json.parse(given[0].text, table.VLLM_FLAG)
        parts = kv_json.with_backend(given[0].text, want.backend)
        return [_changed(place, given[0], parts)] if len(parts) == 1 else _several(place, given[0], parts)
    if any(word.text.startswith(f"{table.VLLM_FLAG}.") for word in place.words):
        flag = f"{table.VLLM_FLAG}.{BACKENDS_KEY}+"
        return _append(source, place, (flag, want.backend), _VLLM_PROGRAMS)
    if want.backend == "UCX":
        return []
    _moves_kv(place, table.VLLM_FLAG)
    return _append(source, place, want.arguments, _VLLM_PROGRAMS)


def _moves_kv(place: Place, flag: str) -> None:
    """raises CannotPatch for a worker that is neither prefill nor decode and has no connector: it moves no KV"""
    if role_of(place) not in ("prefill", "decode"):
        raise CannotPatch(
            f"{place.name}: no {flag}, and nothing says prefill or decode: this worker moves no KV, so there is "
            "nothing to switch; choose the workers with --service or --container, or give it the flag first"
        )


def _changed(place: Place, value: Value, parts: list[kv_json.Part]) -> Spoken:
    ((start, end, new),) = parts
    before = value.word.text
    prefix = before[: len(before) - len(value.text)]
    text = prefix + value.text[:start] + new + value.text[end:]
    return Spoken(
        edit=value.mapped.replace(start, end, new),
        node=value.word.node,
        at=_index(place, value),
        replaces=1,
        words=(text,),
    )


def _index(place: Place, value: Value) -> int:
    return next(i for i, word in enumerate(place.words) if word is value.word)


def _several(place: Place, value: Value, parts: list[kv_json.Part]) -> list[Spoken]:
    """Changes at several points of one value: each edit is told the whole word that comes out."""
    text = value.text
    for start, end, new in sorted(parts, reverse=True):
        text = text[:start] + new + text[end:]
    prefix = value.word.text[: len(value.word.text) - len(value.text)]
    return [
        Spoken(
            edit=value.mapped.replace(start, end, new),
            node=value.word.node,
            at=_index(place, value),
            replaces=1,
            words=(prefix + text,),
        )
        for start, end, new in parts
    ]


def _append(source: str, place: Place, arguments: tuple[str, ...], programs: tuple[str, ...]) -> list[Spoken]:
    """Arguments more: at the end of the list, or in a shell script behind the word that names the engine."""
    for at, word in enumerate(place.words):
        if word.script is not None and word.text.rsplit("/", 1)[-1] in programs:
            said = " ".join(a if re.fullmatch(r"[\w./+-]+", a) else f"'{a}'" for a in arguments)
            edit = word.script.replace(word.ends, word.ends, f" {said}")
            return [Spoken(edit=edit, node=word.node, at=at + 1, replaces=0, words=arguments)]
    if place.arguments is None or any(word.script is not None for word in place.words):
        raise CannotPatch(
            f"{place.name}: {' '.join(arguments)} must be added, and no list of arguments is here; give the container "
            "`args`, or add it where the command line is written"
        )
    edit = list_end(source, place.arguments, [quoted(a, flow=bool(place.arguments.flow_style)) for a in arguments])
    node = place.arguments.value[-1] if place.arguments.value else place.arguments
    return [Spoken(edit=edit, node=node, at=len(place.words), replaces=0, words=arguments)]
