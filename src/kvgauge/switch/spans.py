"""Text inside text: which characters of a file a decoded value came from, so that a part of it can be replaced.

A manifest nests up to three languages: YAML's scalar, a shell script in it, JSON in a word of that. `Mapped` keeps, for
each decoded character, where it stands in the file; `quote` writes new characters in the style that is there.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import yaml

from kvgauge.failures import UsageError


class CannotPatch(UsageError):
    """The file holds something that cannot be changed safely; the message says what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Replace characters [start, end) of the file by `new`."""

    start: int
    end: int
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """A decoded text; spans[i] is where text[i] stands in the file; `quotes[i]` writes characters put there."""

    text: str
    spans: tuple[tuple[int, int], ...]
    quotes: tuple[Callable[[str], str], ...]

    def part(self, start: int, end: int) -> "Mapped":
        return Mapped(text=self.text[start:end], spans=self.spans[start:end], quotes=self.quotes[start:end])

    def replace(self, start: int, end: int, new: str) -> Edit:
        """An edit of the file for text[start:end] -> new. The text is not empty."""
        if start == end:
            at = self.spans[start - 1][1] if start else self.spans[0][0]
            return Edit(start=at, end=at, new=self.quotes[max(start - 1, 0)](new))
        return Edit(start=self.spans[start][0], end=self.spans[end - 1][1], new=self.quotes[start](new))


def _same(text: str) -> str:
    return text


def _single(text: str) -> str:
    return text.replace("'", "''")


def _double(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def scalar(source: str, node: yaml.ScalarNode) -> Mapped:
    """A YAML scalar of any style.

    raises CannotPatch  where its characters cannot be found again (rare escapes)
    """
    raw_start, raw_end = node.start_mark.index, node.end_mark.index
    raw, value = source[raw_start:raw_end], str(node.value)
    if node.style in ("|", ">"):
        at, quote = raw.index("\n") + 1 if "\n" in raw else len(raw), _same
    elif node.style == "'":
        at, quote = 1, _single
    elif node.style == '"':
        at, quote = 1, _double
    else:
        at, quote = 0, _same
    spans: list[tuple[int, int]] = []
    indent = _indent(raw[at:]) if node.style in ("|", ">") else 0
    fresh_line = node.style in ("|", ">")
    for character in value:
        if fresh_line:  # the indentation of a block scalar is no content; an empty line may be shorter
            spaces = len(raw[at : at + indent]) - len(raw[at : at + indent].lstrip(" "))
            at += spaces
            fresh_line = False
        length = _eaten(raw, at, character, node.style)
        if length is None:
            line = node.start_mark.line + 1
            raise CannotPatch(f"line {line}: this value's quoting cannot be followed; write it as one plain string")
        spans.append((raw_start + at, raw_start + at + length))
        at += length
        fresh_line = node.style in ("|", ">") and raw[at - 1 : at] == "\n"
    return Mapped(text=value, spans=tuple(spans), quotes=(quote,) * len(value))


def _indent(body: str) -> int:
    for line in body.split("\n"):
        if line.strip():
            return len(line) - len(line.lstrip(" "))
    return 0


def _eaten(raw: str, at: int, character: str, style: str | None) -> int | None:
    """How many raw characters at `at` make this decoded one; None if they do not."""
    if style == "'" and character == "'" and raw.startswith("''", at):
        return 2
    if style == '"' and raw.startswith("\\", at):
        return _escape(raw, at, character)
    if raw.startswith("\r\n", at) and character == "\n":
        return 2
    if raw[at : at + 1] == character and not (style != "|" and character == " " and _folds(raw, at)):
        return 1
    if style != "|" and character in " \n" and raw[at : at + 1] in (" ", "\t", "\n", "\r"):
        end = at  # a fold: the line's end and the next line's indentation are one space or the line breaks kept
        while raw[end : end + 1] in (" ", "\t", "\n", "\r") and end < len(raw):
            end += 1
        breaks = raw.count("\n", at, end)
        return end - at if breaks == 1 and character == " " else None
    return None


def _folds(raw: str, at: int) -> bool:
    """Is this space one of those before a line's end? They vanish in the fold."""
    rest = raw[at:]
    tail = rest.lstrip(" \t")
    return tail.startswith(("\n", "\r\n"))


