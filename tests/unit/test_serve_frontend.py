"""The frontend over real sockets, in a thread; the test plays the parent, the workers and the clients."""

import gc
import http.client
import io
import json
import os
import socket
import threading
import time
from types import SimpleNamespace

import msgspec
import pytest
import zmq

from kvgauge.samples.records import Transfer
from kvgauge.serve import frontend as module
from kvgauge.serve import vocabulary
from kvgauge.serve.frontend import Frontend
from kvgauge.serve.http import Connection
from kvgauge.serve.messages import (
    Abort,
    Decode,
    Died,
    Down,
    FrontendSpec,
    Listening,
    Moved,
    Open,
    Prefill,
    Prefilled,
    Refused,
    Release,
    Started,
    Stop,
    ToDecode,
    Tokens,
    ToParent,
    ToPrefill,
    Up,
    encode,
)

WAIT_S = 5.0  # only a broken frontend takes this long


class House:
    """A frontend in a thread, and everyone around it."""

    def __init__(self, folder, **changes):
        self.context = zmq.Context()
        name = {part: f"ipc://{folder}/{part}" for part in ("control", "inbox", "prefill", "decode")}
        base = {
            "host": "127.0.0.1", "port": 0, "model": "m", "operation": "READ", "max_tokens": 1000,
            "control": name["control"], "inbox": name["inbox"], "prefill": (name["prefill"],), "decode": (name["decode"],),
        }  # fmt: skip
        self.spec = FrontendSpec(**(base | changes))
        self.control = self._bound(zmq.ROUTER, name["control"])
        self._prefill, self._decode = self._bound(zmq.PULL, name["prefill"]), self._bound(zmq.PULL, name["decode"])
        self.frontend = Frontend(self.spec)
        self._inbox = self.context.socket(zmq.PUSH)
        self._inbox.connect(name["inbox"])
        self.thread = threading.Thread(target=self.frontend.run)
        self.thread.start()
        listening = self.parent_hears(Listening)
        self.url, self.clients = listening.url, []
        self.port = int(self.url.rsplit(":", 1)[1])

    def _bound(self, kind, endpoint):
        made = self.context.socket(kind)
        made.setsockopt(zmq.RCVTIMEO, int(WAIT_S * 1000))
        made.bind(endpoint)
        return made

    def parent_hears(self, kind):
        """The next message of that kind; others may come before it."""
        while True:
            self.identity, raw = self.control.recv_multipart()
            message = msgspec.msgpack.decode(raw, type=ToParent)
            if isinstance(message, kind):
                return message

    def parent_says(self, message):
        self.control.send_multipart([self.identity, encode(message)])

    def prefill_hears(self):
        return msgspec.msgpack.decode(self._prefill.recv(), type=ToPrefill)

    def decode_hears(self):
        return msgspec.msgpack.decode(self._decode.recv(), type=ToDecode)

    def say(self, *messages):
        for message in messages:
            self._inbox.send(encode(message))

    def client(self):
        made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        self.clients.append(made)
        return made

    def get(self, path, method="GET", body=None):
        client = self.client()
        client.request(method, path, body)
        answer = client.getresponse()
        return answer.status, answer.read()

    def open(self):
        self.parent_says(Open())
        while self.get("/health")[0] != 200:
            pass

    def ask(self, **body):
        """A client that waits for its answer, and the request's key."""
        client = self.client()
        client.request("POST", "/v1/completions", json.dumps({"prompt": "a b c", "max_tokens": 2} | body))
        message = self.prefill_hears()
        assert isinstance(message, Prefill)
        return client, message.key

    def to_decode(self, key):
        self.say(Prefilled(key, [1], 1, 2))
        message = self.decode_hears()
        assert isinstance(message, Decode)

    def close(self):
        for client in self.clients:
            client.close()
        self.parent_says(Stop())
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        self.frontend._context.destroy(linger=0)
        self.context.destroy(linger=0)
        for client in list(self.frontend._clients.values()):
            client.sock.close()
        self.frontend._listener.close()
        self.frontend._epoll.close()
        gc.unfreeze()


@pytest.fixture
def house(tmp_path):
    started = []

    def start(**changes):
        started.append(House(tmp_path, **changes))
        return started[-1]

    yield start
    for it in started:
        it.close()


