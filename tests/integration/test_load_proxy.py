"""The driver and the command line through a proxy of our own: plain requests, tunnels, and refusals."""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from urllib.parse import urlsplit

import pytest

from integration.test_load_driver import WHOLE, Server, offer, only, plain, send
from integration.test_load_requests import vllm
from integration.test_load_tls import Server as TlsServer
from integration.test_load_tls import certificates  # noqa: F401 - a fixture
from kvgauge.cli.headers import proxies_of
from kvgauge.failures import LoadError, UsageError
from kvgauge.load.proxy import Proxy
from kvgauge.load.site import ask, models, site_of, wait_ready
from kvgauge.load.tls import Tls

PASSWORD = "never-written-down-0123"


class ProxyServer:
    """Passes requests on, by CONNECT or in absolute-form. `refuse`: a whole answer given instead."""

    def __init__(self, *, password=None, refuse=None):
        self._wanted = password and b64encode(f"me:{password}".encode())
        self._refuse = refuse
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.authority = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads, self._socks = [], [self._listener]

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._socks.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        server = None
        with contextlib.suppress(OSError), sock:
            for request in self._requests(sock):
                head, _, body = request.partition(b"\r\n\r\n")
                self.heads.append(head)
                if self._wanted and b"Proxy-Authorization: Basic " + self._wanted not in head:
                    sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                    return
                if self._refuse:
                    sock.sendall(self._refuse)
                    return
                method, target, _ = head.split(b"\r\n")[0].split(b" ")
                where = urlsplit((b"//" if method == b"CONNECT" else b"") + target)
                try:
                    server = server or socket.create_connection((where.hostname.decode(), where.port))
                except OSError:
                    sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                    return
                if server not in self._socks:
                    self._socks.append(server)
                    threading.Thread(target=self._pump, args=(server, sock), daemon=True).start()
                if method == b"CONNECT":
                    sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    self._pump(sock, server)
                    return
                lines = [line for line in head.split(b"\r\n")[1:] if not line.startswith(b"Proxy-")]
                first = b"%s %s HTTP/1.1" % (method, where.path or b"/")
                server.sendall(b"\r\n".join([first, *lines]) + b"\r\n\r\n" + body)

    @staticmethod
    def _requests(sock):
        """Each whole request that comes in."""
        pending = b""
        while True:
            whole = Server._whole(pending)
            if whole is None or len(pending) < whole:
                more = sock.recv(65_536)
                if not more:
                    return
                pending += more
                continue
            yield pending[:whole]
            pending = pending[whole:]

    @staticmethod
    def _pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_requests_reach_the_server_through_the_proxy_over_kept_connections():
    with Server(send(WHOLE)) as server, ProxyServer(password=PASSWORD) as proxy:
        way = Proxy(f"http://me:{PASSWORD}@{proxy.authority}")
        _, exchanges = offer(server.url, {"requests": 6, "concurrency": 2}, proxy=way)
        assert [each.failure for each in exchanges] == [None] * 6
        assert (len(proxy.heads), server.connections) == (6, 2)
        assert all(head.startswith(f"POST {server.url}/v1/completions HTTP/1.1\r\n".encode()) for head in proxy.heads)
        assert not any(b"Proxy-" in request for request in server.requests)