def _escape(raw: str, at: int, character: str) -> int | None:
    longest = {"x": 4, "u": 6, "U": 10}.get(raw[at + 1 : at + 2], 2)
    try:
        decoded = yaml.safe_load(f'"{raw[at : at + longest]}"')
    except yaml.YAMLError:
        return None
    return longest if decoded == character else None


SEPARATORS = ";&|()<>\n"


def shell_words(script: Mapped) -> list[tuple[Mapped, int]]:
    """The words of a shell script, and where each ends in it. Nothing is expanded; operators only part words.

    raises CannotPatch  for a quote that never ends
    """
    words: list[tuple[Mapped, int]] = []
    text, at = script.text, 0
    picked: list[int] = []
    quotes: list[Callable[[str], str]] = []
    open_word, inside = False, ""

    def close(end: int) -> None:
        nonlocal open_word
        if open_word and picked:
            word = Mapped(
                text="".join(text[i] for i in picked),
                spans=tuple(script.spans[i] for i in picked),
                quotes=tuple(quotes),
            )
            words.append((word, end))
        open_word = False
        picked.clear()
        quotes.clear()

    while at < len(text):
        character = text[at]
        outer = script.quotes[at]
        if inside == "'":
            if character == "'":
                inside = ""
            else:
                picked.append(at)
                quotes.append(_then(_in_single, outer))
        elif inside == '"':
            if character == '"':
                inside = ""
            else:
                if character == "\\" and text[at + 1 : at + 2] in ('"', "\\", "$", "`"):
                    at += 1
                picked.append(at)
                quotes.append(_then(_in_double, outer))
        elif character in "'\"":
            inside, open_word = character, True
        elif character == "\\":
            at += 1
            if text[at : at + 1] not in ("\n", ""):
                picked.append(at)
                quotes.append(_then(_bare, outer))
                open_word = True
        elif character in " \t\r" or character in SEPARATORS:
            close(at)
        elif character == "#" and not open_word:
            while text[at : at + 1] not in ("\n", ""):
                at += 1
            continue
        else:
            picked.append(at)
            quotes.append(_then(_bare, outer))
            open_word = True
        at += 1
    if inside:
        raise CannotPatch(f"the shell script has a {inside} that never ends; mend it first")
    close(len(text))
    return _with_escapes(script, words)


def _with_escapes(script: Mapped, words: list[tuple[Mapped, int]]) -> list[tuple[Mapped, int]]:
    """Let a character that was escaped own its backslash, so that replacing it takes the backslash along."""
    starts = {span[0]: index for index, span in enumerate(script.spans)}
    mended = []
    for word, end in words:
        spans = list(word.spans)
        for i, (start, stop) in enumerate(spans):
            index = starts[start]
            before = script.text[index - 1 : index] if index else ""
            taken = spans[i - 1][1] if i else -1
            if before == "\\" and script.spans[index - 1][0] >= taken:
                spans[i] = (script.spans[index - 1][0], stop)
        mended.append((Mapped(text=word.text, spans=tuple(spans), quotes=word.quotes), end))
    return mended


def _then(inner: Callable[[str], str], outer: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: outer(inner(text))


def _in_single(text: str) -> str:
    return text.replace("'", "'\\''")


def _in_double(text: str) -> str:
    return "".join(f"\\{c}" if c in '"\\$`' else c for c in text)


def _bare(text: str) -> str:
    return "".join(c if c.isalnum() or c in "_-./,:=+@%" else f"\\{c}" for c in text)