def test_it_says_where_it_listens_and_that_nothing_can_be_asked_until_the_workers_are_ready(house):
    it = house()
    assert it.url == f"http://127.0.0.1:{it.port}"
    assert it.get("/health")[0] == it.get("/live")[0] == 503
    assert json.loads(it.get("/v1/models")[1])["data"] == []
    status, body = it.get("/v1/completions", "POST", b'{"prompt": "x"}')
    assert (status, json.loads(body)["error"]["message"]) == (503, "the workers are still starting")
    it.open()
    assert json.loads(it.get("/v1/models")[1])["data"][0] == {
        "id": "m", "object": "model", "owned_by": "kvgauge", "max_model_len": 1000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("GET", "/v1/completions", None, 405, "takes POST, not GET"),
        ("POST", "/v1/completions", b"{", 400, "cannot read the request"),
        ("POST", "/v1/completions", b'{"prompt": "a", "model": "other"}', 404, "other"),
        ("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": 5000}', 400, "1000 tokens"),
        ("GET", "/v2/everything", None, 404, "there is no /v2/everything here"),
    ],
)
def test_what_cannot_be_served_says_why_and_reaches_no_worker(house, method, path, body, status, word):
    it = house()
    it.open()
    got, answer = it.get(path, method, body)
    assert got == status
    assert word in json.loads(answer)["error"]["message"]
    assert not it._prefill.poll(20)


def test_an_answer_streams_as_its_tokens_come_and_the_parent_hears_of_the_move(house):
    it = house()
    it.open()
    client, key = it.ask(stream=True)
    it.to_decode(key)
    move = Transfer(
        request_id=f"{key:016x}", prefill_worker=0, decode_worker=0, operation="READ", backend="UCX", prompt_tokens=3,
        pairs=1, descriptors=1, bytes_expected=1, bytes_listed=1, bytes_moved=1, posted_ns=1, transferred_ns=2, post_ns=1,
        checked_ns=1, pieces=1, pieces_wrong=0,
    )  # fmt: skip
    it.say(Started(key, move), Tokens(1, [key], [4], []))
    answer = client.getresponse()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    first = answer.readline()
    assert vocabulary.word(4).encode() in first
    it.say(Tokens(2, [key], [5], [key]))
    rest = answer.read()
    assert vocabulary.word(5).encode() in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    assert it.parent_hears(Moved) == Moved(move)


def test_a_connection_is_kept_for_the_next_request(house):
    it = house()
    it.open()
    client, key = it.ask()
    for _ in range(2):
        it.to_decode(key)
        it.say(Tokens(1, [key], [4], []), Tokens(2, [key], [5], [key]))
        answer = client.getresponse()
        assert json.loads(answer.read())["usage"]["completion_tokens"] == 2
        local = client.sock.getsockname()
        client.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 2}))
        key = it.prefill_hears().key
    assert client.sock.getsockname() == local


