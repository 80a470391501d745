"""What a user adds to the head of every request, and keys that reach no file, log or message. Pure.

A key's value comes from an environment variable and is known to this module only: a Headers shows its names, never its
values, and takes the values out of whatever a server says back.
"""

import re
from collections.abc import Mapping, Sequence

from kvgauge.failures import UsageError

HEADERS_MAX = 50
VALUE_CHARACTERS_MAX = 8192
SECRET_CHARACTERS_MIN = 8  # what is shorter is no secret, and would be found in ordinary words
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
SET_BY_KVGAUGE = frozenset(
    {
        "host", "content-length", "content-type", "transfer-encoding", "connection", "user-agent", "accept",
        "accept-encoding", "expect", "upgrade", "te", "trailer", "keep-alive", "proxy-connection",
    }
)  # fmt: skip
_HOLDS_A_KEY = re.compile(r"auth|key|token|secret|cookie|credential|password", re.IGNORECASE)


class Headers:
    """Lines for the head of each request. names: in their order; values go to the wire and to our own workers only."""

    __slots__ = ("_hidden", "_lines", "_pairs", "names")

    def __init__(self, plain: Sequence[tuple[str, str]] = (), secret: Sequence[tuple[str, str]] = ()) -> None:
        """plain, secret: (name, value), checked. raises UsageError for a name or a value that cannot be sent"""
        both = [*plain, *secret]
        if len(both) > HEADERS_MAX:
            raise UsageError(f"{len(both)} headers were given; at most {HEADERS_MAX} are sent")
        for name, value in both:
            _check(name, value)
        self._pairs = tuple(plain), tuple(secret)
        self.names = tuple(name for name, _ in both)
        lowered = [name.lower() for name in self.names]
        for name in lowered:
            if lowered.count(name) > 1:
                raise UsageError(f"header {name} is given twice; leave one away")
        self._lines = "".join(f"{name}: {value}\r\n" for name, value in both)
        values = {value.removeprefix("Bearer ") for _, value in secret}
        self._hidden = sorted((v.encode() for v in values if len(v) >= SECRET_CHARACTERS_MIN), key=len, reverse=True)
        self._hidden += [form for value in self._hidden if (form := _in_json(value)) != value]

    def __repr__(self) -> str:
        return f"Headers({', '.join(self.names)})"

    @property
    def lines(self) -> str:
        """For the wire only."""
        return self._lines

    @property
    def pairs(self) -> "tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]":
        """(plain, secret), for a load worker's private socket only."""
        return self._pairs

    def hidden(self, data: bytes) -> bytes:
        """Bytes from a server, as many, with asterisks where a key stood."""
        for value in self._hidden:
            if value in data:
                data = data.replace(value, b"*" * len(value))
        return data


NO_HEADERS = Headers()


def _in_json(value: bytes) -> bytes:
    return value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def _check(name: str, value: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:60]!r} is not the name of a header; write NAME:VALUE")
    if name.lower() in SET_BY_KVGAUGE:
        raise UsageError(f"header {name} is kvgauge's own to set: it decides what is measured; leave it away")
    if len(value) > VALUE_CHARACTERS_MAX or not _VALUE.fullmatch(value):
        raise UsageError(
            f"the value of header {name} is empty, longer than {VALUE_CHARACTERS_MAX} characters, or holds something "
            "other than printable ASCII (a line break at its end?); it is not shown here"
        )


def read_headers(
    plain: Sequence[str], from_environment: Sequence[str], api_key_env: str | None, environment: Mapping[str, str]
) -> Headers:
    """The headers a command line asks for.

    plain             NAME:VALUE, of those that hold no key
    from_environment  NAME:VARIABLE
    api_key_env       the variable whose value is sent as `Authorization: Bearer ...`
    raises            UsageError; no message holds a value
    """
    given = [_split(text) for text in plain]
    for name, _ in given:
        if _HOLDS_A_KEY.search(name):
            raise UsageError(
                f"header {name} looks like one that holds a key, and command lines end up in logs and histories: put "
                f"the value into an environment variable and write --header-env {name}:VARIABLE"
            )
    secret = [(name, _value_of(variable, environment)) for name, variable in map(_split, from_environment)]
    if api_key_env is not None:
        secret.append(("Authorization", f"Bearer {_value_of(api_key_env, environment)}"))
    return Headers(given, secret)


def _split(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise UsageError("a header needs a name and a value: write NAME:VALUE")
    return name.strip(), value.strip(" ")


def _value_of(variable: str, environment: Mapping[str, str]) -> str:
    value = environment.get(variable, "")
    if not value:
        raise UsageError(f"the environment variable {variable[:100]!r} is not set, or empty; export it first")
    return value