def test_a_tunnel_carries_tls_whose_certificate_is_the_servers(certificates):  # noqa: F811
    def answer(sock, _):
        sock.sendall(WHOLE)

    with TlsServer(certificates.good, certificates.key, answer) as server, ProxyServer(password=PASSWORD) as proxy:
        way = Proxy(f"me:{PASSWORD}@{proxy.authority}")
        tls = Tls(ca_file=certificates.ca)
        _, exchanges = offer(server.url, {"requests": 4}, proxy=way, tls=tls)
        assert [(each.failure, each.tls) for each in exchanges] == [(None, "verified")] * 4
        assert models(server.url, tls=tls, proxy=way) == ["m1"]
        assert all(head.startswith(b"CONNECT localhost:") for head in proxy.heads)
        _, [refused] = offer(server.url, proxy=way)
        assert refused.failure == "tls"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("refuse", "password", "said"),
    [
        (None, PASSWORD, "answered 407"),
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            None,
            {"http": "HTTP 403", "https": "answered 403 Forbidden and made no tunnel"},
        ),
        (None, None, {"http": "or from the proxy", "https": "answered 502 Bad Gateway: it could not reach"}),
        (b"no http\r\n\r\n", None, {"http": "not HTTP", "https": "is no http proxy"}),
    ],
)
def test_refusals_of_the_proxy_are_told_apart(scheme, refuse, password, said):
    url = f"{scheme}://127.0.0.1:{free_port()}"
    with ProxyServer(refuse=refuse, password=password) as proxy:
        _, [exchange] = offer(url, proxy=Proxy(proxy.authority))
    assert (said if isinstance(said, str) else said[scheme]) in exchange.detail
    assert proxy.authority in exchange.detail or (scheme == "http" and refuse)
    expected = (
        "connect" if scheme == "https" or password else "malformed" if refuse and b"no http" in refuse else "status"
    )
    assert exchange.failure == expected


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_named(scheme):
    proxy = Proxy(f"127.0.0.1:{free_port()}")
    _, [exchange] = offer(f"{scheme}://127.0.0.1:9", proxy=proxy)
    assert exchange.failure == "connect"
    assert f"127.0.0.1:9 through the proxy {proxy.authority}: Connection refused" in exchange.detail
    with pytest.raises(LoadError, match=f"through the proxy {proxy.authority}: Connection refused"):
        wait_ready(f"{scheme}://127.0.0.1:9", 0.3, proxy=proxy)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_is_not_waited_for(scheme):
    with ProxyServer(password=PASSWORD) as proxy, pytest.raises(LoadError, match="answered 407"):
        wait_ready(f"{scheme}://127.0.0.1:9", 30, proxy=Proxy(proxy.authority))


def test_an_answer_to_a_question_is_bounded():
    with Server(send(plain(200, b" " * (5 << 20)))) as server, pytest.raises(OSError, match="more than 4 MiB"):
        ask(site_of(server.url), "/v1/models")
    with Server(send(plain(200, b" " * 2000))) as server:
        assert ask(site_of(server.url), "/v1/models", bytes_max=4000)[0] == 200


def test_the_usual_way_has_no_proxy_in_it(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert only(send(WHOLE)).failure is None


def test_the_command_line_goes_through_the_proxy_and_its_password_is_nowhere_on_disk(tmp_path):
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    with Server(vllm) as server, ProxyServer(password=PASSWORD) as proxy:
        url = f"http://me:{PASSWORD}@{proxy.authority}"
        done = subprocess.run(
            [sys.executable, "-m", "kvgauge", "load", "--url", server.url, "--isl", "20", "--osl", "3",
             "--request-count", "4", "--out", "out", "--proxy", url],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(proxy.heads) >= 3
        assert any(b"/metrics " in head for head in proxy.heads)
    secrets = (PASSWORD.encode(), b64encode(f"me:{PASSWORD}".encode()))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if any(secret in path.read_bytes() for secret in secrets)] == []
    assert PASSWORD not in done.stdout + done.stderr
    assert f"through the proxy http://{proxy.authority}" in done.stdout
    assert json.loads((tmp_path / "out/conditions.json").read_text())["options"]["proxy"] == f"http://{proxy.authority}"


def test_the_environment_is_heeded_when_asked_for(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "b.example")
    given = {"url": "http://a.example", "proxy": None, "proxy_from_env": True}
    assert proxies_of(argparse.Namespace(**given)).of("http://a.example").authority == "127.0.0.1:1"
    assert proxies_of(argparse.Namespace(**given)).of("http://b.example") is None
    assert proxies_of(argparse.Namespace(**{**given, "proxy_from_env": False})).of("http://a.example") is None
    with pytest.raises(UsageError, match="go with --url"):
        proxies_of(argparse.Namespace(**{**given, "url": None}))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--proxy", "socks5://h:1"], "socks5:// proxies are not spoken"),
        (["--proxy", "h:1", "--proxy-from-env"], "both given"),
    ],
)
def test_flags_that_cannot_be_are_one_line_and_exit_code_2(flags, said):
    done = subprocess.run(
        [sys.executable, "-m", "kvgauge", "load", "--url", "http://127.0.0.1:1", *flags],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert said in done.stderr
