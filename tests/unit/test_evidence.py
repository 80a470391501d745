"""Real log lines to facts, facts to judgements."""

from pathlib import Path

import pytest

from kvgauge.evidence import machine, nixl, proof, ucx
from kvgauge.evidence.facts import Evidence, Fact, Missing
from kvgauge.plan.records import Test
from kvgauge.samples.records import Exchange, Transfer
from scene import make_cell

SAMPLES = Path(__file__).parents[1] / "samples"
LIBFABRIC = (SAMPLES / "nixl-1.5.1-libfabric-tcp-info.log").read_text()
UCX = (SAMPLES / "nixl-1.5.1-ucx-info.log").read_text()


def values(facts, name):
    return [fact.value for fact in facts if fact.name == name]


def test_a_libfabric_log_names_version_provider_rails_and_no_gpudirect():
    facts = nixl.facts(LIBFABRIC, "decode-0")
    assert values(facts, "nixl_version") == ["1.5.1"]
    assert values(facts, "provider") == ["tcp"]
    assert values(facts, "rails") == ["1"]
    assert values(facts, "gpudirect") == ["no"]
    assert "LIBFABRIC" in values(facts, "backend_instantiated")
    assert all(fact.shown_by.startswith("decode-0: ") for fact in facts)


def test_handshakes_are_counted_by_peer_line_and_not_by_connected_state():
    assert nixl.handshakes(LIBFABRIC) == LIBFABRIC.count("Handshake stored: peer=") > 0


@pytest.mark.parametrize(
    ("backend", "release", "word"), [("UCX", (1, 5, 0), "UCX has no"), ("LIBFABRIC", (1, 2, 0), "came with 1.4.0")]
)
def test_a_handshake_count_that_cannot_be_had_says_why(backend, release, word):
    count = nixl.handshake_count({"a": LIBFABRIC}, backend, release)
    assert isinstance(count, Missing)
    assert word in count.reason


def test_ucx_lanes_tell_emulated_remote_access_apart():
    line = "[1.0] [vm:2:0] ucp_worker.c:1997 UCX  INFO    d0 inter-node cfg#1 {} am(tcp/lo)  ka(tcp/lo)"
    emulated, real = (
        ucx.lanes(line.format("rma_am(tcp/lo)"))[0],
        ucx.lanes(line.format("rma(srd/rdmap0 srd/rdmap1)"))[0],
    )
    assert emulated.remote_access == ("tcp/lo",)
    assert real.remote_access == ("srd/rdmap0", "srd/rdmap1")
    assert values(ucx.facts(line.format("rma_am(tcp/lo)"), "x"), "lane") == ["tcp/lo by active messages"]


def test_a_real_ucx_log_gives_lanes_to_the_other_process_only():
    reaches = {config.reach for config in ucx.lanes(UCX)}
    assert "intra-node" in reaches
    assert values(ucx.facts(UCX, "x"), "lane")


def test_a_transport_that_was_asked_for_and_is_not_there_is_a_fact():
    line = "[1] [vm:1:0] ucp_context.c:1 UCX  WARN  transport 'srd' is not available, please use one or more of: tcp"
    assert values(ucx.facts(line, "x"), "fallback") == ["'srd'"]


def test_proc_stat_is_read_with_steal_apart():
    ticks = machine.parse_stat("cpu  10 1 20 300 4 5 6 7 8 9\ncpu0 1 2 3\n")
    assert (ticks.busy, ticks.idle, ticks.steal) == (42, 304, 7)


def test_received_bytes_are_added_over_interfaces():
    text = "Inter-|\n face |bytes\n    lo: 100 1 0\n  eth0: 50 1 0\n"
    assert machine.parse_net_dev(text) == 150


def the_test(**changes):
    base = {
        "name": "t", "backend": "LIBFABRIC", "fabric": "tcp", "build": "1.5.0", "patches": "none", "stand_in": None,
        "model": "Qwen3-0.6B", "prefill_tp": 1, "decode_tp": 1,
    }  # fmt: skip
    return Test(**(base | changes))


def a_transfer(**changes):
    base = {
        "request_id": "1", "prefill_worker": 0, "decode_worker": 0, "operation": "READ", "backend": "LIBFABRIC",
        "prompt_tokens": 512, "pairs": 1, "descriptors": 10, "bytes_expected": 100, "bytes_listed": 100,
        "bytes_moved": 100, "posted_ns": 0, "transferred_ns": 5, "post_ns": 1, "checked_ns": 1, "pieces": 10,
        "pieces_wrong": 0,
    }  # fmt: skip
    return Transfer(**(base | changes))


def the_evidence(**changes):
    base = {
        "backends": {"LIBFABRIC": 1}, "providers": ("tcp",), "facts": (), "connections": (),
        "handshakes_nixl": 1, "handshakes_efa": Missing(reason="-"), "wire_bytes": 1000,
        "gpu_memory_bytes": Missing(reason="-"), "build_sha256": {}, "machine": Missing(reason="-"),
    }  # fmt: skip
    return Evidence(**(base | changes))


