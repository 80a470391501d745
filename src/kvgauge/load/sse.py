"""Server-sent events out of bytes, incrementally, with the offset at which each event was whole. No I/O, no clock.

Follows the event stream format of the HTML standard, section 9.2, for lines that end in LF or CRLF (a lone CR is
not a line end here: no inference server sends one). `id` and `retry` fields are dropped with the comments.
"""

from typing import NamedTuple

EVENT_BYTES_MAX = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event that carried data.

    data  its data lines, joined by LF
    name  the `event:` field, empty when there was none
    end   bytes of the body, from its first, up to and including the blank line that ended this event
    """

    data: bytes
    name: bytes
    end: int


class EventSplitter:
    """Cuts a body into events; the result does not depend on where the network cut the body.

    Holds at most `event_bytes_max` bytes of one event, plus what the last `feed` brought. A larger event sets
    `overlong`; from then on nothing more is read.
    """

    __slots__ = ("_consumed", "_data", "_held", "_limit", "_name", "_pending", "_scanned", "overlong")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._limit = event_bytes_max
        self._pending = bytearray()  # the line that is not whole yet
        self._scanned = 0  # bytes of it known to hold no LF
        self._consumed = 0  # bytes of the body before it
        self._data: list[bytes] = []
        self._held = 0  # bytes in _data
        self._name = b""
        self.overlong = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that became whole with these bytes."""
        events: list[Event] = []
        if self.overlong:
            return events
        self._pending += data
        buffer, start = self._pending, 0
        while (stop := buffer.find(b"\n", max(start, self._scanned))) >= 0:
            if self._is_simple(start, stop):  # the form nearly all servers send, in one step
                events.append(Event(bytes(buffer[start + 6 : stop]), b"", self._consumed + stop + 2))
                start = stop + 2
                continue
            line = bytes(buffer[start : stop - 1] if stop > start and buffer[stop - 1] == 13 else buffer[start:stop])
            begins, start = self._consumed + start, stop + 1
            if line:
                self._take(line, first=begins == 0)
                if self.overlong:
                    break
            elif self._data:
                events.append(Event(b"\n".join(self._data), self._name, self._consumed + start))
                self._data, self._held, self._name = [], 0, b""
            else:
                self._name = b""
        del buffer[:start]
        self._consumed += start
        self._scanned = len(buffer)
        if self._held + len(buffer) > self._limit + 2:  # 2: a CR and what may be a line end are not of the event
            self.overlong = True
        if self.overlong:
            buffer.clear()
        return events

    def close(self) -> Event | None:
        """What an end of the stream leaves unfinished: an event without its blank line, or None."""
        if self._pending and not self.overlong:
            self._take(bytes(self._pending).rstrip(b"\r"), first=self._consumed == 0)
        end = self._consumed + len(self._pending)
        left = None if self.overlong or not self._data else Event(b"\n".join(self._data), self._name, end)
        self._pending.clear()
        self._data, self._held, self._name = [], 0, b""
        return left

    def _is_simple(self, start: int, stop: int) -> bool:
        """Whether buffer[start:stop] is one `data: ` line that is an event by itself, its blank line included."""
        buffer = self._pending
        return (
            buffer.startswith(b"data: ", start)
            and buffer.startswith(b"\n", stop + 1)
            and buffer[stop - 1] != 13
            and not self._data
            and not self._name
            and stop - start <= self._limit
        )

    def _take(self, line: bytes, *, first: bool) -> None:
        if self._held + len(line) > self._limit:
            self.overlong = True
            return
        if first and line.startswith(BYTE_ORDER_MARK):
            line = line[len(BYTE_ORDER_MARK) :]
        if line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
        elif line.startswith(b"event:"):
            self._name = line[6:].lstrip(b" ")
            return
        elif line == b"data":
            value = b""
        else:
            return
        self._data.append(value)
        self._held += len(value) + 1
