"""What was seen of a deployment to a verdict; greedy answers; the page."""

import random

import pytest

from kvgauge.evidence import logs, sums
from kvgauge.evidence.counters import Counted
from kvgauge.evidence.efa import EfaMoved
from kvgauge.evidence.sums import Claim, Geometry
from kvgauge.evidence.transport import Want
from kvgauge.evidence.trtllm import SentRow
from kvgauge.prove import page
from kvgauge.prove.answers import Answered, chance, claim
from kvgauge.prove.judge import Observed, Proof, judged

EACH = 512 * 114_688
GEOMETRY = Geometry(token_bytes=114_688, block_tokens=16, copies=1, said="Qwen3-0.6B, bf16")
LOG = logs.scan(
    [
        "2026-11-24 02:42:46 NIXL INFO    _api.py:405 Backend LIBFABRIC was instantiated",
        "I1124 02:42:45.680713 1 a.cpp:1] Created 4 rails using provider=efa",
        "I1124 02:42:45.680713 1 a.cpp:1] Registered memory on 4 rails, mem_type=1 device=0",
    ],
    "decode.log",
)


def source(requests=10, moved=10, name="http://d/metrics", **more):
    values = {
        "requests": requests,
        "output_tokens": 8 * requests,
        "kv_bytes": moved * EACH,
        "kv_transfers": moved,
    } | more
    return Counted(source=name, values={("vLLM", key): float(value) for key, value in values.items()})


def observed(**changes):
    base = {
        "prompts": (512,) * 10, "failed": (), "geometry": GEOMETRY, "unknown": None, "sources": (source(),), "silent": (),
        "logs": (LOG,), "csv": {}, "efa": None, "answers": None, "answers_wanted": False, "want": Want(),
    }  # fmt: skip
    return Observed(**(base | changes))


def named(claims):
    return {each.name: each for each in claims}


def test_a_deployment_that_does_what_it_should_is_proved_in_one_line():
    claims, verdict, headline = judged(observed(want=Want(backend="LIBFABRIC", fabric="efa", rails=4)))
    assert verdict == "proved"
    assert headline == "expected 56 MiB a request, moved 56 MiB a request, all 10 requests over LIBFABRIC/efa, 4 rails"
    assert {each.verdict for each in claims} == {"proved"}


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"sources": (source(moved=9),)}, "contradicted", "1 of 10 requests moved no KV"),
        ({"sources": (source(moved=0),)}, "contradicted", "moved 0: every prompt was recomputed locally"),
        ({"sources": ()}, "unproved", "nobody that was asked counts KV bytes"),
        ({"geometry": None, "unknown": "x is not in kvgauge's table of models"}, "unproved", "vLLM counted 587,202,560 bytes"),
        ({"want": Want(fabric="tcp")}, "contradicted", "moved 56 MiB a request"),
        ({"want": Want(gpudirect=True)}, "unproved", "moved 56 MiB a request"),
        ({"logs": ()}, "proved", "over what is not known"),
        ({"logs": (), "want": Want(backend="UCX")}, "unproved", "over what is not known"),
        ({"answers_wanted": True}, "unproved", "moved 56 MiB a request"),
        ({"sources": (source(kv_failures=3),)}, "contradicted", "moved 56 MiB a request"),
        ({"sources": (source(requests=12, moved=12),)}, "unproved", "2 requests of others"),
    ],
)  # fmt: skip
def test_every_way_to_fall_short_has_its_verdict(changes, verdict, words):
    _, got, headline = judged(observed(**changes))
    assert got == verdict
    assert words in headline


def test_a_counter_of_this_hosts_nics_alone_proves_no_sum():
    moved = EfaMoved(totals={"tx_bytes": 11 * EACH}, rails=("rdmap0/1",), resets=())
    claims, verdict, _ = judged(observed(sources=(), efa=moved))
    assert verdict == "unproved"
    assert named(claims)["bytes (EFA of this host)"].verdict == "proved"
    assert named(claims)["bytes"].verdict == "unproved"


def test_where_prompt_tokens_came_from_is_told_and_whole_prompts_are_found():
    def tokens(**more):
        claims, verdict, _ = judged(observed(sources=(source(**more),)))
        return named(claims)["prompt tokens"], verdict

    fine, verdict = tokens(computed_tokens=10, external_kv_tokens=5_110, cached_tokens=0)  # the last token of each
    assert (fine.verdict, verdict) == ("proved", "proved")
    bad, verdict = tokens(computed_tokens=1_024, external_kv_tokens=4_096, cached_tokens=0)
    assert (bad.verdict, bad.skipped, verdict) == ("contradicted", 1, "contradicted")  # at least: 10 may be last tokens


