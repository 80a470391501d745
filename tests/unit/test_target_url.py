"""A deployment that is already there: nothing is changed, and nothing is claimed that cannot be seen."""

import pytest

from kvgauge.evidence import proof
from kvgauge.evidence.facts import Missing, Proving
from kvgauge.failures import LoadError, TargetError
from kvgauge.target.url import READY_TIMEOUT_S, UrlTarget
from scene import make_run, make_test

URL = "http://somewhere:8000"


def target(*served, model=None, wait_ready=lambda _url, _timeout: None):
    return UrlTarget(URL, wait_ready=wait_ready, models=lambda _url: list(served), model=model)


def test_it_waits_for_the_server_and_says_when_there_is_none():
    asked = []
    target(wait_ready=lambda *arguments: asked.append(arguments)).prepare(make_test())
    assert asked == [(URL, READY_TIMEOUT_S)]

    def nobody(_url, _timeout):
        raise LoadError("not ready within 30 s")

    with pytest.raises(LoadError, match="30 s"):
        target(wait_ready=nobody).prepare(make_test())


@pytest.mark.parametrize(
    ("served", "named", "taken"),
    [(("only",), None, "only"), (("a", "b"), "b", "b"), (("a", "Qwen3-0.6B"), None, "Qwen3-0.6B")],
)
def test_the_one_model_served_or_the_one_named_or_the_plans_is_taken(served, named, taken):
    endpoint = target(*served, model=named).start(make_run(make_test(model="Qwen3-0.6B")))
    assert (endpoint.url, endpoint.model) == (URL, taken)
    assert (endpoint.fresh, endpoint.same_clock) == (False, False)


@pytest.mark.parametrize(
    ("served", "named", "words"),
    [
        (("a", "b"), None, "serves a, b, not Qwen3-0.6B"),
        (("a",), "c", "serves a, not c"),
        ((), None, "serves no model"),
    ],
)
def test_a_model_that_is_not_served_is_an_error_that_lists_those_that_are(served, named, words):
    with pytest.raises(TargetError, match=words):
        target(*served, model=named).start(make_run(make_test()))


def test_its_evidence_is_unproved_and_accuses_nobody():
    it = target("m")
    it.start(make_run(make_test()))
    evidence = it.evidence()
    assert "unproved" in evidence.unobserved
    assert evidence.backends == {}
    assert isinstance(evidence.wire_bytes, Missing)
    assert isinstance(evidence.handshakes_nixl, Missing)
    assert set(evidence.machine.processes_cpu_s) == {"client"}
    assert evidence.facts[0].value == URL
    assert proof.contradictions(make_test(), evidence, []) == []


def test_where_a_proof_was_made_nothing_beside_it_says_unproved():
    found = Proving(verdict="proved", headline="all of it")
    it = UrlTarget(URL, wait_ready=lambda _url, _s: None, models=lambda _url: ["m"], prove=lambda _test, _model: found)
    it.start(make_run(make_test()))
    evidence = it.evidence()
    assert (evidence.proving, evidence.unobserved) == (found, None)
    assert "unproved" not in evidence.handshakes_nixl.reason
    assert "proof.json" in evidence.handshakes_efa.reason


def test_evidence_before_any_run_counts_nothing_as_used():
    assert target("m").evidence().machine.busy == 0.0


def test_it_has_no_moves_no_trouble_and_nothing_to_stop():
    it = target("m")
    assert (it.phases(), it.trouble(), it.stop(), it.restore()) == ([], None, None, None)
