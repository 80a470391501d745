"""Where requests go: a URL, taken apart and looked up once, and small blocking questions asked before a run.

There is no proxy in between unless one is given: it would be measured with the target (proxy.py).
"""

import ipaddress
import socket
import ssl
import time
from urllib.parse import urlsplit

import msgspec

from kvgauge import __version__
from kvgauge.failures import LoadError
from kvgauge.load.answers import UNREADABLE, error_message
from kvgauge.load.headers import NO_HEADERS, Headers
from kvgauge.load.proxy import AUTHENTICATION_REQUIRED, Proxy, ProxyRefused, Tunnel
from kvgauge.load.receive import READ_BYTES
from kvgauge.load.stream import Incoming
from kvgauge.load.tls import Tls, context_of, explain

ASK_TIMEOUT_S = 5.0
ASK_BYTES_MAX = 4 << 20  # a list of models, or the tokens of a prompt of 131,072
POLL_S = 0.1


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """addresses: (family, sockaddr) in the order to try them, of the proxy where there is one; base: path before /v1,
    without a slash at its end; host: the name a certificate must hold; port: of the server; tls: None for http."""

    url: str
    authority: str
    base: str
    host: str
    port: int
    tls: Tls | None
    addresses: tuple[tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]], ...]
    headers: Headers = NO_HEADERS
    proxy: Proxy | None = None

    @property
    def way(self) -> str:
        """The server, and what stands before it, for messages."""
        return self.authority if self.proxy is None else f"{self.authority} through the proxy {self.proxy.authority}"

    def tunnel(self) -> Tunnel | None:
        """What has to be made before TLS can begin; None where nothing has."""
        return Tunnel(self.proxy, self.host, self.port) if self.proxy is not None and self.tls is not None else None

    def hidden(self, data: bytes) -> bytes:
        """Bytes from there, as many, without the keys and passwords that we sent."""
        data = self.headers.hidden(data)
        return data if self.proxy is None else self.proxy.hidden(data)

    def path(self, api_path: str) -> str:
        """`api_path` (/v1/..., or what stands beside /v1) below the base path, which may itself end in /v1."""
        return self.base.removesuffix("/v1") + api_path

    def request(self, method: str, api_path: str, body: bytes | None = None) -> bytes:
        """The bytes of one HTTP/1.1 request."""
        content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body is not None else ""
        whole, lines = "", ""
        if self.proxy is not None and self.tls is None:  # the proxy reads this
            whole, lines = f"http://{self.authority}", self.proxy.lines
        head = (
            f"{method} {whole}{self.path(api_path)} HTTP/1.1\r\nHost: {self.authority}\r\n"
            f"User-Agent: kvgauge/{__version__}\r\nAccept: text/event-stream, application/json\r\n"
            f"{lines}{self.headers.lines}{content}\r\n"
        )
        return head.encode("ascii") + (body or b"")