def test_prompt_tokens_of_others_accuse_nobody():
    claims, verdict, _ = judged(observed(sources=(source(requests=12, moved=12, computed_tokens=1_024),)))
    assert (named(claims)["prompt tokens"].verdict, verdict) == ("unproved", "unproved")


def test_tokens_found_in_decodes_cache_are_no_skipped_request():
    _, verdict, headline = judged(
        observed(sources=(source(moved=10, kv_bytes=10 * EACH - 32 * 114_688, prefix_hit_tokens=32),))
    )
    assert verdict == "proved", headline
    prefill = source(requests=10, moved=0, name="http://p/metrics", output_tokens=10, prefix_hit_tokens=5_120)
    _, verdict, _ = judged(observed(sources=(source(moved=9), prefill)))
    assert verdict == "contradicted"  # hits at prefill lessen nothing


def test_tensorrt_llms_files_prove_by_requests_and_never_accuse_from_source():
    def rows(count):
        return tuple(
            SentRow(request_id=str(n), peers=1, size_bytes=EACH * (1 + 3e-6), duration_ms=1.0) for n in range(count)
        )

    ten = {"rank_0_send.csv": rows(10), "rank_0_recv.csv": rows(10)}
    claims, verdict, _ = judged(observed(sources=(), csv=ten))
    assert verdict == "proved"
    assert "10 transfers" in named(claims)["bytes (TensorRT-LLM send)"].shown_by
    _, verdict, headline = judged(observed(sources=(), csv={"rank_0_recv.csv": rows(9)}))
    assert verdict == "unproved"
    assert "1 of 10 requests moved no KV" in headline


def test_silent_workers_and_failed_requests_are_told():
    claims, _, _ = judged(observed(silent=("http://w/metrics gave no series: refused",), failed=(512,)))
    assert named(claims)["metrics"].text == "http://w/metrics gave no series: refused"
    assert named(claims)["requests"].text == "1 of 11 requests failed"


def passed(**totals):
    return EfaMoved(totals=totals, rails=("rdmap79s0/1",), resets=())


@pytest.mark.parametrize(
    ("efa", "want", "claim", "verdict"),
    [
        (passed(tx_bytes=11 * EACH, rdma_read_bytes=10 * EACH), Want(fabric="efa"), "proved", "proved"),
        (passed(tx_bytes=11 * EACH, rdma_read_bytes=0), Want(fabric="efa"), "unproved", "unproved"),
        (passed(tx_bytes=11 * EACH, rdma_read_bytes=0), Want(), "unproved", "proved"),
        (passed(tx_bytes=11 * EACH, rdma_write_recv_bytes=10 * EACH), Want(fabric="efa"), "proved", "proved"),
        (passed(tx_bytes=9 * EACH, rdma_read_bytes=0), Want(fabric="efa"), None, "proved"),  # not this host's
        (passed(tx_bytes=11 * EACH), Want(fabric="efa"), None, "proved"),  # an older kernel does not say
    ],
)
def test_efa_counters_tell_rdma_from_messages_that_emulate_it(efa, want, claim, verdict):
    claims, got, _ = judged(observed(efa=efa, want=want))
    assert got == verdict
    assert (named(claims)["EFA RDMA"].verdict if claim else "EFA RDMA" in named(claims)) == (claim or False)
    assert got == "proved" or "FI_EFA_USE_DEVICE_RDMA" in named(claims)["EFA RDMA"].fix


def test_srd_of_ucx_may_send_messages():
    log = logs.scan(["2026-11-24 02:42:46 NIXL INFO    _api.py:405 Backend UCX was instantiated"], "d")
    claims, _, _ = judged(observed(efa=passed(tx_bytes=11 * EACH, rdma_read_bytes=0), logs=(log,)))
    assert "EFA RDMA" not in named(claims)


def test_errors_that_efa_devices_counted_are_told():
    claims, _, _ = judged(observed(efa=passed(tx_bytes=11 * EACH, rx_drops=3, rdma_read_wr_err=0)))
    assert "rx_drops 3 meanwhile" in named(claims)["EFA errors"].text


def test_emulation_that_a_lane_leaves_open_leaves_the_proof_of_a_fast_fabric_open():
    line = "[1.0] [h:1:0]      ucp_worker.c:1997 UCX  INFO    d inter-node cfg#1 rma_am(srd/rdmap79s0:1)"
    log = logs.scan(["2026-11-24 02:42:46 NIXL INFO    _api.py:405 Backend UCX was instantiated", line], "d")
    assert judged(observed(logs=(log,), want=Want(fabric="efa")))[1] == "unproved"
    assert judged(observed(logs=(log,)))[1] == "proved"


