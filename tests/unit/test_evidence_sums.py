"""The bytes: expected against counted, exactly."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.evidence import sums
from kvgauge.evidence.counters import Counted, counted, told_again
from kvgauge.evidence.prometheus import parse
from kvgauge.evidence.sums import Geometry, Ledger, expected, judge, ledgers

SAMPLES = Path(__file__).parents[1] / "samples"
TOKEN = 114_688  # Qwen3-0.6B in bf16
GEOMETRY = Geometry(token_bytes=TOKEN, block_tokens=16, copies=1, said="test")
EACH = 512 * TOKEN


def ledger(moved, answered, **changes):
    return Ledger(
        **({"name": "vLLM", "moved_bytes": moved, "transfers": None, "answered": answered, "shown_by": "x"} | changes)
    )


def test_whole_blocks_are_exact_and_a_request_is_56_mib():
    wanted = expected([512] * 3, GEOMETRY)
    assert (wanted.low, wanted.high, wanted.request_bytes) == (3 * 56 << 20, 3 * 56 << 20, 56 << 20)
    claim = judge(wanted, ledger(3 * EACH, 3))
    assert claim.verdict == "proved"
    assert claim.text == "expected 56 MiB a request, moved 56 MiB a request, all 3 requests"
    assert "3 prompts of 512 tokens x 114688 bytes a token" in claim.shown_by


@given(
    st.integers(1, 2_000),
    st.integers(0, 2_000),
    st.integers(1, 64),
    st.integers(1, 400_000),
    st.sampled_from([1, 2, 8]),
)
def test_any_number_of_skipped_requests_is_found_exactly(requests, skipped, blocks, token_bytes, copies):
    skipped = min(skipped, requests)
    geometry = Geometry(token_bytes=token_bytes, block_tokens=16, copies=copies, said="t")
    wanted = expected([16 * blocks] * requests, geometry)
    moved = (requests - skipped) * 16 * blocks * token_bytes * copies
    claim = judge(wanted, ledger(moved, requests))
    if skipped == 0:
        assert (claim.verdict, claim.skipped) == ("proved", None)
    else:
        assert (claim.verdict, claim.skipped) == ("contradicted", skipped)
        assert (
            "moved 0" in claim.text
            if skipped == requests
            else f"{skipped} of {requests} requests moved no KV" in claim.text
        )


@given(
    st.lists(st.integers(1, 2_000), min_size=1, max_size=50),
    st.sampled_from([1, 16, 32, 64]),
    st.booleans(),
    st.data(),
)
def test_nobody_is_accused_whose_requests_all_moved_and_no_skip_is_called_proved(lengths, block, whole, data):
    """Whatever the lengths, of an engine that moves whole blocks or leaves the unfilled one."""
    geometry = Geometry(token_bytes=8, block_tokens=block, copies=1, said="t")

    def moves(length):
        return (-(-length // block) if whole else length // block) * block * 8

    wanted = expected(lengths, geometry)
    everything = sum(map(moves, lengths))
    assert judge(wanted, ledger(everything, len(lengths))).verdict in ("proved", "unproved")
    skipped = data.draw(st.integers(0, len(lengths) - 1))
    if whole and moves(lengths[skipped]) > 0:
        without = judge(wanted, ledger(everything - moves(lengths[skipped]), len(lengths)))
        assert without.verdict in ("contradicted", "unproved")
    if whole:
        assert judge(wanted, ledger(everything, len(lengths))).verdict == "proved"


def test_an_unfilled_block_leaves_room_for_doubt_and_says_what_would_settle_it():
    wanted = expected([100] * 50, GEOMETRY)
    floor_sum = 50 * 96 * TOKEN
    claim = judge(wanted, ledger(floor_sum, 50))
    assert claim.verdict == "unproved"
    assert "whole number of blocks" in claim.fix
    assert judge(wanted, ledger(50 * 112 * TOKEN, 50)).verdict == "proved"  # no sum without one reaches this
    assert judge(wanted, ledger(floor_sum - 1, 50)).verdict == "contradicted"


def test_a_start_token_is_in_the_servers_count():
    wanted = expected([513] * 4, GEOMETRY)
    assert (wanted.low, wanted.high) == (4 * EACH, 4 * 528 * TOKEN)
    assert judge(wanted, ledger(4 * 528 * TOKEN, 4)).verdict == "proved"
    assert judge(wanted, ledger(3 * 528 * TOKEN, 4)).verdict == "contradicted"


def test_what_decode_found_in_its_cache_is_taken_from_the_smaller_end_only():
    wanted = expected([512] * 4, GEOMETRY, found_tokens=64)
    assert (wanted.low, wanted.high) == (4 * EACH - 64 * TOKEN, 4 * EACH)
    assert judge(wanted, ledger(4 * EACH - 64 * TOKEN, 4)).verdict == "proved"
    assert judge(wanted, ledger(3 * EACH, 4)).verdict == "contradicted"
    assert judge(expected([512] * 4, GEOMETRY, found_tokens=512), ledger(3 * EACH, 4)).verdict == "unproved"


def test_a_request_that_failed_may_have_moved_its_kv():
    wanted = expected([512] * 4, GEOMETRY, failed=(512,))
    assert judge(wanted, ledger(4 * EACH, 4)).verdict == "unproved"  # or five began and one of the four moved nothing
    assert judge(wanted, ledger(5 * EACH, 4)).verdict == "proved"
    assert judge(wanted, ledger(3 * EACH, 4)).verdict == "contradicted"
    assert judge(wanted, ledger(5 * EACH, 5)).verdict == "proved"  # the server counts it as answered: it gave up late


@pytest.mark.parametrize(
    ("answered", "word"), [(7, "its sources answered 7 of the 10"), (13, "3 requests of others were served")]
)
def test_a_worker_that_was_not_named_and_other_traffic_accuse_nobody(answered, word):
    claim = judge(expected([512] * 10, GEOMETRY), ledger(7 * EACH, answered))
    assert claim.verdict == "unproved"
    assert word in claim.text


def test_a_ledger_that_counts_no_requests_may_lack_a_worker():
    claim = judge(expected([512] * 10, GEOMETRY), ledger(9 * EACH, None, name="NIXL"))
    assert claim.verdict == "unproved"
    assert "1 of 10 requests moved no KV, or a worker was not named" in claim.text
    assert judge(expected([512] * 10, GEOMETRY), ledger(10 * EACH, None, name="NIXL")).verdict == "proved"


def test_an_engine_whose_counter_we_never_saw_is_not_accused_by_it():
    claim = judge(expected([512] * 10, GEOMETRY), ledger(9 * EACH, 10, name="SGLang", firm=False))
    assert claim.verdict == "unproved"
    assert "if SGLang counts as we think" in claim.text


def test_twice_the_bytes_asks_for_the_dtype():
    claim = judge(expected([512] * 10, GEOMETRY), ledger(20 * EACH, 10))
    assert claim.verdict == "contradicted"
    assert "exactly 2 times: is the KV dtype" in claim.text


def test_counters_that_hold_other_traffic_prove_at_least():
    wanted = expected([512] * 2, GEOMETRY)
    nic = {"name": "EFA of this host", "least": True}
    assert judge(wanted, ledger(2 * EACH + 9_999, None, **nic)).verdict == "proved"
    claim = judge(wanted, ledger(EACH, None, **nic))
    assert claim.verdict == "unproved"
    assert "did not pass here" in claim.text


def test_digits_that_are_missing_are_no_missing_request():
    many = expected([512] * 200_000, GEOMETRY)
    rounded = ledger(200_000 * EACH, 200_000, slack_bytes=200_000 * EACH * 1e-5)
    assert judge(many, rounded).verdict == "unproved"  # five digits do not tell one in 200,000
    few = expected([512] * 100, GEOMETRY)
    assert judge(few, ledger(100 * EACH * (1 - 4e-6), 100, slack_bytes=100 * EACH * 1e-5)).verdict == "proved"


def expose(text):
    return parse(text.encode()).values


VLLM = """
vllm:request_success_total{{engine="0",finished_reason="length"}} {requests}
vllm:generation_tokens_total{{engine="0"}} {tokens}
vllm:nixl_bytes_transferred_sum{{engine="0"}} {moved}
vllm:nixl_xfer_time_seconds_count{{engine="0"}} {requests}
vllm:prompt_tokens_by_source_total{{engine="0",source="local_compute"}} {computed}
vllm:prompt_tokens_by_source_total{{engine="0",source="external_kv_transfer"}} {external}
"""


def vllm(name, *, requests, tokens, moved, computed=0, external=0):
    text = VLLM.format(requests=requests, tokens=tokens, moved=moved, computed=computed, external=external)
    return counted(name, {}, expose(text))


def test_decode_workers_are_told_from_prefill_workers_by_their_tokens_and_added_up():
    sources = [
        vllm("p", requests=10, tokens=10, moved=0, computed=5_120),
        vllm("d0", requests=6, tokens=48, moved=6 * EACH, external=3_072),
        vllm("d1", requests=4, tokens=32, moved=4 * EACH, external=2_048),
    ]
    (book,) = ledgers(sources)
    assert (book.moved_bytes, book.answered, book.transfers) == (10 * EACH, 10, 20)
    assert judge(expected([512] * 10, GEOMETRY), book).verdict == "proved"
    (half,) = ledgers(sources[:2])
    assert "answered 6 of the 10" in judge(expected([512] * 10, GEOMETRY), half).text


def test_counters_are_differences_and_a_series_that_was_not_there_began_at_zero():
    before = expose('vllm:nixl_bytes_transferred_sum{engine="0"} 100\n')
    after = expose('vllm:nixl_bytes_transferred_sum{engine="0"} 150\nvllm:generation_tokens_total 7\n')
    got = counted("s", before, after)
    assert got.get("vLLM", "kv_bytes") == 50
    assert got.get("vLLM", "output_tokens") == 7
    assert got.get("vLLM", "requests") is None
    assert not got.restarted


def test_a_worker_that_restarted_keeps_no_ledger():
    got = counted("s", expose("vllm:nixl_bytes_transferred_sum 100\n"), expose("vllm:nixl_bytes_transferred_sum 50\n"))
    assert got.restarted
    assert ledgers([got]) == []


def test_nixls_own_exporter_as_recorded_is_a_ledger():
    after = parse((SAMPLES / "nixl-1.5.1-prometheus.txt").read_bytes()).values
    (book,) = ledgers([counted("n", {}, after)])
    assert (book.name, book.moved_bytes, book.transfers, book.answered) == ("NIXL", 12_582_912, 3, None)


def test_events_that_nixl_dropped_make_its_count_too_low_to_accuse():
    text = "agent_rx_bytes_total 100\nagent_telemetry_events_dropped_total 2\n"
    (book,) = ledgers([counted("n", {}, expose(text))])
    assert not book.firm
    assert "2 telemetry events were dropped" in book.shown_by


def test_ranks_of_sglang_that_repeat_a_transfer_are_counted_once_from_source():
    """sgl-project/sglang metrics_collector.py; that every tp_rank tells of the whole transfer is others' observation."""
    row = 'sglang:kv_transfer_total_mb_sum{{tp_rank="{}",dp_rank="{}"}} 56\n'
    text = "".join(row.format(tp, dp) for tp in range(4) for dp in range(2))
    got = counted("s", {}, expose(text))
    assert got.get("SGLang", "kv_bytes") == 2 * 56 << 20
    (book,) = ledgers([got])
    assert not book.firm


def test_dynamos_frontend_as_recorded_counts_requests_and_no_kv_bytes():
    before, after = (
        parse((SAMPLES / f"dynamo-1.6.1-frontend-metrics-{when}.txt").read_bytes()).values
        for when in ("before", "after")
    )
    got = counted("f", before, after)
    assert (got.get("Dynamo", "requests"), got.get("Dynamo", "prompt_tokens")) == (5, 320)
    assert got.get("Dynamo", "prefix_hit_tokens") == 0
    assert ledgers([got]) == []


@given(st.dictionaries(st.tuples(st.text(max_size=5), st.text(max_size=5)), st.floats(), max_size=5))
def test_no_series_breaks_the_counting(values):
    named = {("vllm:nixl_bytes_transferred_sum", labels): value for (_, labels), value in values.items()}
    got = counted("s", dict(values), {**values, **named})
    assert isinstance(got, Counted)
    for book in ledgers([got]):
        assert judge(expected([512], GEOMETRY), book).verdict in ("proved", "contradicted", "unproved")


def test_sizes_read_well():
    assert [sums._size(count) for count in (12, 56 << 20, 5 << 30)] == ["12 bytes", "56 MiB", "5,120 MiB"]


def vllm_scrape(role, when):
    return parse((SAMPLES / f"vllm-0.32.0-{role}-metrics-{when}.txt").read_bytes()).values


def vllm_counted():
    """vLLM 0.32 on the CPU: 1,000 prompts of 128 tokens, of the last the router left out the KV; one of 250 before."""
    roles = ("prefill", "decode")
    return [counted(role, vllm_scrape(role, "before"), vllm_scrape(role, "after")) for role in roles]


def test_one_transfer_of_a_thousand_that_a_real_vllm_did_not_make_is_found():
    [ledger] = ledgers(vllm_counted())
    assert (ledger.answered, ledger.transfers) == (1001, 1000)
    tiny = Geometry(token_bytes=4096, block_tokens=16, copies=1, said="4 layers, float32")
    claim = judge(expected([250] + [128] * 1000, tiny), ledger)
    assert (claim.verdict, claim.skipped) == ("contradicted", 1)
    assert "1 of 1001 requests moved no KV" in claim.text


def test_a_real_vllm_moves_an_unfilled_block_whole_and_counts_its_tokens_as_fetched():
    _, decode = vllm_counted()
    assert decode.get("vLLM", "kv_bytes") == (999 * 128 + -(-250 // 16) * 16) * 4096
    assert decode.get("vLLM", "external_kv_tokens") == 999 * 128 + 250
    assert decode.get("vLLM", "computed_tokens") == 128


def test_a_router_that_passes_a_workers_metrics_on_is_told_to_be_that_worker():
    prefill, decode = (vllm_scrape(role, "after") for role in ("prefill", "decode"))
    later = {
        key: value if key[0].endswith(("_created", "_start_time_seconds")) else value + 1
        for key, value in decode.items()
    }
    assert told_again({"prefill": prefill, "decode": decode, "router": later}) == {"router"}
    assert told_again({"a": {("up", ""): 1.0}, "b": {("up", ""): 1.0}}) == set()
    second = {("process_start_time_seconds", ""): 1_730_000_000.0}
    assert told_again({"a": {**second, ("x", ""): 1.0}, "b": {**second, ("x", ""): 2.0}}) == set(), "two of one second"


def test_requests_whose_client_went_away_are_not_counted_as_answered():
    gone = Counted(source="d", values={("vLLM", "requests"): 10.0, ("vLLM", "aborted"): 3.0})
    assert sums.requests_of(gone, "vLLM") == 7
