"""/metrics beside a run: the scraping process against servers that behave and servers that do not."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration import test_load_tls
from integration.test_load_driver import Server as Recorder
from integration.test_load_tls import Server as Secure
from kvgauge.load.headers import Headers
from kvgauge.load.tls import Tls
from kvgauge.samples.files import seal, stream_path
from kvgauge.samples.read import load_metrics, load_transfers
from kvgauge.scrape.changes import UP
from kvgauge.scrape.scraper import Scraper, Watching
from kvgauge.scrape.source import FETCH_TIMEOUT_S, same_server
from scene import children_of

certificates = test_load_tls.certificates  # a fixture
RSS_BYTES_MAX = 400 << 20

PLAN = """
name: scraped
repetitions: 1
primary: {metric: ttft_ms_mean, cell: p-2}
baseline: UCX
defaults: {fabric: tcp, model: Qwen3-0.6B, tp: 1, patches: none, build: 1.5.0}
tests:
  - {name: UCX, backend: UCX}
cells:
  - {name: hello, load: single, concurrency: 1, prompt: Hello, output_tokens: 5, requests: 3, warmup_requests: 1}
  - {name: p, load: closed, concurrency: [1, 2], input_tokens: 64, output_tokens: 60, requests: 6, warmup_requests: 2}
"""


def kvgauge(*arguments, cwd):
    command = [sys.executable, "-m", "kvgauge", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def serving(answer):
    """A server whose every connection is given to `answer(sock)` in a thread of its own; gives its /metrics URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def one(sock):
        with sock:
            try:
                sock.settimeout(5)
                sock.recv(4096)
                answer(sock)
            except OSError:
                pass

    def accept():
        while not stopped.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
    finally:
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def http(body, status="200 OK"):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


class Counting:
    """A server that counts its own scrapes."""

    def __init__(self):
        self.asked = 0

    def __call__(self, sock):
        self.asked += 1
        sock.sendall(http(b"# TYPE scrapes counter\nscrapes_total %d\nidle 7\n" % self.asked))


def hang(_sock):
    time.sleep(20)


def trickle(sock):
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(100):
        sock.sendall(b"a 1\n")
        time.sleep(0.1)


def endless(sock):
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
    block = b"a_metric_with_a_name 1\n" * 40_000
    for _ in range(1_200):
        sock.sendall(block)


def many_series(sock):
    body = b"".join(b"a%d 1\n" % number for number in range(100_000))
    sock.sendall(http(body))


HOSTILE = {
    "hangs": (hang, "no answer in time|timed out"),
    "trickles": (trickle, "no answer in time|timed out"),
    "sends 1 GB": (endless, "more than 17 MiB|no answer in time|timed out"),
    "sends a page": (lambda sock: sock.sendall(http(b"<html>\n<body>hello</body>\n</html>")), "no series"),
    "sends noise": (lambda sock: sock.sendall(os.urandom(50_000)), "not HTTP|HTTP"),
    "sends noise as a body": (lambda sock: sock.sendall(http(os.urandom(50_000))), "no series"),
    "is not there": (lambda sock: sock.sendall(http(b"", "404 Not Found")), "HTTP 404"),
    "hangs up": (lambda _sock: None, "closed|reset"),
}


def points_of(folder, name=None, source=None):
    return [
        point
        for point in load_metrics(folder)
        if (name is None or point.name == name) and (source is None or point.source == source)
    ]


def rss_bytes(pid):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_server_that_misbehaves_is_a_gap_with_its_reason_and_disturbs_no_other(kind, tmp_path):
    answer, reason = HOSTILE[kind]
    good = Counting()
    with serving(answer) as bad_url, serving(good) as good_url:
        with Scraper(tmp_path, "r1", Watching(urls=(bad_url, good_url), interval_s=0.2)) as scraper:
            scraper.watch(good_url)
            scraper.mark()
            begin_ns, end_ns = scraper.mark()
            assert end_ns - begin_ns < (FETCH_TIMEOUT_S + 1.5) * 1e9
            time.sleep(FETCH_TIMEOUT_S + 0.5)
            peak = rss_bytes(scraper.pid)
        assert peak < RSS_BYTES_MAX
        ups = points_of(tmp_path, UP, bad_url)
        assert ups
        assert {point.value for point in ups} == {0.0}
        assert any(part in ups[0].detail for part in reason.split("|")), ups[0].detail
        assert {point.name for point in points_of(tmp_path, source=bad_url)} == {UP}
        theirs = points_of(tmp_path, "scrapes_total", good_url)
        assert len(theirs) >= FETCH_TIMEOUT_S / 0.2 / 3
        assert [point.value for point in theirs] == list(range(1, good.asked + 1))