def site_of(url: str, tls: Tls | None = None, *, headers: Headers = NO_HEADERS, proxy: Proxy | None = None) -> Site:
    """Take a URL apart and look its host up. raises LoadError with what to write instead.

    proxy  its host is looked up instead: the server's name is the proxy's to know
    tls  how to check an https server's certificate; None: against the system's authorities
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise LoadError(f"not a URL: {error}; write http://HOST:PORT") from None
    if parts.username is not None or parts.password is not None:
        raise LoadError("the URL holds a user name or password, which would end up in logs; write http://HOST:PORT")
    if parts.scheme not in ("http", "https") or not host:
        raise LoadError(f"{url!r} is not an http URL; write http://HOST:PORT or https://HOST:PORT")
    secure = parts.scheme == "https"
    if tls not in (None, Tls()) and not secure:
        raise LoadError(f"{url}: TLS options were given, but http has no TLS; write https:// or leave them out")
    if parts.query or parts.fragment or not (url.isascii() and url.isprintable() and " " not in url):
        raise LoadError(f"{url!r}: only a host, a port and a path are allowed; write http://HOST:PORT/PATH")
    port = port or (443 if secure else 80)
    near, near_port = (host, port) if proxy is None else (proxy.host, proxy.port)
    try:
        found = socket.getaddrinfo(near, near_port, type=socket.SOCK_STREAM)
    except OSError as error:
        what = near if proxy is None else f"the proxy {near}"
        raise LoadError(f"{url}: cannot look up {what}: {error.strerror or error}; check the name") from None
    addresses = tuple((family, address) for family, _, _, _, address in found)
    return Site(
        url=url,
        authority=parts.netloc,
        base=parts.path.rstrip("/"),
        host=host,
        port=port,
        tls=(tls or Tls()) if secure else None,
        addresses=addresses,  # type: ignore[arg-type]
        headers=headers,
        proxy=proxy,
    )


def same_server(one: str, other: str) -> bool:
    """Whether two URLs name one server and one path on it. raises LoadError, see `site_of`"""
    first, second = site_of(one), site_of(other)
    if first.port != second.port or first.base.removesuffix("/v1") != second.base.removesuffix("/v1"):
        return False
    return first.host.lower() == second.host.lower() or (_loopback(first) and _loopback(second))


def _loopback(site: Site) -> bool:
    return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback for _, address in site.addresses)


def ask(
    site: Site,
    api_path: str,
    *,
    body: bytes | None = None,
    timeout_s: float = ASK_TIMEOUT_S,
    bytes_max: int = ASK_BYTES_MAX,
) -> tuple[int, bytes]:
    """GET, or POST of a body, blocking, on a connection of its own: (status, body).

    bytes_max  of the answer, head included
    raises     OSError (TimeoutError included); LoadError when there can be no TLS session, or a proxy wants a
               password: waiting does not mend that
    """
    context = context_of(site.tls) if site.tls is not None else None
    deadline = time.monotonic() + timeout_s
    broken: OSError = OSError("the name has no address")
    for _, address in site.addresses:
        try:
            with socket.create_connection(address[:2], timeout=_left(deadline)) as plain:
                _through(site.tunnel(), plain, deadline)
                sock = context.wrap_socket(plain, server_hostname=site.host) if context is not None else plain
                with sock:
                    sock.sendall(site.request("GET" if body is None else "POST", api_path, body))
                    status, said = _answer_of(sock, deadline, bytes_max)
                break
        except ProxyRefused as error:
            if error.status == AUTHENTICATION_REQUIRED:
                raise LoadError(f"{site.url}: {error}") from None
            raise
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:  # a server that is going down does that
            broken = OSError(explain(error, site.host))
        except ssl.SSLError as error:
            raise LoadError(f"{site.url}: {explain(error, site.host)}") from None
        except OSError as error:
            broken = error if site.proxy is None else OSError(f"{site.way}: {error.strerror or error}")
    else:
        raise broken
    if status == AUTHENTICATION_REQUIRED and site.proxy is not None and site.tls is None:
        raise LoadError(f"{site.url}: {site.proxy.refusal(status, 'to a request')}")
    return status, site.hidden(said)


def wait_ready(
    url: str, timeout_s: float, *, tls: Tls | None = None, headers: Headers = NO_HEADERS, proxy: Proxy | None = None
) -> None:
    """Wait until the server answers /v1/models with anything but a server error or an empty list.

    A frontend without workers answers, and lists nothing; so does one that has found only half of them.
    raises  LoadError, with the last thing seen, when it has not by then; at once when its certificate is refused
    """
    site = site_of(url, tls, headers=headers, proxy=proxy)
    deadline, seen = time.monotonic() + timeout_s, "nothing was tried"
    while (left := deadline - time.monotonic()) > 0:
        try:
            status, body = ask(site, "/v1/models", timeout_s=min(left, ASK_TIMEOUT_S))
        except OSError as error:
            seen = error.strerror or str(error)
        else:
            if status < 500 and not (status == 200 and _lists_nothing(body)):
                return
            seen = f"HTTP {status}: {error_message(body)}" if status != 200 else "it lists no model yet"
        time.sleep(max(0.0, min(POLL_S, deadline - time.monotonic())))
    raise LoadError(
        f"{url} was not ready within {timeout_s:g} s (last: {seen}); "
        "are the server and its workers up, and is this its URL?"
    )


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None  # vLLM and SGLang say it


class _Models(msgspec.Struct):
    data: list[_Model]


def _lists_nothing(body: bytes) -> bool:
    """Whether this is a list of models, and empty; what is no such list is for `models` to complain about."""
    try:
        return not msgspec.json.decode(body, type=_Models).data
    except UNREADABLE:
        return False


def models(url: str, *, tls: Tls | None = None, headers: Headers = NO_HEADERS, proxy: Proxy | None = None) -> list[str]:
    """The models the server offers, by its own names. raises LoadError when it does not say."""
    try:
        status, body = ask(site_of(url, tls, headers=headers, proxy=proxy), "/v1/models")
    except OSError as error:
        raise LoadError(f"{url} does not answer: {error.strerror or error}; is the server up?") from None
    if status != 200:
        do = "send its key with --api-key-env or --header-env" if status in (401, 403) else "name the model yourself"
        raise LoadError(f"{url}/v1/models answered HTTP {status}: {error_message(body)}; {do}")
    try:
        return [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except UNREADABLE as error:
        raise LoadError(f"{url}/v1/models is not a list of models ({error}); name the model yourself") from None


def context_tokens(site: Site, model: str) -> int | None:
    """Most that a prompt and its answer may have together, where the server says it; else None."""
    try:
        status, body = ask(site, "/v1/models")
        listed = msgspec.json.decode(body, type=_Models).data if status == 200 else []
    except (OSError, LoadError, *UNREADABLE):
        return None
    return next((each.max_model_len for each in listed if each.id == model), None)


def _through(tunnel: Tunnel | None, sock: socket.socket, deadline: float) -> None:
    """Have the proxy make a tunnel. raises OSError (ProxyRefused) when it does not"""
    if tunnel is None:
        return
    sock.sendall(tunnel.request)
    stands = False
    while not stands:
        sock.settimeout(_left(deadline))
        stands = tunnel.take(sock.recv(READ_BYTES))


def _answer_of(sock: socket.socket, deadline: float, bytes_max: int) -> tuple[int, bytes]:
    incoming = Incoming()
    while incoming.end is None:
        sock.settimeout(_left(deadline))
        data = sock.recv(READ_BYTES)
        incoming.take(data, time.monotonic_ns())
        if incoming.received_bytes > bytes_max:
            raise OSError(f"an answer of more than {bytes_max >> 20} MiB")
    if incoming.end != "complete" or incoming.status is None:
        raise OSError(f"no whole HTTP answer: {incoming.problem}")
    return incoming.status, incoming.body()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left
