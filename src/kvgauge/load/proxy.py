"""Proxies on the way to a server: only where the user asks for one. Pure, and the one place that knows their passwords.

An http target is asked by its whole URL (absolute-form); an https one through a tunnel (CONNECT), inside which the
server's own certificate is checked as ever. What a proxy adds to every answer's time is measured with the server.
"""

import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import msgspec

from kvgauge import __version__
from kvgauge.failures import UsageError
from kvgauge.load.answers import one_line
from kvgauge.load.headers import SECRET_CHARACTERS_MIN
from kvgauge.samples.records import Exchange

HEAD_BYTES_MAX = 64 << 10
DEFAULT_PORT = 80
AUTHENTICATION_REQUIRED = 407
COULD_NOT_REACH = (502, 503, 504)


class ProxyRefused(OSError):
    """The proxy was reached and made no tunnel. status: of its answer; None when that was no HTTP"""

    def __init__(self, said: str, status: int | None) -> None:
        super().__init__(said)
        self.status = status


class Proxy:
    """One http proxy. authority: HOST:PORT; its password shows nowhere."""

    __slots__ = ("_authorization", "_secrets", "_url", "authority", "host", "port")

    def __init__(self, url: str, *, named_by: str = "--proxy") -> None:
        """raises UsageError, which never holds the URL: a password may stand in it"""
        wanted = "write http://HOST:PORT, or http://NAME:PASSWORD@HOST:PORT"
        text = url if "://" in url else f"http://{url}"
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise UsageError(f"{named_by} is not a URL; {wanted}") from None
        if parts.scheme != "http":
            raise UsageError(f"{named_by}: {parts.scheme[:10]}:// proxies are not spoken here, only http://; {wanted}")
        if not host or not host.isascii() or not host.isprintable() or " " in host:
            raise UsageError(f"{named_by} names no host; {wanted}")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise UsageError(f"{named_by} holds more than a host and a port; {wanted}")
        self.host, self.port = host, port or DEFAULT_PORT
        self.authority = authority_of(host, self.port)
        self._url = text
        self._authorization = ""
        self._secrets: tuple[str, ...] = ()
        if parts.username is not None or parts.password is not None:
            password = unquote(parts.password or "")
            basic = b64encode(f"{unquote(parts.username or '')}:{password}".encode()).decode()
            self._authorization = f"Proxy-Authorization: Basic {basic}\r\n"
            forms = {password, parts.password or "", basic}
            self._secrets = tuple(sorted((form for form in forms if form), key=len, reverse=True))

    def __repr__(self) -> str:
        return f"Proxy({self.authority})"

    @property
    def shown(self) -> str:
        """For people and files."""
        return f"http://{self.authority}"

    @property
    def url(self) -> str:
        """With its password: for the standard input of a process of ours only."""
        return self._url

    @property
    def lines(self) -> str:
        """For the head of a request that the proxy reads; for the wire only."""
        return self._authorization

    def tunnel(self, host: str, port: int) -> bytes:
        """The request for a tunnel."""
        authority = authority_of(host, port)
        head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: kvgauge/{__version__}\r\n"
        return f"{head}{self._authorization}\r\n".encode("ascii")

    def hidden(self, data: bytes) -> bytes:
        """Bytes that came back, as many, with asterisks where the password stood; a short one would be found in
        ordinary words, and is taken out of messages only."""
        for secret in self._secrets:
            if len(secret) >= SECRET_CHARACTERS_MIN:
                data = data.replace(secret.encode(), b"*" * len(secret.encode()))
        return data

    def cleaned(self, message: str) -> str:
        for secret in self._secrets:
            message = message.replace(secret, "***")
        return message

    def refusal(self, status: int, reason: str) -> str:
        said = f"the proxy {self.authority} answered {self.cleaned(one_line(f'{status} {reason}'))}"
        if status == AUTHENTICATION_REQUIRED:
            return f"{said}: it wants {'another' if self._authorization else 'a'} name and password in its URL"
        if status in COULD_NOT_REACH:
            return f"{said}: it could not reach the server"
        return f"{said} and made no tunnel"

    def judged(self, exchange: Exchange, *, tunnelled: bool) -> Exchange:
        """Whose failure it was: without a tunnel the proxy answers in the server's place."""
        detail = self.cleaned(exchange.detail) if exchange.detail else exchange.detail
        if tunnelled or exchange.failure != "status":
            return msgspec.structs.replace(exchange, detail=detail)
        if exchange.status == AUTHENTICATION_REQUIRED:
            return msgspec.structs.replace(
                exchange, failure="connect", detail=self.refusal(AUTHENTICATION_REQUIRED, "to a request")
            )
        if exchange.status in COULD_NOT_REACH:
            detail = f"{detail} (from the server, or from the proxy {self.authority}, which could not reach it)"
        return msgspec.structs.replace(exchange, detail=detail)


class Tunnel:
    """The proxy's answer to CONNECT as it comes in."""

    __slots__ = ("_head", "_proxy", "request")

    def __init__(self, proxy: Proxy, host: str, port: int) -> None:
        self._proxy, self._head = proxy, b""
        self.request = proxy.tunnel(host, port)

    def take(self, data: bytes) -> bool:
        """True when the tunnel stands. raises ProxyRefused"""
        if not data:
            raise ProxyRefused(f"the proxy {self._proxy.authority} closed the connection instead of a tunnel", None)
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end and len(self._head) <= HEAD_BYTES_MAX:
            return False
        version, _, line = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        code, _, reason = line.partition(" ")
        if not end or not version.startswith("HTTP/1.") or not (len(code) == 3 and code.isascii() and code.isdigit()):
            raise ProxyRefused(f"what answers at {self._proxy.authority} is no http proxy", None)
        if not code.startswith("2"):
            raise ProxyRefused(self._proxy.refusal(int(code), reason), int(code))
        if rest:
            raise ProxyRefused(f"the proxy {self._proxy.authority} sent bytes of its own into the tunnel", None)
        return True


class Proxies:
    """Which proxy, if any, stands before a URL.

    proxy        before every one
    environment  HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY decide, lower case before upper; None: they do not
    """

    def __init__(self, proxy: Proxy | None = None, *, environment: Mapping[str, str] | None = None) -> None:
        self._proxy, self._environment = proxy, environment

    def of(self, url: str) -> Proxy | None:
        """raises UsageError for a variable that names no http proxy"""
        if self._environment is None:
            return self._proxy
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            return None  # no URL: whoever asks for it says so
        if _left_out(host, port, _variable(self._environment, "no_proxy")[1]):
            return None
        name, value = _variable(self._environment, f"{parts.scheme}_proxy")
        if not value:
            name, value = _variable(self._environment, "all_proxy")
        return Proxy(value, named_by=f"the variable {name}") if value else None


NO_PROXIES = Proxies()


def _variable(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    for form in (name, name.upper()):
        if value := environment.get(form, "").strip():
            return form, value
    return name, ""


def _left_out(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY holds the host: *, a name with all below it, an address, a network (10.0.0.0/8), each with or
    without a port."""
    host = host.lower().rstrip(".")
    return any(_covers(entry, host, port) for entry in no_proxy.lower().replace(",", " ").split())


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    name, colon, number = entry.rpartition(":")
    if colon and number.isdigit() and (name.endswith("]") or ":" not in name):
        if number.lstrip("0") != str(port):
            return False
    else:
        name = entry
    name = name.strip("[]")
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:  # a name, on one side or both
        bare = name.removeprefix("*").strip(".")
        return bool(bare) and (host == bare or host.endswith(f".{bare}"))


def authority_of(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