def test_a_run_that_did_what_it_was_asked_has_no_contradiction():
    assert proof.contradictions(the_test(), the_evidence(), [a_transfer()]) == []


@pytest.mark.parametrize(
    ("test", "evidence", "transfer", "word"),
    [
        ({}, {"backends": {"UCX": 3, "LIBFABRIC": 1}}, {}, "3 by UCX"),
        ({"fabric": "efa"}, {}, {}, "tcp carried it"),
        ({"fabric": "ib", "backend": "UCX"}, {"backends": {"UCX": 1}, "providers": ("tcp/lo by active messages",)}, {}, "tcp/lo"),
        ({}, {"providers": ("efa",)}, {}, "efa carried it"),
        ({"fabric": "ib", "backend": "UCX"}, {"backends": {"UCX": 1}, "providers": ("ud_mlx5/mlx5_0:1 by active messages",)},
         {}, "emulates both in software"),
        ({"fabric": "efa", "backend": "UCX"}, {"backends": {"UCX": 1}, "providers": ("ud_verbs/rdmap79s0:1 by active messages",)},
         {}, "ud_verbs/rdmap79s0:1 by active messages carried it"),
        ({}, {"providers": ()}, {}, "unproved"),
        ({}, {}, {"bytes_moved": 99}, "NIXL counted 99"),
        ({}, {}, {"bytes_listed": 64}, "the descriptors list 64"),
        ({}, {}, {"pieces_wrong": 3, "failure": "3 of 10 KV pieces wrong (3 zero)"}, "3 zero"),
        ({}, {"wire_bytes": 99}, {}, "only 99 passed"),
        ({}, {}, {"failure": "READ past its deadline", "transferred_ns": None}, "past its deadline"),
    ],
)  # fmt: skip
def test_each_contradiction_is_named_with_what_shows_it(test, evidence, transfer, word):
    reasons = proof.contradictions(the_test(**test), the_evidence(**evidence), [a_transfer(**transfer)])
    assert any(word in reason for reason in reasons), reasons


def test_the_line_that_shows_a_wrong_provider_is_quoted():
    facts = (Fact(name="provider", value="tcp", shown_by="decode-0: Created 1 rails using provider=tcp"),)
    reasons = proof.contradictions(the_test(fabric="efa"), the_evidence(facts=facts), [a_transfer()])
    assert "Created 1 rails using provider=tcp" in reasons[0]


def test_a_build_without_a_byte_counter_is_not_accused():
    assert proof.contradictions(the_test(), the_evidence(), [a_transfer(bytes_moved=None)]) == []


def an_exchange(**changes):
    base = {
        "seq": 0, "run_id": "r", "cell": "c", "warmup": False, "slot": 0, "worker": 0, "host": "h", "clock": "monotonic",
        "stamp_source": "user", "due_ns": 0, "sent_ns": 0, "arrivals_ns": (1,), "done_ns": 2, "tokens_in": 1,
        "tokens_out": 1, "tokens_source": "usage", "status": 200,
    }  # fmt: skip
    return Exchange(**(base | changes))


def test_failed_requests_are_counted_by_kind_with_the_first_detail():
    cell = make_cell(output_tokens=1, input_tokens=1)
    troubles = proof.cell_troubles(cell, [an_exchange(), an_exchange(failure="timeout", detail="no byte for 9 s")])
    assert troubles == ["1 of 2 requests failed (1 timeout); the first: no byte for 9 s. The others flatter the result"]
    assert proof.cell_troubles(cell, [an_exchange()]) == []
    assert proof.cell_troubles(cell, []) == ["no request was measured"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"tokens_out": 7}, "the 1 tokens asked for (the first: 7)"), ({"tokens_in": 3}, "than 1 tokens (the first: 3)")],
)
def test_an_answer_or_prompt_of_another_length_is_another_work(changes, word):
    cell = make_cell(output_tokens=1, input_tokens=1)
    assert word in proof.cell_troubles(cell, [an_exchange(), an_exchange(**changes)])[0]


def test_an_answer_without_a_transfer_on_record_is_a_contradiction():
    exchanges = [an_exchange(request_id="1"), an_exchange(request_id="2", seq=5)]
    reasons = proof.contradictions(the_test(), the_evidence(), [a_transfer()], exchanges)
    assert len(reasons) == 1
    assert "1 of 2 answered requests have no KV transfer" in reasons[0]
    failed = [an_exchange(request_id="1"), an_exchange(failure="timeout")]
    assert proof.contradictions(the_test(), the_evidence(), [a_transfer()], failed) == []


def test_a_target_that_sees_no_transport_contradicts_nothing():
    unseen = the_evidence(backends={}, providers=(), unobserved="a url")
    assert proof.contradictions(the_test(), unseen, [], [an_exchange()]) == []
