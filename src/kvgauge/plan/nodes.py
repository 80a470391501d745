"""YAML text to values that know their line. No file, no clock, and no Python object ever built from a tag.

A plan is written by hand, so whatever is wrong with it must end in one PlanError that names the line:
text, depth and number of nodes are bounded, and anchors, aliases and tags are refused.
"""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NoReturn

import msgspec
import yaml

from kvgauge.failures import PlanError

TEXT_BYTES_MAX = 1 << 20
DEPTH_MAX = 10
NODES_MAX = 20_000
PATH_CHARACTERS_MAX = 1000

_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,11}")
_SECONDS = re.compile(r"(0|[1-9][0-9]{0,5})(\.[0-9]{1,9})?")
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,12})?")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SHOWN_CHARACTERS_MAX = 60
_LISTED_WORDS_MAX = 40


def nearest(word: str, valid: Collection[str]) -> str:
    """The end of a message about an unknown word: the nearest valid one, or all of them when none is near."""
    lowered = {candidate.lower(): candidate for candidate in valid}
    close = difflib.get_close_matches(word[:_SHOWN_CHARACTERS_MAX].lower(), lowered, n=1, cutoff=0.5)
    if close:
        return f"did you mean {lowered[close[0]]!r}?"
    listed = sorted(valid)
    more = ", ..." if len(listed) > _LISTED_WORDS_MAX else ""
    return f"valid: {', '.join(listed[:_LISTED_WORDS_MAX])}{more}" if listed else "none is known"


def shown(text: str) -> str:
    """Text as a message quotes it: one line, bounded."""
    cut = text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."
    return ascii(cut) if not cut.isprintable() else repr(cut)


class _PlanLoader(yaml.SafeLoader):
    """Composes nodes only, and stops at what a plan has no use for."""

    def __init__(self, text: str, source: str) -> None:
        self._source, self._depth, self._nodes = source, 0, 0
        super().__init__(text)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes += 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            self._refuse(event, "anchors and aliases (& and *) are not allowed: write the value out, or use `defaults`")
        # A scalar has two such flags: as a plain and as a quoted one.
        if not (any(event.implicit) if isinstance(event, yaml.ScalarEvent) else event.implicit):
            self._refuse(event, f"tags are not allowed: remove {shown(str(event.tag))}")
        if self._depth >= DEPTH_MAX:
            self._refuse(event, f"nested more than {DEPTH_MAX} deep: a plan needs five")
        if self._nodes > NODES_MAX:
            self._refuse(event, f"more than {NODES_MAX} values: split the plan")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _refuse(self, event: Any, message: str) -> NoReturn:
        raise PlanError(message, source=self._source, line=event.start_mark.line + 1)


def _compose(text: str, source: str) -> yaml.Node | None:
    """The root node of the only document, None for an empty text. PlanError for whatever is not YAML."""
    loader: _PlanLoader | None = None
    try:
        loader = _PlanLoader(text, source)
        node: yaml.Node | None = loader.get_single_node()
    except PlanError:
        raise
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PlanError(f"a character YAML does not allow: {error.character!r}", source=source, line=line) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise PlanError(f"not YAML: {reason}", source=source, line=mark.line + 1 if mark else None) from None
    except Exception as error:  # PyYAML lets ValueError, IndexError and others of its own escape on broken escapes
        line = loader.get_mark().line + 1 if loader is not None else 1
        raise PlanError(f"not YAML: {shown(str(error))}", source=source, line=line) from None
    return node


