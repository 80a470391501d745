"""Runs of events that differ in their text only, found by comparing bytes. Pure.

Servers send hundreds of chunks that are the same but for one string. Once one of them has been read as JSON, the bytes
before and after its text are known, and what has the same bytes around another plain string is the same chunk with
another text: that needs no second look. Whatever does not fit is read as JSON again.
"""

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

WINDOW_BYTES = 1 << 16
POOR_EVENTS, POOR_RUNS_MAX = 8, 8  # an answer whose runs stay shorter than this is read event by event
PROBE = b"another text"

_CHARS = rb'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}))+'
_TEXT = re.compile(rb'"(?:text|content|reasoning_content|reasoning)"\s*:\s*"(' + _CHARS + rb')"')
_STRING = re.compile(_CHARS)

Ints = npt.NDArray[np.int64]
LF, SPACE, QUOTE, BACKSLASH = b'\n "\\'


class Alike:
    """What the events of one answer have in common."""

    __slots__ = ("_after", "_around", "_before", "_poor")

    def __init__(self) -> None:
        self._before = self._after = b""
        self._around = [0, 0, 0]
        self._poor = 0

    def learn(self, data: bytes, content_of: Callable[[bytes], str | None]) -> bool:
        """Take the data of an event as the example. False: it cannot be one.

        content_of  the text of a chunk that holds content and nothing else, else None
        """
        if self._poor >= POOR_RUNS_MAX or b"\n" in data or b"\r" in data:  # data of several lines: not as it was sent
            return False
        for match in _TEXT.finditer(data):
            before, after = data[: match.start(1)], data[match.end(1) :]
            if content_of(before + PROBE + after) == PROBE.decode():
                self._before, self._after = b"data: " + before, after
                self._around = _specials(self._before + after + b"\n\n")
                return True
        return False

    def run(self, body: bytes, start: int) -> Ints:
        """Where the events end that are like the example, from `start` on up to the first that is not (or a bound)."""
        window = body[start : start + WINDOW_BYTES]
        newlines = np.flatnonzero(np.frombuffer(window, dtype=np.uint8) == LF)
        stops = newlines[: len(newlines) & ~1 : 2]  # of each line, should all be one line and a blank one
        starts = np.concatenate(([0], stops[:-1] + 2))
        count = _leading(stops + 1 == newlines[1::2])
        count = min(count, _leading(stops - starts > len(self._before) + len(self._after)))
        count = min(count, _count_equal(window, starts[:count], self._before))
        count = min(count, _count_equal(window, stops[:count] - len(self._after), self._after))
        if count and not self._all_plain(window[: stops[count - 1] + 2], count):
            froms, tos = (starts + len(self._before)).tolist(), (stops - len(self._after)).tolist()
            count = _count_strings(window, froms[:count], tos[:count])
        if count < POOR_EVENTS:
            self._poor += 1
        return start + 2 + stops[:count]

    def _all_plain(self, window: bytes, count: int) -> bool:
        """Whether the texts of these events hold nothing special. What is outside them is known to be `count` times
        the example."""
        return window.isascii() and _specials(window) == [count * times for times in self._around]


def _specials(data: bytes) -> list[int]:
    """How many bytes there are of each kind that ends a plain string or is none of it."""
    found = np.frombuffer(data, dtype=np.uint8)
    return [int(np.count_nonzero(special)) for special in (found == QUOTE, found == BACKSLASH, found < SPACE)]


def _leading(holds: npt.NDArray[np.bool_]) -> int:
    """How many hold, from the first on."""
    return len(holds) if holds.all() else int(holds.argmin())


def _count_equal(window: bytes, starts: Ints, wanted: bytes) -> int:
    """At how many of these places `wanted` stands, from the first on; all of it lies within the window."""
    if not len(starts):
        return 0
    length = len(wanted)
    pieces = np.ndarray((len(window) - length + 1,), dtype=f"V{length}", buffer=window, strides=(1,))
    there = pieces[starts].tobytes()
    alike = wanted * len(starts)
    if there == alike:
        return len(starts)
    return _leading(np.frombuffer(there, dtype=np.uint8) == np.frombuffer(alike, dtype=np.uint8)) // length


def _count_strings(window: bytes, froms: list[int], tos: list[int]) -> int:
    """How many of these are the inside of a JSON string that holds something, from the first on."""
    for count, (begin, end) in enumerate(zip(froms, tos, strict=True)):
        text = window[begin:end]
        if not _STRING.fullmatch(text):
            return count
        try:
            text.decode()
        except UnicodeDecodeError:
            return count
    return len(froms)
