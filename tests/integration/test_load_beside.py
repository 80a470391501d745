"""The paired driver against two real servers on 127.0.0.1."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kvgauge.load.beside import Arm, PairedDriver
from scene import make_cell

EVENTS = (
    {"id": "1", "choices": [{"text": "a"}]},
    {"id": "1", "choices": [{"text": "b"}]},
    {"choices": [], "usage": {"prompt_tokens": 16, "completion_tokens": 2}},
)
WHOLE = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in EVENTS) + b"data: [DONE]\n\n"


@contextmanager
def server(name, asked, *, hangs_up=False):
    """Answers every request with two tokens, and notes it; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer leaves in one piece

        def do_POST(self):
            asked.append((name, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            if hangs_up:
                self.close_connection = True
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(WHOLE)))
            self.end_headers()
            self.wfile.write(WHOLE)
            self.wfile.flush()

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


def offer(cell, *, stop_after=None, hangs_up=False):
    asked, taken = [], []
    with (
        server("A", asked) as one,
        server("B", asked, hangs_up=hangs_up) as other,
        PairedDriver((Arm(url=one, model="m-a"), Arm(url=other, model="m-b")), host="h") as driver,
    ):
        loads = driver.run_cell(
            cell,
            run_ids=("r1-a", "r1-b"),
            seed=3,
            on_exchange=lambda arm, exchange, pair: taken.append((arm, exchange, pair)),
            enough=lambda: stop_after is not None and len(taken) >= stop_after,
        )
    return asked, taken, loads


@pytest.mark.parametrize(
    "changes",
    [
        {"load": "single", "concurrency": 1},
        {"load": "closed", "concurrency": 4},
        {"load": "wave", "concurrency": 4},
        {"load": "constant", "concurrency": 8, "rate": 500.0},
    ],
)
def test_each_pair_is_one_request_of_each_arm_and_no_prompt_comes_twice(changes):
    cell = make_cell(name="p", requests=40, warmup_requests=4, input_tokens=16, output_tokens=2, **changes)
    asked, taken, loads = offer(cell)
    assert [each.failure for _, each, _ in taken] == [None] * 44
    assert len(asked) == 44
    assert {(name, body["model"]) for name, body in asked} == {("A", "m-a"), ("B", "m-b")}
    assert len({tuple(body["prompt"]) for _, body in asked}) == 44
    assert {arm: each.run_id for arm, each, _ in taken} == {0: "r1-a", 1: "r1-b"}
    warm = Counter(arm for arm, each, pair in taken if each.warmup)
    assert warm == {0: 2, 1: 2}
    assert {pair for _, each, pair in taken if each.warmup} == {None}
    pairs = {}
    for arm, each, pair in taken:
        if not each.warmup:
            pairs.setdefault(pair, []).append((arm, each))
    whole = [sorted(arm for arm, _ in two) for two in pairs.values() if len(two) == 2]
    assert all(arms == [0, 1] for arms in whole)
    assert len(whole) >= 20 - cell.concurrency
    if cell.load in ("closed", "wave"):
        assert all(len({each.slot for _, each in two}) == 1 for two in pairs.values())
        assert {each.slot for _, each, _ in taken} == {0, 1, 2, 3}
    assert sum(load.offered for load in loads) == 40
    assert sum(load.completed for load in loads) == 40


def test_one_after_another_the_arms_alternate_as_drawn_and_never_thrice():
    cell = make_cell(
        name="p", load="single", concurrency=1, requests=60, warmup_requests=2, input_tokens=16, output_tokens=2
    )
    asked, _, _ = offer(cell)
    names = [name for name, _ in asked][2:]
    assert all(set(names[at : at + 2]) == {"A", "B"} for at in range(0, 60, 2))
    assert {names[at] for at in range(0, 60, 2)} == {"A", "B"}, "which comes first is drawn"


def test_enough_ends_the_load_and_says_so():
    cell = make_cell(
        name="p", load="single", concurrency=1, requests=100_000, warmup_requests=2, input_tokens=16, output_tokens=2
    )
    _, taken, loads = offer(cell, stop_after=30)
    assert 30 <= len(taken) < 10_000
    assert all(load.enough and not load.interrupted for load in loads)


def test_an_arm_that_hangs_up_fails_its_own_requests_only():
    cell = make_cell(
        name="p", load="closed", concurrency=2, requests=20, warmup_requests=2, input_tokens=16, output_tokens=2
    )
    _, taken, _ = offer(cell, hangs_up=True)
    assert {each.failure for arm, each, _ in taken if arm == 0} == {None}
    assert None not in {each.failure for arm, each, _ in taken if arm == 1}
    assert len(taken) == 22
