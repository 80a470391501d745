"""One NIXL agent over APIs as different wheels have them, and what is said when a call fails."""

from types import SimpleNamespace

import numpy as np
import pytest

from kvgauge.failures import TransferError
from kvgauge.kv.agent import Agent


def agent(api, name="decode-0-rank-0", backend="UCX", **more):
    return Agent(api, name, backend, progress_thread=more.pop("progress_thread", False))


def rows(count):
    return np.arange(count, dtype=np.int32)


def failing(*methods, message="status -1"):
    def fails(_agent, method):
        if method in methods:
            raise RuntimeError(message)

    return fails


def test_the_backend_the_progress_thread_and_telemetry_are_asked_for(nixl_class):
    api = nixl_class()
    agent(api, backend="LIBFABRIC", progress_thread=True)
    assert api.configs == [(True, True, ["LIBFABRIC"])]


def test_a_build_that_has_no_telemetry_is_not_asked_for_it(nixl_class):
    api = nixl_class()
    known = []

    class Older:
        def __init__(self, enable_prog_thread=True, backends=None):
            known.append((enable_prog_thread, backends))
            self.backends = backends

    api.nixl_agent_config = Older
    agent(api)
    assert known == [(False, ["UCX"])]


@pytest.mark.parametrize("as_bytes", [True, False])
def test_peers_are_named_in_text_whether_the_wheel_says_bytes_or_not(nixl_class, monkeypatch, as_bytes):
    api = nixl_class()
    ours, _ = agent(api, "a"), agent(api, "b")
    if not as_bytes:
        monkeypatch.setattr(api.nixl_agent, "add_remote_agent", lambda _self, metadata: metadata.decode())
    name, add_ns, make_ns = ours.connect(b"b")
    assert name == "b"
    assert add_ns >= 0
    assert make_ns >= 0


def test_an_api_without_make_connection_has_no_time_for_it(nixl_class, monkeypatch):
    api = nixl_class()
    monkeypatch.delattr(api.nixl_agent, "make_connection")
    assert agent(api).connect(b"b")[2] is None


def test_a_transfer_is_posted_watched_and_given_back(nixl_class):
    api = nixl_class(pending=2)
    ours, theirs = agent(api, "a"), agent(api, "b")
    memory = np.arange(8, dtype=np.uint64)
    there = np.array([[memory.ctypes.data, 32, 0]], dtype=np.uint64)
    here = np.array([[memory.ctypes.data + 32, 32, 0]], dtype=np.uint64)
    handle, state = ours.post("READ", (ours.prepare(here), rows(1)), (ours.prepare(there, "b"), rows(1)), b"note")
    assert state == "PROC"
    assert [ours.state(handle) for _ in range(3)] == ["PROC", "PROC", "DONE"]
    assert memory.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert (ours.used_backend(handle), ours.moved_bytes(handle)) == ("UCX", 32)
    assert theirs.poll() == [b"note"]
    assert theirs.poll() == []
    ours.release(handle)
    assert api.open == []


def test_our_own_memory_and_a_peers_are_told_apart_when_lists_are_prepared(nixl_class):
    ours = agent(nixl_class())
    empty = np.zeros((0, 3), dtype=np.uint64)
    assert ours.prepare(empty)[0] == "NIXL_INIT_AGENT"
    assert ours.prepare(empty, "peer")[0] == "peer"


def test_what_a_peer_needs_are_bytes(nixl_class):
    assert agent(nixl_class(), "x").metadata == b"x"


@pytest.mark.parametrize(
    ("method", "call", "word"),
    [
        ("register", lambda a: a.register(0, 4096), "UCX cannot register 4096 bytes: status -1"),
        ("add", lambda a: a.connect(b"b"), "a cannot connect over UCX: status -1"),
        ("make_connection", lambda a: a.connect(b"b"), "a cannot connect over UCX: status -1"),
        ("prepare", lambda a: a.prepare(np.zeros((7, 3), np.uint64)), "a cannot prepare 7 descriptors: status -1"),
        ("poll", lambda a: a.poll(), "a cannot poll UCX: status -1"),
    ],
)
def test_a_call_that_raises_is_a_transfer_error_that_says_what_was_tried(nixl_class, method, call, word):
    api = nixl_class(fails=failing(method))
    with pytest.raises(TransferError) as caught:
        call(agent(api, "a"))
    assert str(caught.value) == word


@pytest.mark.parametrize("method", ["make", "transfer"])
def test_a_post_that_raises_says_so_and_leaves_no_handle_behind(nixl_class, method):
    api = nixl_class(fails=failing(method))
    it, none = agent(api, "a"), np.zeros((1, 3), np.uint64)
    with pytest.raises(TransferError, match=r"a cannot \w+ a WRITE: status -1"):
        it.post("WRITE", (it.prepare(none), rows(1)), (it.prepare(none, "a"), rows(1)), b"")
    assert api.open == []


def test_an_error_without_words_is_named_by_its_type(nixl_class):
    with pytest.raises(TransferError, match=r"did not start with UCX: RuntimeError$"):
        agent(nixl_class(fails=failing("start", message="")))


def test_a_release_that_fails_is_said(nixl_class):
    api = nixl_class(fails=failing("release"))
    api.open.append(handle := SimpleNamespace())
    with pytest.raises(TransferError, match="cannot release a transfer: status -1"):
        agent(api).release(handle)


def test_asking_for_a_state_that_cannot_be_had_is_an_error_state(nixl_class):
    assert agent(nixl_class(fails=failing("state"))).state(object()) == "ERR"


def test_a_backend_that_is_not_told_is_unknown_with_the_reason(nixl_class):
    assert agent(nixl_class(fails=failing("query"))).used_backend(object()) == "unknown (status -1)"


def test_a_build_that_counts_no_bytes_gives_none_and_not_zero(nixl_class):
    assert agent(nixl_class(telemetry=False)).moved_bytes(object()) is None


def test_a_peer_that_ended_is_dropped_with_its_lists_where_the_build_can(nixl_class, monkeypatch):
    api = nixl_class()
    dropped = []
    monkeypatch.setattr(
        api.nixl_agent, "release_dlist_handle", lambda _self, handle: dropped.append(handle), raising=False
    )
    monkeypatch.setattr(api.nixl_agent, "remove_remote_agent", lambda _self, peer: dropped.append(peer), raising=False)
    agent(api).forget("b", ["x", "y"])
    assert dropped == ["x", "y", "b"]


def test_a_build_that_cannot_drop_a_peer_goes_on_with_it(nixl_class):
    api = nixl_class()
    it = agent(api)
    it.forget("b", ["x"])
    assert it.poll() == []
