"""Prometheus text (version 0.0.4) and OpenMetrics text to series. Pure, bounded, and never an error: what cannot be
read is counted.

Not read: names in quotes (`{"a.b", ...} 1`, Prometheus 3), native histograms, protobuf. Time stamps and exemplars are
skipped.
"""

import re
from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

TEXT_BYTES_MAX = 16 << 20
LINE_CHARACTERS_MAX = 16_384
SERIES_MAX = 20_000
LABELS_MAX = 64

SeriesKind = Literal["counter", "gauge", "histogram", "summary", "unknown"]
_KINDS = frozenset(get_args(SeriesKind))
_SUFFIXES = {  # what a family's type may add to its name
    "counter": ("_total", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "summary": ("_sum", "_count", "_created"),
}

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*')
_NUMBER = r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|(?:[iI][nN][fF](?:[iI][nN][iI][tT][yY])?|[nN][aA][nN]))"
_REST = re.compile(
    rf"[ \t]*({_NUMBER})(?:[ \t]+{_NUMBER})?[ \t]*(?:#[ \t]*\{{.*\}}[ \t]*{_NUMBER}(?:[ \t]+{_NUMBER})?[ \t]*)?",
    re.ASCII,
)
_VALUE = re.compile(_NUMBER, re.ASCII)
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "\\": "\\", '"': '"'}

Key = tuple[str, str]  # name, labels as `labels_text` writes them


class Exposition(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer of a /metrics held.

    values    (name, labels) -> value; the last one where a series came twice
    kinds     name of a series -> kind of its family, "unknown" where no # TYPE names it
    garbage   lines that are neither series nor comment, and series that came twice
    first     the beginning of the first such line
    cut       why the rest was not read; None when all was
    ended     `# EOF` was there, as OpenMetrics asks for
    """

    values: dict[Key, float]
    kinds: dict[str, SeriesKind]
    garbage: int
    first: str | None
    cut: str | None
    ended: bool


def parse(
    data: bytes,
    *,
    text_bytes_max: int = TEXT_BYTES_MAX,
    series_max: int = SERIES_MAX,
    heads: dict[str, Key] | None = None,
) -> Exposition:
    """Read one answer. Never raises; `cut` says when a limit ended it.

    heads  what this or another call learned of the beginnings of lines; the next answer of the same server is then
           read four times as fast. It changes nothing else, and never holds more than `series_max`
    """
    heads = {} if heads is None or len(heads) > series_max else heads
    cut = None
    if len(data) > text_bytes_max:
        cut = f"only the first {text_bytes_max:,} of {len(data):,} bytes were read"
        data = data[: data.rfind(b"\n", 0, text_bytes_max) + 1]
    values: dict[Key, float] = {}
    types: dict[str, SeriesKind] = {}
    strange: list[str] = []
    garbage, ended = 0, False
    for line in _lines(data):
        if ended or len(line) > LINE_CHARACTERS_MAX:
            read = None
        elif line.startswith("#"):
            ended = line == "# EOF"
            _take_type(line, types)
            continue
        else:
            read = _series(line, heads)
        if read is None or read[0] in values:
            garbage += 1
            strange += [line[:120]] if not strange else []
        if read is not None:
            if len(values) >= series_max and read[0] not in values:
                cut = cut or f"only the first {series_max:,} series were read"
                break
            values[read[0]] = read[1]
    kinds = {name: _kind(name, types) for name in {name for name, _ in values}}
    return Exposition(
        values=values, kinds=kinds, garbage=garbage, first=strange[0] if strange else None, cut=cut, ended=ended
    )


def labels_text(labels: Iterable[tuple[str, str]]) -> str:
    """Labels in one canonical form: sorted, escaped, `a="1",b="2"`; empty when there are none."""
    return ",".join(f'{name}="{_quoted(value)}"' for name, value in sorted(labels))


def labels_of(text: str) -> dict[str, str]:
    """The labels that `labels_text` wrote; nothing of what it did not write."""
    found, at = {}, 0
    while match := _LABEL.match(text, at):
        found[match[1]] = _unquoted(match[2])
        at = match.end() + 1
    return found


def _lines(data: bytes) -> Iterable[str]:
    for line in data.decode("utf-8", "replace").split("\n"):
        stripped = line.strip(" \t\r")
        if stripped:
            yield stripped


def _take_type(line: str, types: dict[str, SeriesKind]) -> None:
    words = line.split(None, 3)
    if len(words) == 4 and words[0] == "#" and words[1] == "TYPE" and len(types) < SERIES_MAX:
        kind = words[3].strip().lower()
        types[words[2]] = kind if kind in _KINDS else "unknown"  # type: ignore[assignment]


def _kind(name: str, types: dict[str, SeriesKind]) -> SeriesKind:
    if name in types:
        return types[name]
    for suffix in ("_total", "_bucket", "_sum", "_count", "_created"):
        family = name.removesuffix(suffix)
        kind = types.get(family)
        if family != name and kind is not None and suffix in _SUFFIXES.get(kind, ()):
            return "gauge" if suffix == "_created" else kind
    return "unknown"


def _series(line: str, heads: dict[str, Key]) -> tuple[Key, float] | None:
    """One line as a series and its value; None when it is none."""
    head, _, last = line.rpartition(" ")
    key = heads.get(head)
    if key is not None and _VALUE.fullmatch(last):
        return key, float(last)
    named = _NAME.match(line)
    if named is None:
        return None
    at, labels = named.end(), ""
    while at < len(line) and line[at] in " \t":
        at += 1
    if line.startswith("{", at):
        read = _labels(line, at + 1)
        if read is None:
            return None
        labels, at = read
    elif at == named.end():
        return None  # no space between name and value
    rest = _REST.fullmatch(line, at)
    if rest is None:
        return None
    key = (named[0], labels)
    if rest[0].strip(" \t") == last:  # a value and nothing behind it
        heads[head] = key
    return key, float(rest[1])


def _labels(line: str, at: int) -> tuple[str, int] | None:
    """Labels from behind the brace: their canonical text and where they end. None when they are not labels."""
    found: dict[str, str] = {}
    while True:
        match = _LABEL.match(line, at)
        if match is None:
            break
        if match[1] in found or len(found) == LABELS_MAX:
            return None
        found[match[1]] = _unquoted(match[2])
        at = match.end()
        if not line.startswith(",", at):
            break
        at += 1
    while at < len(line) and line[at] in " \t":
        at += 1
    return (labels_text(found.items()), at + 1) if line.startswith("}", at) else None


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _unquoted(value: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[0]), value) if "\\" in value else value
