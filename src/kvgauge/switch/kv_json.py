"""Changes inside a JSON text that leave its other characters as they are. Pure."""

import json
from collections.abc import Iterator
from typing import Any

from kvgauge.switch.spans import CannotPatch

_DECODER = json.JSONDecoder()
NIXL_CONNECTORS = ("NixlConnector", "NixlPullConnector", "NixlPushConnector")

Part = tuple[int, int, str]  # characters [start, end) of the JSON text, and what they become


def parse(text: str, flag: str) -> dict[str, Any]:
    """raises CannotPatch"""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CannotPatch(f"{flag} does not hold JSON ({error}); write it as one JSON object") from None
    if not isinstance(value, dict):
        raise CannotPatch(f"{flag} holds JSON that is no object")
    return value


def members(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Name and span of each value of the object that begins at `start`. The text is valid JSON."""
    at = _blank(text, start + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        at = _blank(text, _blank(text, at) + 1)
        _, end = _DECODER.raw_decode(text, at)
        yield name, at, end
        at = _blank(text, end)
        if text[at] == ",":
            at = _blank(text, at + 1)


def elements(text: str, start: int) -> Iterator[tuple[int, int]]:
    at = _blank(text, start + 1)
    while text[at] != "]":
        _, end = _DECODER.raw_decode(text, at)
        yield at, end
        at = _blank(text, end)
        if text[at] == ",":
            at = _blank(text, at + 1)


def _blank(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at


def nixl_backends(config: dict[str, Any]) -> list[list[str]]:
    """The backends of each NIXL connector in a --kv-transfer-config; ["UCX"] where none are named."""
    extra = config.get("kv_connector_extra_config")
    extra = extra if isinstance(extra, dict) else {}
    if config.get("kv_connector") in NIXL_CONNECTORS:
        return [[str(b) for b in extra.get("backends") or ["UCX"]]]
    connectors = extra.get("connectors")
    inner = [c for c in connectors if isinstance(c, dict)] if isinstance(connectors, list) else []
    return [backends for connector in inner for backends in nixl_backends(connector)]


def with_backend(text: str, backend: str, *, start: int | None = None) -> list[Part]:
    """What makes every NIXL connector of this --kv-transfer-config use `backend`. Nothing where it does.

    raises CannotPatch  where another connector moves the KV
    """
    outer = start is None
    start = _blank(text, 0) if start is None else start
    config, _ = _DECODER.raw_decode(text, start)
    spans = {name: (at, end) for name, at, end in members(text, start)}
    if config.get("kv_connector") in NIXL_CONNECTORS:
        return _named(text, config, spans, start, backend)
    parts: list[Part] = []
    found = False
    if "kv_connector_extra_config" in spans and isinstance(config["kv_connector_extra_config"], dict):
        extra_at = spans["kv_connector_extra_config"][0]
        for name, at, _end in members(text, extra_at):
            if name == "connectors" and text[at] == "[":
                for element_at, _ in elements(text, at):
                    inner, _ = _DECODER.raw_decode(text, element_at)
                    if isinstance(inner, dict) and nixl_backends(inner):
                        found = True
                        parts += with_backend(text, backend, start=element_at)
    if outer and not found:
        raise CannotPatch(
            f"KV is moved by {config.get('kv_connector')!r}, not by a NIXL connector, so no NIXL backend can be "
            f"chosen; kv_connector must be one of {', '.join(NIXL_CONNECTORS)}"
        )
    return parts


def _named(
    text: str, config: dict[str, Any], spans: dict[str, tuple[int, int]], start: int, backend: str
) -> list[Part]:
    if nixl_backends(config) == [[backend]]:
        return []
    wanted = json.dumps([backend])
    if "kv_connector_extra_config" not in spans:
        return [_added(text, start, "kv_connector_extra_config", f'{{"backends":{wanted}}}')]
    extra_at, extra_end = spans["kv_connector_extra_config"]
    if not isinstance(config["kv_connector_extra_config"], dict):
        return [(extra_at, extra_end, f'{{"backends":{wanted}}}')]
    for name, at, end in members(text, extra_at):
        if name == "backends":
            return [(at, end, wanted)]
    return [_added(text, extra_at, "backends", wanted)]


def _added(text: str, start: int, name: str, value: str) -> Part:
    """A member more, after the last one of the object at `start`."""
    ends = [end for _, _, end in members(text, start)]
    at = ends[-1] if ends else start + 1
    colon = ": " if '": ' in text else ":"
    comma = ("," + (" " if ", " in text else "")) if ends else ""
    return at, at, f'{comma}"{name}"{colon}{value}'


def transceiver_backend(text: str) -> tuple[str | None, tuple[int, int] | None]:
    """cache_transceiver_config.backend of TensorRT-LLM's engine arguments, and where its value stands."""
    for name, at, _ in members(text, _blank(text, 0)):
        if name == "cache_transceiver_config" and text[at] == "{":
            for inner, inner_at, inner_end in members(text, at):
                if inner == "backend":
                    return str(json.loads(text[inner_at:inner_end])), (inner_at, inner_end)
    return None, None