def test_too_many_series_are_cut_and_said_to_be(tmp_path):
    with serving(many_series) as url, Scraper(tmp_path, "r1", Watching(urls=(url,), interval_s=60)) as scraper:
        scraper.watch(url)
        scraper.mark()
    head = points_of(tmp_path, UP)[0]
    assert (head.value, head.detail) == (1.0, "only the first 20,000 series were read")
    assert len({point.name for point in points_of(tmp_path)}) == 20_001


def test_only_what_changed_is_written_and_a_mark_scrapes_between_its_two_stamps(tmp_path):
    good = Counting()
    with serving(good) as url, Scraper(tmp_path, "r1", Watching(urls=(url,), interval_s=60)) as scraper:
        scraper.watch(url)
        scraper.mark()
        windows = [scraper.mark() for _ in range(3)]
    assert len(points_of(tmp_path, "idle")) == 1
    counts = points_of(tmp_path, "scrapes_total")
    for begin_ns, end_ns in windows:
        assert [begin_ns <= point.time_ns <= point.done_ns <= end_ns for point in counts].count(True) == 1
    assert abs(counts[0].realtime_ns - time.time_ns()) < 60e9
    assert not (tmp_path / "scraper.log").exists()
    seal(tmp_path)
    assert points_of(tmp_path, "scrapes_total") == counts


def test_a_source_nobody_named_is_given_up_when_it_never_answers(tmp_path):
    asked = []
    with serving(asked.append) as url, Scraper(tmp_path, "r1", Watching(interval_s=0.1)) as scraper:
        scraper.watch(url.replace("/metrics", "/v1"))
        scraper.mark()
        time.sleep(1.5)
    assert len(points_of(tmp_path, UP, url)) == len(asked) == 3


def test_a_scraper_that_is_killed_costs_the_rest_of_its_scrapes_and_nothing_else(tmp_path):
    with serving(Counting()) as url, Scraper(tmp_path, "r1", Watching(urls=(url,), interval_s=60)) as scraper:
        scraper.watch(url)
        scraper.mark()
        os.kill(scraper.pid, signal.SIGKILL)
        begin_ns, end_ns = scraper.mark()
        assert end_ns - begin_ns < 1e9
    assert [point.value for point in points_of(tmp_path, "scrapes_total")] == [1.0, 2.0][
        : len(points_of(tmp_path, "scrapes_total"))
    ]
    assert points_of(tmp_path, "scrapes_total")
    seal(tmp_path)
    assert not stream_path(tmp_path, "metrics").exists()
    assert points_of(tmp_path, "scrapes_total")


def test_a_scraper_ends_when_whoever_started_it_is_killed_and_leaves_a_whole_stream(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom kvgauge.scrape.scraper import Scraper, Watching\n"
        "with Scraper(Path(sys.argv[1]), 'r1', Watching(interval_s=0.1)) as scraper:\n"
        "    scraper.watch(sys.argv[2]); scraper.mark(); print('ready', flush=True); time.sleep(60)\n"
    )
    with serving(Counting()) as url:
        owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), url], stdout=subprocess.PIPE)
        assert owner.stdout.readline() == b"ready\n"
        (child,) = children_of(owner.pid)
        owner.kill()
        owner.wait()
        owner.stdout.close()
        until = time.monotonic() + 10
        while Path(f"/proc/{child}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()
    assert stream_path(tmp_path, "metrics").read_bytes().endswith(b"\xff\xff\xff\xff\0\0\0\0")
    assert points_of(tmp_path, "scrapes_total")


def test_the_requests_headers_go_to_metrics_of_their_own_server_only_and_keys_reach_no_disk(tmp_path):
    key = "sk-a-key-nobody-shall-see"
    told = http(f'# TYPE a gauge\na{{echo="{key}"}} 1\n'.encode())

    def answer(sock, nth, request):
        sock.sendall(told)
        return False

    headers = Headers((("X-Plain", "said"),), (("Authorization", f"Bearer {key}"),))
    with Recorder(answer) as own, Recorder(answer) as other:
        urls = (f"{own.url}/worker/metrics", f"{other.url}/metrics")
        watching = Watching(urls=urls, interval_s=60)
        with Scraper(tmp_path, "r1", watching, headers=headers) as scraper:
            scraper.watch(f"{own.url}/v1")
            scraper.mark()
            command = Path(f"/proc/{scraper.pid}/cmdline").read_bytes()
    paths = {request.split()[1] for request in own.requests}
    assert paths == {b"/metrics", b"/worker/metrics"}
    assert all(f"Authorization: Bearer {key}\r\n".encode() in request for request in own.requests)
    assert all(b"X-Plain: said\r\n" in request for request in own.requests)
    assert other.requests
    assert not any(key.encode() in request or b"X-Plain" in request for request in other.requests)
    assert key.encode() not in command
    seen = {point.source for point in points_of(tmp_path, "a")}
    assert seen == {f"{own.url}/metrics", *urls}  # each kept apart by its source
    labels = {point.labels for point in points_of(tmp_path, "a") if point.source != urls[1]}
    assert labels == {f'echo="{"*" * len(key)}"'}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://h:8000/v1", "http://H:8000/metrics", True),
        ("https://h/v1", "https://h:443/metrics", True),
        ("http://h:8000", "http://h:8001/metrics", False),
        ("http://h:8000", "http://h.example:8000/metrics", False),
        ("https://h:8000", "http://h:8000/metrics", False),  # a key would go in the clear
    ],
)
def test_a_server_is_the_same_by_scheme_host_and_port(one, other, same):
    assert same_server(one, other) is same


