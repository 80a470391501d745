"""Two hosts: who may join, what is relayed, and what happens when one of the two is lost. Real sockets on loopback."""

import threading
import time

import msgspec
import pytest
import zmq

from kvgauge.builds.records import Build
from kvgauge.failures import TargetError, UsageError
from kvgauge.xfer import listen as listening
from kvgauge.xfer import remote
from kvgauge.xfer.listen import Listener, refuse_everywhere
from kvgauge.xfer.messages import Filled, Step, encode
from kvgauge.xfer.places import Job
from kvgauge.xfer.remote import There, address_of, new_token, secret_key, server_socket, token_here
from kvgauge.xfer.workload import Workload

WORK = Workload(name="w", blocks=4, block_bytes=64)
JOB = Job(side="target", count=1, work=WORK, backend="UCX")
TOKEN = "t" * 20


class Place:
    """Workers that are not there: what they are told is answered by the same words, or by nothing."""

    def __init__(self):
        self.build = Build(name="1.5.0", version="1.5.0", folder="", module="", preload=(), libcuda="", sha256={})
        self.context = zmq.Context.instance()
        self.socket = self.context.socket(zmq.PULL)
        self.socket.bind("inproc://nobody-" + str(id(self)))
        self.jobs, self.said, self.waiting, self.killed, self.how = [], [], [], 0, None

    def start(self, job):
        self.jobs.append(job)
        return ["target-0"]

    def say_raw(self, name, raw):
        self.said.append((name, raw))
        self.waiting.append((name, encode(Filled(7))))

    def hear_raw(self, _wait_s):
        return self.waiting.pop(0) if self.waiting else None

    def trouble(self):
        return self.how

    def end(self):
        return {"target-0": "its log"}

    def kill(self):
        self.killed += 1


@pytest.fixture
def host(monkeypatch):
    """A listener in a thread: (port, its place, how it ended)."""
    monkeypatch.setattr(remote, "ANSWER_S", 1.0)
    context = zmq.Context()
    place, ended = Place(), []
    socket = server_socket(context, TOKEN, "127.0.0.1", 0)
    port = int(socket.getsockopt(zmq.LAST_ENDPOINT).rsplit(b":", 1)[1])
    listener = Listener(socket, place, "lo", lambda: 1 << 20)

    def serve():
        try:
            listener.serve(1.6, lambda _line: None)
            ended.append("over")
        except TargetError as error:
            ended.append(str(error))

    thread = threading.Thread(target=serve)
    thread.start()
    yield port, place, ended
    thread.join(10)
    assert not thread.is_alive()
    assert place.killed == 1  # whatever happened, no worker is left
    socket.close(linger=0)
    context.destroy(linger=0)


def hear(there, wait_s=5.0):
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        if (heard := there.hear(0.1)) is not None:
            return heard
    return None


def test_a_session_starts_workers_relays_both_ways_and_ends(host):
    port, place, ended = host
    there = There("127.0.0.1", port, TOKEN)
    opened = there.open()
    assert (opened.build, opened.identity, opened.interface) == ("1.5.0", place.build.identity, "lo")
    assert there.start(JOB) == ["target-0"]
    assert place.jobs == [JOB]
    there.say("target-0", Step("anything"))  # type: ignore[arg-type]
    assert hear(there) == ("target-0", Filled(7))
    assert place.said == [("target-0", encode(Step("anything")))]
    assert there.end() == {"target-0": "its log"}
    there.close()
    wait_for(ended)
    assert ended == ["over"]


def wait_for(ended, seconds=8.0):
    until = time.monotonic() + seconds
    while not ended and time.monotonic() < until:
        time.sleep(0.02)


def test_a_stranger_with_another_token_is_answered_by_nobody_and_the_host_waits_on(host):
    port, _place, ended = host
    stranger = There("127.0.0.1", port, "another token altogether")
    with pytest.raises(TargetError, match="started with the same KVGAUGE_XFER_TOKEN"):
        stranger.open()
    stranger.close()
    wait_for(ended)
    assert ended == ["nobody with this token came within 1.6 s"]


