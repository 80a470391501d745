"""The driver over TLS, against servers whose certificates are right and wrong."""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from kvgauge.failures import LoadError
from kvgauge.load.drive import Driver
from kvgauge.load.site import models, wait_ready
from kvgauge.load.tls import Tls
from kvgauge.plan.records import Cell

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def framed(data):
    return b"%x\r\ndata: %s\n\n\r\n" % (len(data) + 8, data)


def text(word):
    return framed(json.dumps({"choices": [{"text": word}]}).encode())


END = framed(b"[DONE]") + b"0\r\n\r\n"
WHOLE = HEAD + text("a") + text("b") + END
MODELS = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n{"data":[{"id":"m1"}]}'

CA_CONFIG = """[ca]
default_ca=c
[c]
database={folder}/index
serial={folder}/serial
new_certs_dir={folder}
policy=p
default_md=sha256
[p]
commonName=supplied
"""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Made for this test run by the openssl program: an authority, and what it signed."""
    if shutil.which("openssl") is None:
        pytest.skip("NO TLS TESTED: there is no openssl program here to make certificates with; install openssl")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"openssl {arguments[0]}: {done.stderr}"

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *key, "-keyout", folder / "ca.key", "-out", folder / "ca.pem", "-subj", "/CN=test", "-days", 2
    )
    openssl("req", *key, "-keyout", folder / "key.pem", "-out", folder / "request.pem", "-subj", "/CN=server")
    (folder / "ca.cnf").write_text(CA_CONFIG.format(folder=folder))
    (folder / "serial").write_text("01")

    def sign(name, names, start="20200101000000Z", end="20990101000000Z"):
        (folder / "index").write_text("")
        (folder / "names").write_text(f"subjectAltName={names}\n")
        openssl(
            "ca", "-batch", "-notext", "-config", folder / "ca.cnf", "-cert", folder / "ca.pem", "-keyfile",
            folder / "ca.key", "-in", folder / "request.pem", "-out", folder / f"{name}.pem", "-extfile",
            folder / "names", "-startdate", start, "-enddate", end,
        )  # fmt: skip
        return folder / f"{name}.pem"

    return SimpleNamespace(
        ca=folder / "ca.pem",
        key=folder / "key.pem",
        good=sign("good", "DNS:localhost,IP:127.0.0.1"),
        old=sign("old", "DNS:localhost,IP:127.0.0.1", end="20210101000000Z"),
        early=sign("early", "DNS:localhost,IP:127.0.0.1", start="20980101000000Z"),
        other=sign("other", "DNS:elsewhere.test"),
    )


class Server:
    """A thread for each connection; `answer(sock, nth)` writes one answer, False closes the connection. got: what a
    GET is answered"""

    def __init__(self, certificate, key, answer, *, version=None, got=None):
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.set_alpn_protocols(["h2", "http/1.1"])
        if version is not None:
            self._context.maximum_version = self._context.minimum_version = version
        self._context.sni_callback = lambda _sock, name, _context: self.names.append(name)
        self._answer, self._got = answer, got or MODELS
        self.names, self.protocols, self.goodbyes, self.connections = [], [], 0, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"https://localhost:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, plain):
        self.connections += 1
        with contextlib.suppress(OSError), plain, self._context.wrap_socket(plain, server_side=True) as sock:
            self.protocols.append(sock.selected_alpn_protocol())
            nth = 0
            while data := sock.recv(1 << 16):
                if data.startswith(b"GET"):
                    sock.sendall(self._got)
                elif self._answer(sock, nth) is False:
                    return
                nth += 1
            self.goodbyes += 1


def send(data):
    return lambda sock, nth: sock.sendall(data)


def offer(url, tls, *, requests=1, concurrency=1, **options):
    exchanges = []
    cell = Cell(
        name="c", load="closed", concurrency=concurrency, requests=requests, output_tokens=2, warmup_requests=0,
        prompt="Hello",
    )  # fmt: skip
    with Driver(url, "m", host="here", tls=tls, **{"request_timeout_s": 5, **options}) as driver:
        driver.run_cell(cell, run_id="r", seed=1, on_exchange=exchanges.append)
    return exchanges


@pytest.fixture
def trusted(certificates):
    return Tls(ca_file=certificates.ca)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_exchange_over_tls_is_verified_and_has_the_kernels_stamps(certificates, trusted, version):
    with Server(certificates.good, certificates.key, send(WHOLE), version=version) as server:
        exchanges = offer(server.url, trusted, requests=30, concurrency=3)
        assert server.connections == 3, "connections are kept open"
        assert set(server.names) == {"localhost"}
        assert set(server.protocols) == {"http/1.1"}
        deadline = time.monotonic() + 5
        while server.goodbyes < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.goodbyes == 3, "sessions are ended, not cut"
    assert len(exchanges) == 30
    for exchange in exchanges:
        assert (exchange.failure, exchange.tls, exchange.stamp_source) == (None, "verified", "kernel")
        assert exchange.sent_ns < exchange.arrivals_ns[0] <= exchange.arrivals_ns[1]
        assert exchange.lag_ns_max > 0


@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        ("old", "has expired; renew it, or check this host's clock"),
        ("early", "not yet valid"),
        ("other", "is not for localhost"),
    ],
)
def test_a_wrong_certificate_fails_every_request_as_tls_and_says_why(certificates, trusted, certificate, said):
    with Server(getattr(certificates, certificate), certificates.key, send(WHOLE)) as server:
        exchanges = offer(server.url, trusted, requests=2)
        assert [each.failure for each in exchanges] == ["tls", "tls"]
        assert said in exchanges[0].detail
        with pytest.raises(LoadError, match=said):
            wait_ready(server.url, 5, tls=trusted)


def test_an_unknown_authority_is_refused_by_default_and_named(certificates):
    with Server(certificates.good, certificates.key, send(WHOLE)) as server:
        [exchange] = offer(server.url, None)
        assert (exchange.failure, exchange.arrivals_ns) == ("tls", ())
        assert "its authority is not known here; give its CA file" in exchange.detail


def test_insecure_is_explicit_and_written_into_the_record(certificates):
    with Server(certificates.old, certificates.key, send(WHOLE)) as server:
        [exchange] = offer(server.url, Tls(insecure=True))
    assert (exchange.failure, exchange.tls) == (None, "unverified")


def test_questions_before_a_run_are_asked_over_tls_too(certificates, trusted):
    with Server(certificates.good, certificates.key, send(WHOLE)) as server:
        wait_ready(server.url, 5, tls=trusted)
        assert models(f"https://127.0.0.1:{server.port}", tls=trusted) == ["m1"]


def test_large_answers_in_many_records_lose_nothing(certificates, trusted):
    words = [f"{at:07d}" * 50 for at in range(2_000)]

    def answer(sock, nth):
        sock.sendall(HEAD + b"".join(map(text, words)) + END)

    with Server(certificates.good, certificates.key, answer) as server:
        exchanges = offer(server.url, trusted, requests=4, concurrency=2)
    assert [(each.failure, len(each.arrivals_ns)) for each in exchanges] == [(None, 2_000)] * 4


def test_a_request_larger_than_a_record_is_sent_whole(certificates, trusted):
    sizes = []

    def answer(sock, nth):
        sizes.append(sock.pending())
        sock.sendall(WHOLE)

    exchanges = []
    cell = Cell(
        name="c", load="single", concurrency=1, requests=1, output_tokens=2, warmup_requests=0, prompt="word " * 9_000
    )
    with (
        Server(certificates.good, certificates.key, answer) as server,
        Driver(server.url, "m", host="h", tls=trusted, request_timeout_s=5) as driver,
    ):
        driver.run_cell(cell, run_id="r", seed=1, on_exchange=exchanges.append)
    assert exchanges[0].failure is None


def test_an_answer_that_ends_with_the_connection_ends_only_by_a_close_notify(certificates, trusted):
    until_close = WHOLE.replace(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n")
    until_close = (
        until_close[: until_close.index(b"\r\n\r\n") + 4] + b'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n'
    )

    def politely(sock, nth):
        sock.sendall(until_close)
        with contextlib.suppress(OSError):
            sock.unwrap()
        return False

    def cut(sock, nth):
        sock.sendall(until_close[:-20])
        sock.shutdown(socket.SHUT_RDWR)
        return False

    with Server(certificates.good, certificates.key, politely) as server:
        assert offer(server.url, trusted)[0].failure is None
    with Server(certificates.good, certificates.key, cut) as server:
        [exchange] = offer(server.url, trusted)
        assert exchange.failure == "truncated"
        assert "without ending the TLS session" in exchange.detail


def test_a_session_that_the_server_ended_while_idle_is_made_anew(certificates, trusted):
    def once(sock, nth):
        sock.sendall(WHOLE)
        return False

    with Server(certificates.good, certificates.key, once) as server:
        exchanges = offer(server.url, trusted, requests=5)
    assert [each.failure for each in exchanges] == [None] * 5


@contextlib.contextmanager
def plain_server(behave):
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=behave, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


def answer_plainly(sock):
    with contextlib.suppress(OSError), sock:
        sock.recv(1 << 16)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        time.sleep(0.2)


def hang_up(sock):
    with sock:
        sock.recv(1 << 16)


def say_nothing(sock):
    with contextlib.suppress(OSError), sock:
        sock.recv(1 << 16)
        sock.recv(1 << 16)


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (answer_plainly, "does not speak TLS; write http://"),
        (hang_up, "closed the connection inside the TLS handshake"),
        (say_nothing, "no TLS session within 0.3 s"),
    ],
)
def test_a_handshake_that_cannot_be_made_ends_within_its_limit(behave, said):
    with plain_server(behave) as url:
        begun = time.monotonic()
        [exchange] = offer(url, None, connect_timeout_s=0.3)
        assert time.monotonic() - begun < 20
    assert exchange.failure == "tls"
    assert said in exchange.detail


def test_options_that_cannot_be_used_are_refused_before_anything_is_sent(certificates, tmp_path):
    (tmp_path / "empty.pem").write_text("")
    for url, tls, said in (
        ("https://127.0.0.1:1", Tls(ca_file=tmp_path / "none.pem"), "none.pem cannot be used: No such file"),
        ("https://127.0.0.1:1", Tls(ca_file=tmp_path / "empty.pem"), "no PEM in it"),
        ("https://127.0.0.1:1", Tls(ca_file=certificates.ca, insecure=True), "drop one"),
        ("http://127.0.0.1:1", Tls(insecure=True), "http has no TLS"),
    ):
        with pytest.raises(LoadError, match=said):
            Driver(url, "m", host="h", tls=tls)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (lambda made: ["--ca-file", str(made.ca)], 0, "time to first token"),
        (lambda _: ["--insecure"], 0, "time to first token"),
        (lambda _: [], 3, "give its CA file"),
        (lambda made: ["--insecure", "--ca-file", str(made.ca)], 3, "drop one of them"),
        (lambda made: ["--ca-file", str(made.key)], 3, "PEM"),
    ],
)
def test_the_command_checks_certificates_as_its_flags_say(certificates, tmp_path, flags, code, said):
    usage = framed(b'{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}')
    answer = HEAD + text("a") + text("b") + usage + END
    with Server(certificates.good, certificates.key, send(answer)) as server:
        done = subprocess.run(
            [sys.executable, "-m", "kvgauge", "load", "--url", server.url, "--num-prompts", "2", "--isl", "4", "--osl",
             "2", "--metrics-interval", "0", "--out", str(tmp_path / "out"), *flags(certificates)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr
