"""From exchanges and transfers to named estimates."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.evidence.facts import Evidence, MachineUse, Missing
from kvgauge.samples.records import Connection, Exchange, Phases, Transfer
from kvgauge.stats.cells import cell_metrics, counter_of, tpot_ms
from kvgauge.stats.run_level import first_request_penalty, proved, run_metrics

MS = 1_000_000


def exchange(seq, *, due=0, late=1, ttft=50, gap=10, tokens=5, **more):
    arrivals = tuple((due + ttft + gap * i) * MS for i in range(tokens))
    phases = Phases(
        clock="monotonic", host="h", received_ns=(due + 1) * MS, prefill_start_ns=(due + 3) * MS, prefill_end_ns=(due + 20) * MS,
        posted_ns=(due + 22) * MS, transferred_ns=(due + 30) * MS, first_token_ns=(due + 46) * MS, written_ns=(due + 49) * MS,
    )  # fmt: skip
    defaults = {
        "seq": seq, "run_id": "r", "cell": "c", "warmup": False, "slot": 0, "worker": 0, "host": "h", "clock": "monotonic",
        "stamp_source": "user", "due_ns": due * MS, "sent_ns": (due + late) * MS, "arrivals_ns": arrivals,
        "done_ns": (due + 200) * MS, "tokens_in": 512, "tokens_out": tokens, "tokens_source": "usage", "status": 200,
        "request_id": f"q{seq}", "phases": phases,
    }  # fmt: skip
    return Exchange(**(defaults | more))


def transfer(seq, *, moved=1000, took=8, **more):
    defaults = {
        "request_id": f"q{seq}", "prefill_worker": 0, "decode_worker": 0, "operation": "READ", "backend": "UCX",
        "prompt_tokens": 512, "pairs": 1, "descriptors": 10, "bytes_expected": 1000, "bytes_listed": 1000, "bytes_moved": moved,
        "posted_ns": 0, "transferred_ns": took * MS, "post_ns": 1, "checked_ns": 1, "pieces": 10, "pieces_wrong": 0,
    }  # fmt: skip
    return Transfer(**(defaults | more))


def measured(exchanges, transfers=(), duration_ms=1000):
    return cell_metrics(exchanges, transfers, 0, duration_ms * MS)


def test_definitions_agree_with_a_case_worked_by_hand():
    found = measured([exchange(1), exchange(2, due=100, ttft=70)], [transfer(1), transfer(2, took=10)])
    assert found["ttft_ms_mean"].point == 60
    assert found["e2e_latency_ms_mean"].point == 100
    assert found["tpot_ms_mean"].point == 10
    assert found["itl_ms_mean"].point == 10
    assert found["transfer_ms_mean"].point == 9
    assert found["output_token_throughput_tok_s"].point == 10
    assert found["request_throughput_req_s"].point == 2
    assert found["late_ms_max"].point == 1
    assert (found["requests"].point, found["failures"].point) == (2, 0)
    assert (found["kv_bytes_expected"].point, found["kv_bytes_moved"].point) == (2000, 2000)
    assert (found["kv_pieces_checked"].point, found["kv_pieces_wrong"].point) == (20, 0)
    phases = {
        name: found[f"phase_{name}_ms_mean"].point
        for name in ("client", "queue", "prefill", "handover", "transfer", "first_step", "write")
    }
    assert phases == {
        "client": 1,
        "queue": 2,
        "prefill": 17,
        "handover": 2,
        "transfer": 8,
        "first_step": 16,
        "write": 3,
    }
    assert found["phases_of_ttft_pct"].point == pytest.approx(100 * 49 / 60)


def test_every_name_is_there_whatever_was_measured():
    full, empty = measured([exchange(1)], [transfer(1)]), measured([])
    assert full.keys() == empty.keys()
    families = ("ttft_ms", "e2e_latency_ms", "tpot_ms", "itl_ms", "transfer_ms")
    assert {f"{f}_{s}" for f in families for s in ("mean", "p50", "p90", "p95", "p99")} <= full.keys()
    for name, estimate in empty.items():
        if name not in ("requests", "failures"):
            assert estimate.point is None, name
            assert estimate.reason, name


def test_warm_up_and_failed_requests_do_not_enter_and_failures_are_counted():
    failed = exchange(3, ttft=9_000, failure="stall")
    found = measured([exchange(1), exchange(2, ttft=900, warmup=True), failed], [transfer(k) for k in (1, 2, 3)])
    assert found["ttft_ms_mean"].point == 50
    assert (found["requests"].point, found["failures"].point, found["failures"].n) == (1, 1, 2)
    assert found["kv_bytes_expected"].point == 1000


def test_tpot_of_one_token_or_of_one_event_is_none_and_not_zero():
    assert tpot_ms(exchange(1, tokens=1)) is None
    assert tpot_ms(exchange(1, arrivals_ns=(50 * MS,))) is None
    assert measured([exchange(1, tokens=1)])["tpot_ms_mean"].reason


def test_gaps_between_requests_are_no_inter_token_latencies():
    found = measured([exchange(1, gap=3), exchange(2, due=5_000, gap=3), exchange(3, tokens=1)])
    assert found["itl_ms_p99"].point == 3
    assert found["itl_ms_mean"].n == 2  # requests, since gaps of one request are not independent
    assert found["itl_ms_mean"].low is None


def test_bytes_without_a_count_are_null_with_the_reason():
    found = measured([exchange(1), exchange(2)], [transfer(1), transfer(2, moved=None)])
    assert found["kv_bytes_moved"].point is None
    assert found["kv_bytes_moved"].reason == "NIXL counted no bytes for 1 of 2 transfers"
    assert found["kv_bytes_expected"].point == 2000


def test_requests_without_a_transfer_on_record_are_said():
    found = measured([exchange(1), exchange(2)], [transfer(1)])
    assert found["kv_bytes_expected"].reason == "1 of 2 requests have no KV transfer on record"


@pytest.mark.parametrize(
    ("exchanges", "transfers", "reason"),
    [
        ([exchange(1)], [], "the target reports no KV transfers"),
        ([exchange(1, request_id=None)], [transfer(1)], "answers carry no request id to find their KV transfers by"),
        ([exchange(1)], [transfer(7)], "no KV transfer on record for these requests"),
    ],
)
def test_transfer_times_that_are_missing_say_why(exchanges, transfers, reason):
    assert measured(exchanges, transfers)["transfer_ms_mean"].reason == reason


def test_phases_the_target_does_not_tell_are_missing_with_the_reason():
    part = msgspec.structs.replace(exchange(1).phases, posted_ns=None)
    found = measured([exchange(1, phases=part), exchange(2, phases=None)])
    assert found["phase_queue_ms_mean"].point == 2
    assert "posted_ns" in found["phase_handover_ms_mean"].reason
    assert found["phases_of_ttft_pct"].point is None


@given(
    st.lists(
        st.tuples(st.integers(1, 500), st.integers(0, 50), st.integers(0, 6), st.booleans(), st.booleans()), max_size=40
    ),
    st.randoms(),
)
def test_any_exchanges_give_ordered_estimates_that_do_not_depend_on_their_order(rows, rng):
    made = [
        exchange(i, due=i, ttft=ttft, gap=gap, tokens=tokens, warmup=warm, failure="stall" if bad else None)
        for i, (ttft, gap, tokens, warm, bad) in enumerate(rows)
    ]
    found = measured(made)
    for name, e in found.items():
        assert (e.low is None) == (e.high is None), name
        if e.low is not None:
            assert e.low - 1e-6 <= e.point <= e.high + 1e-6, name
        elif e.point is None or e.low is None:
            assert e.reason, name
    shuffled = measured(rng.sample(made, len(made)))
    for name, e in found.items():
        assert (shuffled[name].point, shuffled[name].reason) == (e.point and pytest.approx(e.point), e.reason), name


def test_ten_thousand_requests_are_quick():
    import time

    rng = random.Random(1)
    made = [exchange(i, due=i, ttft=rng.randint(10, 90), tokens=64) for i in range(10_000)]
    moves = [transfer(i) for i in range(10_000)]
    started = time.process_time()  # of this process alone: others may keep the cores busy
    found = measured(made, moves)
    assert time.process_time() - started < 3
    assert found["ttft_ms_p99"].low is not None


def evidence(**more):
    defaults = {
        "backends": {"LIBFABRIC": 12}, "providers": ("tcp",), "facts": (), "connections": (), "handshakes_nixl": 8,
        "handshakes_efa": Missing(reason="no EFA"), "wire_bytes": 2**20, "gpu_memory_bytes": Missing(reason="no GPU"), "build_sha256": {},
        "machine": MachineUse(busy=0.5, steal=0.01, cores=2, processes_cpu_s={}, rss_bytes={}),
    }  # fmt: skip
    return Evidence(**(defaults | more))


def test_run_level_metrics_come_from_the_evidence_and_missing_ones_keep_their_reason():
    pairs = tuple(
        Connection(initiator="d", peer=p, add_remote_ns=ms * MS, make_connection_ns=MS, first_excess_ns=excess * MS)
        for p, ms, excess in (("a", 4, -1), ("b", 9, 2))
    )
    found = run_metrics(evidence(connections=pairs))
    assert found["connection_ms_max"].point == 12
    assert found["connection_ms_mean"].point == 8
    unknown = msgspec.structs.replace(pairs[0], first_excess_ns=None)
    assert "1 of 2 pairs" in run_metrics(evidence(connections=(unknown, pairs[1])))["connection_ms_max"].reason
    assert found["handshake_count_nixl"].point == 8
    assert found["handshake_count_efa"].reason == "no EFA"
    assert found["machine_busy_pct"].point == 50
    assert found["gpu_memory_bytes"].point is None
    assert found["first_request_penalty_s"].reason == "no request was sent"
    assert proved(evidence()) == {
        "backend": "LIBFABRIC (12 transfers)",
        "provider": "tcp",
    }


def test_what_is_modelled_of_a_connection_counts_and_is_said():
    pair = Connection(
        initiator="d", peer="p", add_remote_ns=MS, make_connection_ns=MS, first_excess_ns=2 * MS, modelled_ns=1_500 * MS
    )
    found = run_metrics(evidence(connections=(pair,)))
    for metric in ("connection_ms_max", "connection_ms_mean"):
        assert found[metric].point == 1_504
        assert "1500 ms of each pair are modelled (cold_start)" in found[metric].reason
    real = run_metrics(evidence(connections=(msgspec.structs.replace(pair, modelled_ns=0),)))
    assert "modelled" not in real["connection_ms_max"].reason


def test_the_first_requests_penalty_is_cold_less_the_warm_median():
    made = [exchange(0, ttft=1_050, warmup=True), *(exchange(i, due=2_000 + i, ttft=50) for i in range(1, 4))]
    assert first_request_penalty(made).point == 1.0
    assert first_request_penalty(made[:1]).point is None
    assert (
        first_request_penalty([exchange(0, failure="connect"), *made[1:]]).reason == "the first request failed: connect"
    )


def test_tokens_that_a_stand_in_counted_are_an_estimate_wherever_they_enter():
    counted = {"tokens_source": "tokenizer", "tokenizer": "Qwen3 (bundled)", "tokenizer_stands_in": True}
    exchanges = [msgspec.structs.replace(exchange(seq), **(counted if seq else {})) for seq in range(4)]
    metrics = cell_metrics(exchanges, [], 0, 10**9)
    note = metrics["output_token_throughput_tok_s"].note
    assert note.startswith("3 of 4 answers carried no usage")
    assert note.endswith("Qwen3 (bundled), which stands in for the model's own: an estimate")
    assert metrics["output_token_throughput_tok_s"].point is not None
    assert counter_of(metrics["tpot_ms_mean"]).startswith("Qwen3 (bundled)")
    assert counter_of(metrics["ttft_ms_mean"]) is None
    assert {name for name, value in metrics.items() if value.note == note} == {
        "output_token_throughput_tok_s", "output_tokens_mean", "input_tokens_mean",
        *(f"tpot_ms_{of}" for of in ("mean", "p50", "p90", "p95", "p99")),
    }  # fmt: skip
    assert cell_metrics([exchange(seq) for seq in range(4)], [], 0, 10**9)["tpot_ms_mean"].note is None