def test_what_is_expected_of_a_request_does_not_grow_with_those_that_failed():
    claims, _, _ = judged(observed(failed=(512, 512)))
    assert named(claims)["bytes (vLLM)"].text.startswith("expected 56 MiB a request")


# -- answers


def asked(pairs):
    return [Answered(url=url, reference=reference) for url, reference in pairs]


def alike(count):
    return [((f"a{n}", f"a{n}"), (f"a{n}", f"a{n}")) for n in range(count)]


def test_answers_equal_to_the_references_are_proved():
    got = claim(asked(alike(16)))
    assert got.verdict == "proved"
    assert got.text.startswith(
        "0 of 16 differ from the reference's, which differs from itself in 0; asked twice, 16 of 16"
    )


def test_garbage_is_a_contradiction_though_it_agrees_with_itself():
    got = claim(asked([(("x", "x"), ("a", "a"))] * 16))
    assert got.verdict == "contradicted"
    assert "kvgauge builds test" in got.fix


def test_a_reference_that_differs_from_itself_is_the_measure():
    half = [(("x", "x"), ("a", "b"))] * 8 + alike(8)
    assert claim(asked(half)).verdict == "proved"
    one = [(("x", "x"), ("a", "a")), *alike(15)]
    assert claim(asked(one)).verdict == "unproved"


@pytest.mark.parametrize("text", ["", "I cannot help with that"])
def test_a_reference_that_answers_every_prompt_alike_proves_nothing_but_may_accuse(text):
    got = claim(asked([((text, text), (text, text))] * 16))
    assert (got.verdict, "answers every prompt alike" in got.text) == ("unproved", True)
    assert claim(asked([(("x", "x"), (text, text))] * 16)).verdict == "contradicted"
    assert claim(asked([(("", ""), ("", ""))])).verdict == "unproved"


def test_without_a_reference_or_with_unanswered_prompts_nothing_is_proved():
    got = claim(asked([(("a", "a"), None), (("b", "c"), None)]))
    assert (got.verdict, "asked twice, 1 of 2 answers are the same" in got.text) == ("unproved", True)
    assert claim(asked([((None, None), ("a", "a"))])).verdict == "unproved"
    assert claim([]).verdict == "unproved"


def test_equal_answers_are_called_different_no_oftener_than_it_says():
    rng, count, trials = random.Random(5), 16, 2_000
    wrong = 0
    for _ in range(trials):
        differ, itself = (sum(rng.random() < 0.4 for _ in range(count)) for _ in range(2))
        wrong += differ > itself and chance(differ, count, itself, count) < 0.01
    assert wrong / trials <= 0.01 + 3 * (0.01 * 0.99 / trials) ** 0.5
    assert chance(16, 16, 0, 16) < 1e-8
    assert chance(0, 16, 0, 16) == 1


# -- the page


def test_the_page_leads_with_what_is_wrong_and_no_log_line_steers_a_terminal():
    claims = (
        Claim(name="good", verdict="proved", text="fine", shown_by="a line"),
        Claim(name="open", verdict="unproved", text="who knows", shown_by="-", fix="look"),
        Claim(
            name="bad",
            verdict="contradicted",
            text="1 moved no KV",
            shown_by="x\x1b[2Jy",
            fix=sums.SKIPPED_FIX,
            skipped=1,
        ),
    )
    proof = Proof(url="http://h", model="m", verdict="contradicted", headline="expected 1, moved 0 " * 12, claims=claims,
                  requests=10, failed=0, took_s=3.2)  # fmt: skip
    text = page.text(proof)
    assert text.index("CONTRADICTED") < text.index("good: fine") < text.index("open: who knows")
    assert "\x1b" not in text
    assert "verdict: contradicted (1 of 10 requests moved no KV)" in text
    assert proof.exit_code == 1
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(("moved", "verdict"), [(12, "proved"), (11, "contradicted")])
def test_requests_that_ended_after_our_time_out_count_where_decode_answered_them(moved, verdict):
    seen = observed(failed=(512, 512), sources=(source(requests=12, moved=moved),))
    claims, all_of_it, _ = judged(seen)
    assert (named(claims)["bytes (vLLM)"].verdict, all_of_it) == (verdict, verdict)


def test_kv_that_was_fetched_after_its_lease_leaves_the_proof_open():
    claims, verdict, _ = judged(observed(sources=(source(kv_stale=1),)))
    assert named(claims)["bytes (vLLM)"].verdict == "proved"
    assert (verdict, named(claims)["KV caches"].verdict) == ("unproved", "unproved")