def parse(text: str | bytes, source: str) -> "Value":
    """The plan's root as a Value.

    text    YAML, UTF-8 when bytes
    source  what messages call it
    raises  PlanError: too long, not UTF-8, not YAML, empty, anchors, tags, nested too deep
    """
    if len(text) > TEXT_BYTES_MAX:
        raise PlanError(f"longer than {TEXT_BYTES_MAX} bytes: this is not a plan", source=source)
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise PlanError(f"not UTF-8 at byte {error.start}: save it as UTF-8", source=source, line=line) from None
    node = _compose(text, source)
    if node is None:
        raise PlanError("the plan is empty: it needs name, primary, tests and cells", source=source, line=1)
    return Value(source=source, label="the plan", node=node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One place in a plan: what stands there, and which line an error about it names.

    label   the key it stands under, as messages call it
    """

    source: str
    label: str
    node: yaml.Node

    @property
    def line(self) -> int:
        """1-based line where the value starts."""
        return int(self.node.start_mark.line) + 1

    @property
    def is_null(self) -> bool:
        return bool(self.node.tag == "tag:yaml.org,2002:null")

    @property
    def is_list(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    def error(self, message: str) -> PlanError:
        """A PlanError that names this line, for the caller to raise."""
        return PlanError(f"{self.label}: {message}", source=self.source, line=self.line)

    def scalar(self, wanted: str) -> str:
        """The raw text of a scalar; PlanError that says what was wanted for null, a list or a mapping."""
        if not isinstance(self.node, yaml.ScalarNode) or self.is_null:
            raise self.error(f"expected {wanted}, got {self._kind()}")
        return str(self.node.value)

    def text(self, *, characters_max: int) -> str:
        """Free text as it is written, 1..characters_max characters, and valid Unicode."""
        text = self.scalar("text")
        if not text or len(text) > characters_max:
            raise self.error(f"expected 1 to {characters_max} characters, got {len(text)}")
        if any("\ud800" <= character <= "\udfff" or character == "\0" for character in text):
            raise self.error(f"holds a character that cannot be sent: {shown(text)}")
        return text

    def line_of_text(self, *, characters_max: int) -> str:
        """Text that will stand in tables and paths: printable, one line, no blanks at its ends."""
        text = self.text(characters_max=characters_max)
        if not text.isprintable() or text != text.strip():
            raise self.error(f"must be printable, on one line, without blanks at its ends: {shown(text)}")
        return text

    def path(self) -> str:
        """A path as it is written; one that is relative starts at the plan's folder."""
        written = self.line_of_text(characters_max=PATH_CHARACTERS_MAX)
        return written if written.startswith("~") else str(PurePath(self.source).parent / written)

    def integer(self, low: int, high: int) -> int:
        """A decimal whole number, low <= number <= high."""
        wanted = f"a whole number from {low} to {high}"
        text = self.scalar(wanted)
        quoted = isinstance(self.node, yaml.ScalarNode) and self.node.style in {"'", '"'}
        if quoted or not _WHOLE_NUMBER.fullmatch(text) or not low <= int(text) <= high:
            raise self.error(f"expected {wanted}, got {shown(text)}")
        return int(text)

    def seconds(self, high: int) -> float:
        """A plain decimal number of seconds, 0 <= number <= high."""
        wanted = f"a number of seconds from 0 to {high}"
        text = self.scalar(wanted)
        quoted = isinstance(self.node, yaml.ScalarNode) and self.node.style in {"'", '"'}
        if quoted or not _SECONDS.fullmatch(text) or float(text) > high:
            raise self.error(f"expected {wanted}, got {shown(text)}")
        return float(text)

    def number(self, low: float, high: float, *, percent: bool = False) -> float:
        """A decimal number, low <= number <= high, written without exponent. percent: 2% is 0.02."""
        wanted = f"from {low * 100:g}% to {high * 100:g}%" if percent else f"a number from {low:g} to {high:g}"
        text = self.scalar(wanted)
        quoted = isinstance(self.node, yaml.ScalarNode) and self.node.style in {"'", '"'}
        digits = text.removesuffix("%").rstrip() if percent else text
        if quoted or not _NUMBER.fullmatch(digits) or (percent and not text.endswith("%")):
            raise self.error(f"expected {wanted}, got {shown(text)}")
        number = float(digits) / 100 if percent else float(digits)
        if not low <= number <= high:
            raise self.error(f"expected {wanted}, got {shown(text)}")
        return number

    def flag(self) -> bool:
        """True or false."""
        text = self.scalar("true or false")
        if text.lower() not in _BOOLEANS:
            raise self.error(f"expected true or false, got {shown(text)}")
        return _BOOLEANS[text.lower()]

    def word(self, valid: Collection[str], what: str) -> str:
        """One of `valid`; the error names the nearest. what: "backend", "model", ..."""
        text = self.scalar(f"a {what}")
        if text not in valid:
            raise self.error(f"unknown {what} {shown(text)}; {nearest(text, valid)}")
        return text

    def json(self) -> Any:
        """What stands here as JSON has it: mappings, lists, text, numbers, true, false and null.

        raises  PlanError for a key that is repeated, and for a scalar that YAML takes for something JSON has not
        """
        if self.is_list:
            return [Value(source=self.source, label=self.label, node=node).json() for node in self.node.value]
        if isinstance(self.node, yaml.MappingNode):
            keys = [
                Value(source=self.source, label=self.label, node=node).scalar("a key") for node, _ in self.node.value
            ]
            return {key: value.json() for key, value in self.fields(keys).items()}
        kind, text = self.node.tag.removeprefix("tag:yaml.org,2002:"), str(self.node.value)
        if kind == "null":
            return None
        if kind == "bool":
            return self.flag()
        if kind in ("int", "float"):
            try:
                number = msgspec.json.decode(text)
            except msgspec.DecodeError:
                raise self.error(f"write numbers as JSON does, or quote text: {shown(text)}") from None
            return number
        if kind != "str" or any("\ud800" <= character <= "\udfff" for character in text):
            raise self.error(f"not what JSON has; quote it: {shown(text)}")
        return text

    def items(self, count_max: int) -> list["Value"]:
        """The values of a list, which may be empty."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error(f"expected a list, got {self._kind()}")
        if len(self.node.value) > count_max:
            raise self.error(f"expected at most {count_max}, got {len(self.node.value)}")
        return [Value(source=self.source, label=self.label, node=node) for node in self.node.value]

    def fields(self, valid: Collection[str]) -> dict[str, "Value"]:
        """The values of a mapping by key; PlanError for a key that is unknown, repeated or not a word."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f"expected a mapping, got {self._kind()}")
        found: dict[str, Value] = {}
        for key_node, value_node in self.node.value:
            key_at = Value(source=self.source, label=self.label, node=key_node)
            key = key_at.scalar("a word as key")
            if key in found:
                raise key_at.error(f"{shown(key)} is given twice; remove one")
            if key not in valid:
                raise key_at.error(f"unknown key {shown(key)}; {nearest(key, valid)}")
            found[key] = Value(source=self.source, label=key, node=value_node)
        return found

    def missing(self, key: str, what: str) -> PlanError:
        """A PlanError about a key this mapping lacks."""
        return PlanError(f"{what} has no `{key}`: add it", source=self.source, line=self.line)

    def _kind(self) -> str:
        if self.is_list:
            return "a list"
        if self.is_mapping:
            return "a mapping"
        return "nothing" if self.is_null else shown(str(self.node.value))