@pytest.mark.parametrize(
    ("which", "insecure", "up"), [("good", False, True), ("old", False, False), ("old", True, True)]
)
def test_metrics_over_https_are_scraped_as_the_certificates_are_to_be_checked(
    tmp_path, certificates, which, insecure, up
):
    tls = Tls(insecure=True) if insecure else Tls(ca_file=certificates.ca)
    answer = http(b"# TYPE a gauge\na 1\n").replace(b"Connection: close\r\n", b"")
    with (
        Secure(getattr(certificates, which), certificates.key, lambda sock, nth: False, got=answer) as server,
        Recorder(lambda sock, nth, request: sock.sendall(answer)) as plain,
    ):
        watching = Watching(urls=(f"{plain.url}/metrics",), interval_s=60)
        with Scraper(tmp_path, "r1", watching, tls=tls) as scraper:
            scraper.watch(server.url)
            scraper.mark()
            scraper.mark()
    ups = points_of(tmp_path, UP, f"{server.url}/metrics")
    assert {point.value for point in ups} == {float(up)}, ups[0].detail
    assert {point.value for point in points_of(tmp_path, UP, f"{plain.url}/metrics")} == {1.0}
    if not up:
        assert "expired" in ups[0].detail


@pytest.mark.nixl
def test_what_the_server_counted_in_each_cell_is_what_the_client_saw(tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN)
    done = kvgauge("run", "plan.yaml", "--out", "out", "--metrics-interval", "0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (test,) = json.loads((tmp_path / "out" / "results.json").read_text())["tests"]
    folder = tmp_path / "out" / "runs" / "r1-ucx"
    cells = [run for run in test["runs"] if run["cell"]]
    assert [run["cell"] for run in cells] == ["hello", "p-1", "p-2"]
    moved = 0
    for run in cells:
        server, client = run["server"], run["server"]["client"]
        (source,) = server["sources"]
        assert source["gaps"] == 0
        assert "resets" not in source
        values = {value["quantity"]: value["point"] for value in server["values"]}
        assert client["failed"] == 0
        assert client["requests"] == (4 if run["cell"] == "hello" else 8)
        assert values["requests"] == values["first_tokens"] == values["kv_transfers"] == client["requests"]
        assert (
            values["output_tokens"]
            == client["output_tokens"]
            == client["requests"] * (5 if run["cell"] == "hello" else 60)
        )
        assert 0 < values["ttft_ms_mean"] <= client["ttft_ms_mean"]
        assert values["kv_failures"] == 0
        moved += values["kv_bytes"]
    assert {value["quantity"]: value["point"] for value in cells[2]["server"]["values"]}["requests_running_max"] == 2
    assert moved == sum(transfer.bytes_listed for transfer in load_transfers(folder))
    assert not list(folder.glob("*.arrows"))
    assert test["runs"][0]["server"] is None
    line = next(line for line in done.stdout.splitlines() if line.startswith("server in p-2"))
    assert "the client's" in line


@pytest.mark.nixl
def test_nothing_is_scraped_when_that_is_asked_for(tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN)
    done = kvgauge("run", "plan.yaml", "--out", "out", "--metrics-interval", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "out").rglob("metrics.*"))
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["tests"][0]["runs"]
    assert {str(run["server"]) for run in runs} == {"None"}
    assert "server in" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--metrics-url", "http://me:secret@127.0.0.1:1/metrics"), "password"),
        (("--metrics-url", "ftp://127.0.0.1/metrics"), "http"),
        (("--metrics-interval", "0.01"), "0.1 to 3600"),
        (("--metrics-interval", "nan"), "0.1 to 3600"),
        (("--metrics-interval", "0", "--metrics-url", "http://127.0.0.1:1"), "scrapes nothing"),
    ],
)
def test_what_cannot_be_scraped_is_refused_before_anything_starts(arguments, said, tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN)
    done = kvgauge("run", "plan.yaml", "--out", "out", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()