def test_a_second_request_sent_early_is_answered_after_the_first(house):
    it = house()
    it.open()
    with socket.create_connection(("127.0.0.1", it.port), WAIT_S) as sock:
        body = b'{"prompt": "a", "max_tokens": 1}'
        ask = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        sock.sendall(ask + b"GET /live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        key = it.prefill_hears().key
        it.to_decode(key)
        it.say(Tokens(1, [key], [4], [key]))
        got = b""
        while data := sock.recv(65536):  # the second asked for the end of the connection
            got += data
    assert got.count(b"HTTP/1.1 200 OK") == 2
    assert got.index(b"text_completion") < got.rindex(b"HTTP/1.1 200 OK")


def test_a_client_that_leaves_is_told_to_both_sides(house):
    it = house()
    it.open()
    client, key = it.ask()
    client.close()
    assert it.decode_hears() == Abort(key)
    assert it.prefill_hears() == Release(key)
    assert it.get("/health")[0] == 200


def test_bytes_that_are_no_http_get_status_400_and_the_end(house):
    it = house()
    with socket.create_connection(("127.0.0.1", it.port), WAIT_S) as sock:
        sock.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        got = b""
        while data := sock.recv(65536):
            got += data
    assert got.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"Connection: close" in got


def test_a_refusal_reaches_its_client_as_status_500(house):
    it = house()
    it.open()
    client, key = it.ask()
    it.to_decode(key)
    it.say(Refused(key, "3 of 10 KV pieces wrong", kv=True))
    answer = client.getresponse()
    assert answer.status == 500
    assert "3 of 10 KV pieces wrong" in json.loads(answer.read())["error"]["message"]
    assert it.prefill_hears() == Release(key)


def test_requests_of_a_worker_that_ended_fail_at_once_and_one_that_is_back_takes_new_ones(house):
    it = house()
    it.open()
    client, key = it.ask()
    it.to_decode(key)
    it.parent_says(Down("decode", 0, "decode-0 was killed by signal 9"))
    answer = client.getresponse()
    assert answer.status == 503
    assert "decode-0 was killed by signal 9" in json.loads(answer.read())["error"]["message"]
    status, _ = it.get("/v1/completions", "POST", b'{"prompt": "x"}')
    assert status == 503
    assert it.prefill_hears() == Release(key)
    it.parent_says(Up("decode", 0))
    while it.frontend._router._up["decode"] == []:
        pass
    client, key = it.ask(max_tokens=1)
    it.to_decode(key)
    it.say(Tokens(1, [key], [4], [key]))
    assert client.getresponse().status == 200


def test_metrics_say_how_many_requests_wait_and_how_many_are_being_answered(house):
    it = house()
    it.open()
    client, key = it.ask(stream=True)
    it.ask()
    status, text = it.get("/metrics")
    assert status == 200
    assert b'vllm:num_requests_waiting{model_name="m"} 2.0' in text
    it.to_decode(key)
    it.say(Tokens(1, [key], [4], []))
    client.getresponse().readline()
    _, text = it.get("/metrics")
    assert b'vllm:num_requests_waiting{model_name="m"} 1.0' in text
    assert b'vllm:num_requests_running{model_name="m"} 1.0' in text


def test_many_clients_at_once_all_get_their_own_answer(house):
    it = house()
    it.open()
    asked = [it.ask(prompt=[index]) for index in range(20)]
    for at, (_, key) in enumerate(asked):
        it.to_decode(key)
        it.say(Tokens(1, [key], [at], []))
    it.say(Tokens(2, [key for _, key in asked], list(range(20)), [key for _, key in asked]))
    for at, (client, _) in enumerate(asked):
        text = json.loads(client.getresponse().read())["choices"][0]["text"]
        assert text == vocabulary.word(at) * 2


def test_clients_beyond_the_bound_are_told_so_and_the_others_go_on(house, monkeypatch):
    monkeypatch.setattr(module, "most_clients", lambda _workers: 1)
    it = house()
    stays = it.client()
    stays.request("GET", "/live")
    assert stays.getresponse().read() == b""
    other = http.client.HTTPConnection("127.0.0.1", it.port, timeout=WAIT_S)
    other.connect()
    time.sleep(0.05)
    told = http.client.HTTPResponse(other.sock)
    told.begin()
    assert told.status == 503
    assert "as many connections are open as this server may have" in json.loads(told.read())["error"]["message"]
    other.close()
    stays.request("GET", "/live")
    assert stays.getresponse().status == 503


def test_an_answer_a_client_is_slow_to_read_arrives_whole(house, monkeypatch):
    def with_a_small_buffer(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        return Connection(sock)

    monkeypatch.setattr(module, "Connection", with_a_small_buffer)
    it = house(max_tokens=20_000)
    it.open()
    client, key = it.ask(max_tokens=2_000, stream=True)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    it.to_decode(key)
    for at in range(2_000):
        it.say(Tokens(at, [key], [at % 100], [key] if at == 1_999 else []))
    while it.frontend._router.in_flight:  # all of it is written, and most of it not read
        pass
    body = client.getresponse().read()
    assert body.count(b"data: ") == 2_001
    assert body.endswith(b"[DONE]\n\n")


def test_an_address_in_use_is_said_to_the_parent_and_the_process_ends(tmp_path, monkeypatch):
    context = zmq.Context()
    control = context.socket(zmq.ROUTER)
    control.setsockopt(zmq.RCVTIMEO, int(WAIT_S * 1000))
    control.bind(f"ipc://{tmp_path}/control")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        spec = FrontendSpec(
            host="127.0.0.1", port=port, model="m", operation="READ", max_tokens=9, control=f"ipc://{tmp_path}/control",
            inbox=f"ipc://{tmp_path}/inbox", prefill=(), decode=(),
        )  # fmt: skip
        monkeypatch.setattr(module, "die_with_parent", lambda _parent: None)
        monkeypatch.setattr(module, "signal", SimpleNamespace(signal=lambda *_: None, SIGINT=2, SIG_IGN=None))
        monkeypatch.setattr(module.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(encode(spec))))
        with pytest.raises(SystemExit) as caught:
            module.main()
    assert caught.value.code == 1
    identity, raw = control.recv_multipart()
    died = msgspec.msgpack.decode(raw, type=ToParent)
    assert identity == b"frontend-0"
    assert isinstance(died, Died)
    assert died.reason.startswith(f"cannot listen on 127.0.0.1:{port}: {os.strerror(98)}")
    context.destroy(linger=0)
