"""Who is taken for stopped: silence counts only while we ourselves were looking."""

import msgspec
import pytest

from kvgauge.serve.messages import Beat, Listening
from kvgauge.target import crew as module
from kvgauge.target.crew import Crew

SILENCE_S = 20.0


class FakeProcess:
    def __init__(self):
        self.killed = False

    def how(self):
        return "killed" if self.killed else None

    def ended(self):
        return self.how()

    def state(self):
        return "it was stopped by a signal"

    def kill(self):
        self.killed = True


@pytest.fixture
def watched(tmp_path, clock_class, monkeypatch):
    clock = clock_class()
    monkeypatch.setattr(module, "time", clock)
    crew = Crew(f"ipc://{tmp_path}/control", tmp_path, SILENCE_S)
    crew._processes = {"decode-0": FakeProcess(), "prefill-0": FakeProcess()}
    crew._open = True

    def pass_s(seconds, *speaking, every=0.5):
        """Time passes in steps; who speaks beats in each, and we look in each."""
        for _ in range(round(seconds / every)):
            clock.now_ns += int(every * 1e9)
            for name in speaking:
                crew._take([name.encode(), msgspec.msgpack.encode(Beat())])
            crew.trouble()

    yield crew, clock, pass_s
    crew._context.destroy(linger=0)


def test_a_process_that_says_nothing_for_too_long_is_killed_and_named(watched):
    crew, _, pass_s = watched
    pass_s(5, "decode-0", "prefill-0")
    pass_s(SILENCE_S - 1, "prefill-0")
    assert crew.dead() == []
    pass_s(3, "prefill-0")
    assert crew.dead() == ["decode-0"]
    assert crew.why("decode-0").startswith("decode-0 did nothing for 20 s (it was stopped by a signal)")
    assert crew._processes["decode-0"].killed
    assert not crew._processes["prefill-0"].killed


def test_nobody_is_killed_because_we_were_stopped_ourselves(watched):
    crew, clock, pass_s = watched
    pass_s(5, "decode-0", "prefill-0")
    clock.now_ns += 3_600 * 10**9  # Ctrl-Z, lunch, fg
    assert crew.trouble() is None
    pass_s(SILENCE_S - 1, "prefill-0")
    assert crew.dead() == []
    pass_s(3, "prefill-0")
    assert crew.dead() == ["decode-0"]


def test_a_long_silence_that_ended_is_kept_as_a_fact(watched):
    crew, _, pass_s = watched
    pass_s(2, "decode-0", "prefill-0")
    pass_s(6, "prefill-0")
    pass_s(2, "decode-0", "prefill-0")
    assert crew.dead() == []
    assert list(crew.silences) == ["decode-0"]
    assert crew.silences["decode-0"] == pytest.approx(6.5, abs=0.6)


def test_the_frontend_is_known_by_its_process(watched):
    crew, _, _ = watched
    crew._processes["frontend"] = FakeProcess()
    crew._take([b"frontend-0", msgspec.msgpack.encode(Listening("http://127.0.0.1:1", 7))])
    assert set(crew._heard) == {"frontend"}