def test_plain_bytes_from_a_stranger_change_nothing(host):
    import socket

    port, _place, ended = host
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    there = There("127.0.0.1", port, TOKEN)
    assert there.open().refused is None
    there.close()
    wait_for(ended)
    assert ended == ["over"]


def test_a_second_session_is_refused_while_the_first_lasts(host):
    port, _place, _ended = host
    first, second = There("127.0.0.1", port, TOKEN), There("127.0.0.1", port, TOKEN)
    first.open()
    with pytest.raises(TargetError, match="takes no part: another session is under way"):
        second.open()
    second.close()
    assert first.start(JOB) == ["target-0"]
    first.close()


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"side": "initiator"}, "runs targets only"),
        ({"count": 2}, "2 targets were asked for, 1 belong to the row"),
        ({"work": msgspec.structs.replace(WORK, blocks=0)}, "at least 1"),
        ({"work": msgspec.structs.replace(WORK, blocks=1 << 10, block_bytes=1 << 20)}, "MiB are available"),
    ],
)
def test_a_job_the_host_will_not_do_is_refused_with_the_reason(host, job, said):
    port, place, _ended = host
    there = There("127.0.0.1", port, TOKEN)
    there.open()
    with pytest.raises(TargetError, match=said):
        there.start(msgspec.structs.replace(JOB, **job))
    assert place.jobs == []
    there.close()


def test_a_host_that_is_lost_is_noticed(host, monkeypatch):
    port, _place, _ended = host
    there = There("127.0.0.1", port, TOKEN)
    there.open()
    there._send(remote.Close())
    monkeypatch.setattr(remote, "SILENCE_S", 0.5)
    with pytest.raises(TargetError, match="its kvgauge or the network is gone"):
        hear(there)
    there.close()


def test_a_session_whose_other_side_is_gone_ends(host, monkeypatch):
    port, _place, ended = host
    monkeypatch.setattr(listening, "SILENCE_S", 0.3)
    there = There("127.0.0.1", port, TOKEN)
    there.open()
    wait_for(ended)
    assert "nothing from the other side" in ended[0]
    there.close()


def test_a_worker_that_ended_over_there_is_told(host):
    port, place, _ended = host
    place.how = "target-0 was killed by signal 9; its last lines: (none)"
    there = There("127.0.0.1", port, TOKEN)
    there.open()
    until = time.monotonic() + 5
    while there.trouble() is None and time.monotonic() < until:
        there.hear(0.1)
    assert there.trouble() == place.how
    there.close()


def test_tokens_are_long_random_and_never_the_key_that_is_sent(monkeypatch):
    assert new_token() != new_token()
    assert len(new_token()) >= 32
    public = zmq.curve_public(secret_key(TOKEN))
    assert TOKEN.encode() not in public + secret_key(TOKEN)
    assert secret_key(TOKEN) != secret_key(TOKEN + "x")
    monkeypatch.setenv(remote.TOKEN_VARIABLE, "short")
    with pytest.raises(UsageError, match="fewer than 16 characters"):
        token_here()
    monkeypatch.delenv(remote.TOKEN_VARIABLE)
    assert token_here() is None


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("10.0.0.1:18515", None, ("10.0.0.1", 18515)),
        ("[fe80::1]:18515", None, ("fe80::1", 18515)),
        ("18515", "127.0.0.1", ("127.0.0.1", 18515)),
    ],
)
def test_addresses_are_read(text, default, expected):
    assert address_of(text, host=default) == expected


@pytest.mark.parametrize("text", ["18515", "host:", ":1", "host:0", "host:65536", "host:port", "host:٣"])
def test_other_addresses_are_refused(text):
    with pytest.raises(UsageError, match="cannot read the address"):
        address_of(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "*"])
def test_listening_on_every_interface_is_refused(host):
    with pytest.raises(UsageError, match="every interface of this machine"):
        refuse_everywhere(host)


def test_an_address_that_is_not_ours_cannot_be_listened_on():
    context = zmq.Context()
    with pytest.raises(UsageError, match=r"cannot listen on 203\.0\.113\.9"):
        server_socket(context, TOKEN, "203.0.113.9", 18515)
    context.destroy(linger=0)
