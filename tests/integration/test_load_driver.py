"""The load driver against a real server on 127.0.0.1 that does what servers do, and what they should not."""

import contextlib
import gc
import itertools
import json
import random
import socket
import struct
import threading
import time

import pytest

from kvgauge.failures import LoadError
from kvgauge.load.drive import Driver
from kvgauge.load.site import models, wait_ready
from kvgauge.plan.records import Cell
from kvgauge.samples.files import SampleWriter
from kvgauge.samples.read import load_exchanges

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def framed(event):
    data = b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def text(word):
    return framed({"id": "cmpl-1", "choices": [{"text": word}]})


def usage(count):
    return framed({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": count}})


DONE = framed(b"[DONE]")
WHOLE = HEAD + text("a") + text("b") + usage(2) + DONE + END


def plain(status, body, more=b""):
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s" % (
        status,
        more,
        len(body),
        body,
    )


class Server:
    """A thread for each connection; `answer(sock, nth, request)` writes one answer, False closes the connection.

    nth  requests on this connection before this one
    """

    def __init__(self, answer):
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._socks, self._lock = [], threading.Lock()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests, self.connections = [], 0
        self.now_under_way = self.most_under_way = 0

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        for sock in [self._listener, *self._socks]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socks.append(sock)
                self.connections += 1
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        nth, pending = 0, bytearray()
        with contextlib.suppress(OSError), sock:
            while True:
                whole = None
                while whole is None or len(pending) < whole:
                    data = sock.recv(1 << 20)
                    if not data:
                        return
                    pending += data
                    whole = whole or self._whole(pending)
                request = bytes(pending[:whole])
                del pending[:whole]
                with self._lock:
                    self.requests.append(request)
                    self.now_under_way += 1
                    self.most_under_way = max(self.most_under_way, self.now_under_way)
                try:
                    goes_on = self._answer(sock, nth, request)
                finally:
                    with self._lock:
                        self.now_under_way -= 1
                if goes_on is False:
                    return
                nth += 1

    @staticmethod
    def _whole(pending):
        """Bytes of the request that begins here; None until its head is whole."""
        end = pending.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = [line for line in pending[:end].split(b"\r\n") if line.lower().startswith(b"content-length:")]
        return end + 4 + (int(length[0].split(b":")[1]) if length else 0)


def send(data):
    return lambda sock, nth, request: sock.sendall(data)


def cell(**changes):
    given = {
        "name": "c",
        "load": "closed",
        "concurrency": 1,
        "requests": 1,
        "output_tokens": 2,
        "warmup_requests": 0,
        "prompt": "Hello",
    }
    return Cell(**{**given, **changes})


def offer(url, changes=None, *, tick=None, stop=lambda: False, **options):
    exchanges = []
    with Driver(url, "m", host="here", **{"request_timeout_s": 5, **options}) as driver:
        load = driver.run_cell(
            cell(**(changes or {})), run_id="r", seed=1, on_exchange=exchanges.append, tick=tick, stop=stop
        )
    return load, sorted(exchanges, key=lambda each: each.seq)


def only(answer, **options):
    """The one exchange with a server that answers so."""
    with Server(answer) as server:
        _, [exchange] = offer(server.url, **options)
    return exchange


def test_an_ordinary_stream_becomes_an_ordinary_exchange():
    exchange = only(send(WHOLE))
    assert (exchange.failure, exchange.status, exchange.tokens_in, exchange.tokens_out) == (None, 200, 3, 2)
    assert exchange.due_ns <= exchange.sent_ns < exchange.arrivals_ns[0] <= exchange.arrivals_ns[1] <= exchange.done_ns
    assert (exchange.host, exchange.run_id, exchange.cell, exchange.request_id) == ("here", "r", "c", "cmpl-1")
    assert (exchange.clock, exchange.stamp_source) == ("monotonic", "kernel")


def test_arrivals_are_stamped_when_they_arrive_and_not_when_they_are_read():
    def slowly(sock, nth, request):
        for part in (HEAD, text("a"), text("b"), text("c"), usage(3) + DONE + END):
            sock.sendall(part)
            time.sleep(0.05)

    exchange = only(slowly)
    gaps = [after - before for before, after in zip(exchange.arrivals_ns, exchange.arrivals_ns[1:], strict=False)]
    assert len(gaps) == 2
    assert all(45e6 < gap < 1e9 for gap in gaps)


def test_an_answer_may_be_cut_anywhere_by_the_network():
    rng = random.Random(5)

    def in_pieces(sock, nth, request):
        at = 0
        while at < len(WHOLE):
            step = rng.randint(1, 40)
            sock.sendall(WHOLE[at : at + step])
            at += step
            time.sleep(0.0002)

    with Server(in_pieces) as server:
        load, exchanges = offer(server.url, {"requests": 20, "concurrency": 4})
    assert load.completed == 20
    assert {(len(each.arrivals_ns), each.tokens_out) for each in exchanges} == {(2, 2)}


def test_closed_loop_keeps_its_slots_busy_and_its_connections_open():
    def answer(sock, nth, request):
        time.sleep(0.01)
        sock.sendall(WHOLE)

    with Server(answer) as server:
        load, exchanges = offer(server.url, {"requests": 40, "concurrency": 4, "warmup_requests": 6})
        assert (server.connections, server.most_under_way) == (4, 4)
    assert (load.offered, load.completed, load.failed, load.warmups) == (40, 40, 0, 6)
    assert [each.seq for each in exchanges] == list(range(46))
    assert [each.warmup for each in exchanges] == [True] * 6 + [False] * 40
    measured = exchanges[6:]
    assert load.started_ns == min(each.due_ns for each in measured)
    assert load.ended_ns == max(each.arrivals_ns[-1] for each in measured)
    assert 0 <= load.late_ns_mean <= load.late_ns_max
    assert load.stagger_ns > 0
    starts = [min(each.due_ns for each in measured if each.slot == slot) for slot in range(4)]
    assert [start - starts[0] for start in starts] == [load.stagger_ns * slot // 4 for slot in range(4)]
    for slot in range(4):
        mine = sorted((each for each in measured if each.slot == slot), key=lambda each: each.seq)
        for before, after in itertools.pairwise(mine):
            assert before.done_ns <= after.due_ns <= after.sent_ns, (
                "due when its end was read, which is after it arrived"
            )


def test_a_wave_starts_when_the_wave_before_it_has_ended():
    with Server(send(WHOLE)) as server:
        _, exchanges = offer(server.url, {"load": "wave", "requests": 9, "concurrency": 4})
    waves = [exchanges[0:4], exchanges[4:8], exchanges[8:9]]
    for wave, following in itertools.pairwise(waves):
        assert len({each.due_ns for each in wave}) == 1
        assert following[0].due_ns >= max(each.done_ns for each in wave)


def test_single_has_one_request_under_way():
    with Server(send(WHOLE)) as server:
        load, _ = offer(server.url, {"load": "single", "requests": 5, "concurrency": 3})
        assert server.most_under_way == 1
    assert load.completed == 5


def test_no_two_unique_prompts_are_alike_warm_up_included():
    with Server(send(WHOLE)) as server:
        offer(server.url, {"prompt": None, "input_tokens": 64, "requests": 30, "warmup_requests": 10, "concurrency": 5})
        prompts = [json.loads(request.partition(b"\r\n\r\n")[2])["prompt"] for request in server.requests]
    assert {len(prompt) for prompt in prompts} == {64}
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 40


def test_chat_and_answers_without_streaming_work_too():
    said = plain(200, b'{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":7}}')
    with Server(send(said)) as server:
        _, [exchange] = offer(server.url, {"api": "chat", "stream": False})
        assert server.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert (exchange.failure, exchange.tokens_out, len(exchange.arrivals_ns)) == (None, 7, 1)


def test_a_status_other_than_200_is_a_failure_with_the_servers_message():
    exchange = only(send(plain(429, b'{"error":{"message":"queue is full"}}')))
    assert (exchange.failure, exchange.status, exchange.detail) == ("status", 429, "HTTP 429: queue is full")


def test_an_error_event_inside_a_200_stream_is_a_failure():
    exchange = only(send(HEAD + text("a") + framed({"error": {"message": "decode died"}}) + DONE + END))
    assert (exchange.failure, exchange.detail, len(exchange.arrivals_ns)) == ("error_event", "decode died", 1)


def wait_for_close(sock):
    with contextlib.suppress(OSError):
        sock.recv(1)


def test_silence_inside_a_stream_is_a_stall_within_its_limit():
    def stalls(sock, nth, request):
        sock.sendall(HEAD + text("a"))
        wait_for_close(sock)
        return False

    began = time.monotonic()
    exchange = only(stalls, stall_timeout_s=0.3)
    assert (exchange.failure, len(exchange.arrivals_ns)) == ("stall", 1)
    assert 0.3 < time.monotonic() - began < 15


def test_silence_from_the_start_is_no_first_token():
    def silent(sock, nth, request):
        wait_for_close(sock)
        return False

    exchange = only(silent, request_timeout_s=0.3)
    assert (exchange.failure, exchange.status, exchange.arrivals_ns) == ("no_first_token", None, ())


def test_a_stream_that_never_ends_is_timed_out():
    def drips(sock, nth, request):
        sock.sendall(HEAD)
        while True:
            sock.sendall(text("a"))
            time.sleep(0.02)

    exchange = only(drips, request_timeout_s=0.4)
    assert exchange.failure == "timeout"
    assert len(exchange.arrivals_ns) > 5


@pytest.mark.parametrize("came", [HEAD + text("a"), HEAD, b"HTTP/1.1 200"])
def test_a_stream_that_breaks_off_is_truncated(came):
    def breaks(sock, nth, request):
        sock.sendall(came)
        return False

    exchange = only(breaks)
    assert exchange.failure == "truncated"
    assert "closed the connection" in exchange.detail


@pytest.mark.parametrize(
    "came", [b"\x16\x03\x01\x00\x02\x02\x28", HEAD + b"zz\r\n", HEAD + framed(b"{oops") + DONE + END]
)
def test_garbage_is_malformed(came):
    def garbage(sock, nth, request):
        sock.sendall(came)
        wait_for_close(sock)
        return False

    assert only(garbage, request_timeout_s=1).failure == "malformed"


def test_after_each_failure_the_slot_goes_on_with_a_new_connection():
    answers = [WHOLE, b"nonsense\r\n", WHOLE, HEAD + text("a"), plain(500, b"{}", b"Connection: close\r\n"), WHOLE]
    left = list(answers)

    def answer(sock, nth, request):
        data = left.pop(0)
        sock.sendall(data)
        return data is WHOLE

    with Server(answer) as server:
        load, exchanges = offer(server.url, {"requests": 6})
    assert [each.failure for each in exchanges] == [None, "malformed", None, "truncated", "status", None]
    assert (load.completed, load.failed) == (3, 3)


def test_a_kept_connection_that_the_server_closed_is_replaced_once():
    def one_each(sock, nth, request):
        if nth:
            return False  # closes on the second request of a connection, unanswered
        sock.sendall(WHOLE)
        return True

    with Server(one_each) as server:
        load, exchanges = offer(server.url, {"requests": 5})
    assert load.completed == 5
    assert exchanges[0].detail is None
    assert all("sent again" in each.detail for each in exchanges[1:])
    assert all(each.failure is None and each.tokens_out == 2 for each in exchanges)


def test_a_server_that_always_hangs_up_fails_each_request_once():
    with Server(lambda sock, nth, request: False) as server:
        load, exchanges = offer(server.url, {"requests": 3, "concurrency": 2})
        assert len(server.requests) <= 2 * 3
    assert load.failed == 3
    assert {each.failure for each in exchanges} == {"truncated"}


def test_connections_closed_between_cells_are_noticed():
    def closes(sock, nth, request):
        sock.sendall(WHOLE)
        return False

    exchanges = []
    with Server(closes) as server, Driver(server.url, "m", host="here") as driver:
        for _ in range(3):
            driver.run_cell(cell(), run_id="r", seed=1, on_exchange=exchanges.append)
            time.sleep(0.05)
    assert [(each.failure, each.detail) for each in exchanges] == [(None, None)] * 3


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_server_that_is_down_fails_every_request_at_once():
    began = time.monotonic()
    load, exchanges = offer(f"http://127.0.0.1:{closed_port()}", {"requests": 50, "concurrency": 5})
    assert time.monotonic() - began < 15
    assert (load.offered, load.failed, load.late_ns_max) == (50, 50, None)
    assert {each.failure for each in exchanges} == {"connect"}
    assert "Connection refused" in exchanges[0].detail


@contextlib.contextmanager
def full_port():
    """A port whose queue of new connections is full: it neither takes nor refuses one."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as held:
        for _ in range(4):
            sock = held.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener


def test_a_connection_that_is_not_made_in_time_is_given_up():
    with full_port() as listener:
        began = time.monotonic()
        _, [exchange] = offer(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_s=0.2)
    assert time.monotonic() - began < 4.9  # 5 without the limit
    assert (exchange.failure, "no connection within 0.2 s" in exchange.detail) == ("connect", True)


def test_a_connection_refused_after_a_while_says_so():
    with full_port() as listener:
        closing = threading.Timer(0.3, listener.close)
        closing.start()
        _, [exchange] = offer(f"http://127.0.0.1:{listener.getsockname()[1]}")
        closing.join()
    assert (exchange.failure, "refused" in exchange.detail) == ("connect", True)


@pytest.mark.parametrize("first", ["refuses", "is silent"])
def test_the_next_address_of_a_name_is_tried(monkeypatch, first):
    with Server(send(WHOLE)) as server, full_port() as listener:
        good = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        bad = ("127.0.0.1", closed_port()) if first == "refuses" else listener.getsockname()
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (bad, good)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        load, _ = offer("http://a-name:80", {"requests": 4, "concurrency": 2}, connect_timeout_s=0.2)
    assert load.completed == 4


def test_a_request_larger_than_the_sockets_buffers_goes_out_whole():
    with Server(send(WHOLE)) as server:
        load, [exchange] = offer(server.url, {"prompt": "x" * 12_000_000})
        assert len(json.loads(server.requests[0].partition(b"\r\n\r\n")[2])["prompt"]) == 12_000_000
    assert load.completed == 1
    assert exchange.sent_ns > exchange.due_ns


def test_an_answer_to_half_a_request_is_taken_and_the_connection_given_up():
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse():
        for _ in range(2):
            sock, _ = listener.accept()
            sock.recv(1_000)
            sock.sendall(plain(413, b'{"error":{"message":"too large"}}'))
            time.sleep(0.1)
            sock.close()

    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    changes = {"prompt": "x" * 12_000_000, "requests": 2}
    load, exchanges = offer(f"http://127.0.0.1:{listener.getsockname()[1]}", changes)
    thread.join(5)
    listener.close()
    assert load.failed == 2
    assert [(each.failure, each.status) for each in exchanges] == [("status", 413)] * 2
    assert load.late_ns_max is None


def test_a_reset_while_the_request_is_still_going_out_is_a_failure():
    listener = socket.create_server(("127.0.0.1", 0))

    def reset():
        for _ in range(2):  # the second is the one try on a new connection
            sock, _ = listener.accept()
            sock.recv(1_000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    thread = threading.Thread(target=reset, daemon=True)
    thread.start()
    _, [exchange] = offer(f"http://127.0.0.1:{listener.getsockname()[1]}", {"prompt": "x" * 12_000_000})
    thread.join(5)
    listener.close()
    assert (exchange.failure, exchange.status) == ("truncated", None)
    assert "the connection broke" in exchange.detail
    assert "sent again" in exchange.detail


def test_a_server_that_dies_under_load_leaves_a_record_of_every_request():
    with Server(send(WHOLE)) as server:

        def answer(sock, nth, request):
            if len(server.requests) > 10:
                server.__exit__()
            sock.sendall(WHOLE)

        server._answer = answer
        load, _ = offer(server.url, {"requests": 60, "concurrency": 4})
    assert load.offered == load.completed + load.failed == 60
    assert load.failed > 30


def test_stop_ends_what_is_under_way_as_interrupted():
    def silent(sock, nth, request):
        wait_for_close(sock)
        return False

    with Server(silent) as server:
        load, exchanges = offer(server.url, {"requests": 20, "concurrency": 3}, stop=lambda: server.most_under_way == 3)
    assert load.interrupted
    assert [each.failure for each in exchanges] == ["interrupted"] * 3
    assert load.offered == 3


def test_stop_during_warm_up_measures_nothing():
    with Server(send(WHOLE)) as server:
        load, _ = offer(server.url, {"warmup_requests": 1_000_000}, stop=lambda: True)
    assert (load.interrupted, load.offered, load.started_ns, load.late_ns_mean) == (True, 0, None, None)


def test_what_a_callback_raises_comes_through_and_the_driver_still_works():
    def fail(_):
        raise ZeroDivisionError

    exchanges = []
    with Server(send(WHOLE)) as server, Driver(server.url, "m", host="here") as driver:
        with pytest.raises(ZeroDivisionError):
            driver.run_cell(cell(requests=50, concurrency=4), run_id="r", seed=1, on_exchange=fail)
        assert gc.isenabled()
        driver.run_cell(cell(requests=5), run_id="r", seed=1, on_exchange=exchanges.append)
    assert [each.failure for each in exchanges] == [None] * 5


def test_samples_reach_the_disk_while_the_cell_lasts(tmp_path):
    def answer(sock, nth, request):
        time.sleep(0.02)
        sock.sendall(WHOLE)

    seen = []
    with Server(answer) as server, SampleWriter(tmp_path, flush_every_ns=100_000_000) as writer:

        def tick():
            writer.flush_due()
            seen.append(len(load_exchanges(tmp_path)))

        with Driver(server.url, "m", host="here") as driver:
            driver.run_cell(cell(requests=30), run_id="r", seed=1, on_exchange=writer.add_exchange, tick=tick)
    assert any(0 < count < 30 for count in seen)
    assert len(load_exchanges(tmp_path)) == 30


def test_proxy_variables_are_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    assert only(send(WHOLE)).failure is None


def test_nothing_refers_to_an_answer_after_its_end():
    with Server(send(WHOLE)) as server:
        offer(server.url, {"requests": 20})
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            offer(server.url, {"requests": 50, "concurrency": 4})
            gc.collect()
            cyclic = [type(each).__name__ for each in gc.garbage if type(each).__name__ in ("Incoming", "Connection")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert cyclic == []


def test_models_are_listed_and_a_server_is_waited_for():
    listing = plain(200, b'{"object":"list","data":[{"id":"Qwen/Qwen3-0.6B","object":"model"}]}')
    starting = plain(503, b'{"error":{"message":"loading"}}')
    left = [starting, starting, listing, listing]
    with Server(lambda sock, nth, request: sock.sendall(left.pop(0))) as server:
        wait_ready(server.url, 5)
        assert models(server.url) == ["Qwen/Qwen3-0.6B"]
        assert server.requests[0].startswith(b"GET /v1/models HTTP/1.1\r\n")


def test_a_server_that_lists_no_model_is_not_ready_yet():
    empty, listing = plain(200, b'{"object":"list","data":[]}'), plain(200, b'{"data":[{"id":"m"}]}')
    with Server(send(empty)) as server, pytest.raises(LoadError, match=r"\(last: it lists no model yet\)"):
        wait_ready(server.url, 0.3)
    left = [empty, empty, listing]
    with Server(lambda sock, nth, request: sock.sendall(left.pop(0))) as server:
        wait_ready(server.url, 5)
    assert left == []


def test_a_server_that_does_not_come_up_is_one_clear_message():
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(LoadError, match=r"not ready within 0\.3 s \(last: Connection refused\)"):
        wait_ready(url, 0.3)
    with pytest.raises(LoadError, match="does not answer"):
        models(url)


@pytest.mark.parametrize(("said", "match"), [(plain(404, b"{}"), "HTTP 404"), (plain(200, b"[1]"), "not a list")])
def test_a_server_without_a_list_of_models_says_to_name_one(said, match):
    with Server(send(said)) as server, pytest.raises(LoadError, match=match):
        models(server.url)
