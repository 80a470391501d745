"""What the server counted in a cell, from scrapes as they lie on disk."""

import pytest

from kvgauge.evidence.prometheus import parse
from kvgauge.samples.records import Exchange, MetricPoint
from kvgauge.scrape.changes import UP, changed
from kvgauge.stats.server import UNSEEN, server_cells

WINDOWS = {"a": (1_000, 2_000), "b": (3_000, 4_000)}
SOURCE = "http://h/metrics"


class Server:
    """Writes scrapes as the scraping process does."""

    def __init__(self, source=SOURCE):
        self.source, self.points, self.before = source, [], {}

    def scrape(self, time_ns, *series, up=True, detail=None):
        now = parse("".join(f"{line}\n" for line in series).encode())
        assert now.garbage == 0
        rows = changed(self.before, now) if up else []
        self.before = now.values if up else self.before
        for name, labels, kind, value in [(UP, "", "gauge", float(up)), *rows]:
            self.points.append(
                MetricPoint(
                    run_id="r1", source=self.source, time_ns=time_ns, done_ns=time_ns + 1, realtime_ns=time_ns, name=name,
                    labels=labels, kind=kind, value=value, detail=detail if name == UP else None,
                )
            )  # fmt: skip
        return self


def exchange(cell="a", seq=0, ttft_ms=10, **changes):
    base = {
        "seq": seq, "run_id": "r1", "cell": cell, "warmup": False, "slot": 0, "worker": 0, "host": "h",
        "clock": "monotonic", "stamp_source": "user", "due_ns": 0, "sent_ns": 0,
        "arrivals_ns": (ttft_ms * 1_000_000, 2 * ttft_ms * 1_000_000), "done_ns": 0, "tokens_in": 1, "tokens_out": 2,
        "tokens_source": "usage", "status": 200,
    }  # fmt: skip
    return Exchange(**(base | changes))


def values(server, cell="a", exchanges=()):
    return {value.quantity: value for value in server_cells(server.points, WINDOWS, exchanges)[cell].values}


def ttft(total, count):
    return f"vllm:time_to_first_token_seconds_sum {total}", f"vllm:time_to_first_token_seconds_count {count}"


def test_a_cell_has_the_difference_of_its_last_and_first_scrape_and_no_other():
    server = Server()
    server.scrape(500, *ttft(9, 9)).scrape(1_000, *ttft(10, 10)).scrape(1_900, *ttft(10.5, 15))
    server.scrape(2_500, *ttft(99, 99)).scrape(3_100, *ttft(99, 99)).scrape(3_900, *ttft(100, 100))
    assert values(server)["ttft_ms_mean"].point == pytest.approx(100)
    assert values(server)["ttft_ms_mean"].n == 5
    assert values(server)["first_tokens"].point == 5
    assert values(server, "b")["ttft_ms_mean"].point == pytest.approx(1000)


def test_a_value_that_did_not_change_is_still_there_in_a_later_cell():
    server = Server().scrape(1_000, *ttft(1, 10)).scrape(1_900, *ttft(1, 10)).scrape(3_000, *ttft(1, 10))
    server.scrape(3_900, *ttft(2, 20))
    assert values(server)["ttft_ms_mean"].point is None
    assert values(server)["ttft_ms_mean"].reason == "nothing was observed in this cell"
    assert values(server, "b")["ttft_ms_mean"].point == pytest.approx(100)


def test_series_that_come_with_the_first_request_count_from_nothing():
    server = Server().scrape(1_000, "x 1").scrape(1_900, "x 1", *ttft(1, 10), 'vllm:request_success_total{r="stop"} 10')
    assert values(server)["ttft_ms_mean"].point == pytest.approx(100)
    assert values(server)["requests"].point == 10


def test_a_counter_that_fell_began_again_and_what_it_holds_is_new():
    server = Server().scrape(1_000, *ttft(50, 100)).scrape(1_500, *ttft(51, 110)).scrape(1_900, *ttft(0.5, 5))
    found = server_cells(server.points, WINDOWS, ())["a"]
    assert found.sources[0].resets == 1
    by_name = {value.quantity: value for value in found.values}
    assert by_name["first_tokens"].point == 15
    assert by_name["ttft_ms_mean"].point == pytest.approx(1.5 / 15 * 1e3)


def test_a_series_that_went_away_and_came_back_counts_from_nothing():
    server = Server().scrape(1_000, "vllm:request_success_total 7").scrape(1_500, "x 1")
    server.scrape(1_900, "vllm:request_success_total 9")
    assert values(server)["requests"].point == 9


def test_a_gap_is_counted_with_its_reason_and_the_difference_spans_it():
    server = (
        Server().scrape(1_000, *ttft(1, 10)).scrape(1_500, up=False, detail="timed out").scrape(1_900, *ttft(2, 20))
    )
    found = server_cells(server.points, WINDOWS, ())["a"]
    assert (found.sources[0].scrapes, found.sources[0].gaps, found.sources[0].reason) == (2, 1, "timed out")
    assert next(value.point for value in found.values if value.quantity == "ttft_ms_mean") == pytest.approx(100)


def test_a_source_that_answered_once_gives_no_difference_and_says_so():
    server = Server().scrape(1_000, *ttft(1, 10)).scrape(1_900, up=False)
    found = server_cells(server.points, WINDOWS, ())["a"]
    assert found.values == ()
    assert "needs two" in found.sources[0].reason


def test_levels_are_those_while_the_load_ran_summed_over_a_sources_series():
    idle, busy = 'vllm:num_requests_running{engine="0"} 0', 'vllm:num_requests_running{engine="0"} 3'
    server = Server().scrape(1_000, idle).scrape(1_900, idle)
    assert values(server)["requests_running_max"].point is None
    assert values(server)["requests_running_max"].reason == UNSEEN
    server = (
        Server()
        .scrape(1_000, 'vllm:num_requests_running{engine="0"} 9')
        .scrape(1_500, busy, 'vllm:num_requests_running{engine="1"} 2')
    )
    server.scrape(1_900, idle)
    assert values(server)["requests_running_max"].point == 5
    assert values(server)["requests_running_max"].n == 1


def test_only_the_labels_the_table_names_count():
    name = "vllm:prompt_tokens_by_source_total"
    server = Server().scrape(1_000, f'{name}{{source="external_kv_transfer"}} 1', f'{name}{{source="local_compute"}} 1')
    server.scrape(1_900, f'{name}{{source="external_kv_transfer"}} 5', f'{name}{{source="local_compute"}} 100')
    assert values(server)["external_kv_tokens"].point == 4


def test_units_become_ours():
    server = Server().scrape(
        1_000, "sglang:kv_transfer_total_mb_sum 1", "sglang:kv_transfer_total_mb_count 1", "agent_rx_bytes_total 5"
    )
    server.scrape(
        1_900, "sglang:kv_transfer_total_mb_sum 3", "sglang:kv_transfer_total_mb_count 2", "agent_rx_bytes_total 12"
    )
    found = values(server)
    assert (found["kv_bytes"].point, found["kv_bytes"].unit) == (2 * 2**20, "B")
    assert found["kv_rx_bytes"].point == 7


def test_counters_are_found_with_and_without_their_ending():
    server = (
        Server().scrape(1_000, "vllm:nixl_num_failed_transfers 1").scrape(1_900, "vllm:nixl_num_failed_transfers 4")
    )
    assert values(server)["kv_failures"].point == 3


def test_not_a_number_and_infinity_end_in_no_value_and_no_error():
    server = Server().scrape(1_000, *ttft("NaN", 1), "vllm:num_requests_running NaN")
    server.scrape(1_500, *ttft(3, "+Inf"), "vllm:num_requests_running +Inf").scrape(1_900, *ttft(4, 9))
    assert "ttft_ms_mean" not in values(server)


def test_the_clients_side_is_of_the_same_requests_warm_up_included():
    server = Server().scrape(1_000, *ttft(0, 0)).scrape(1_900, *ttft(1, 2))
    given = [exchange(ttft_ms=10, warmup=True), exchange(seq=1, ttft_ms=30), exchange("b", seq=2, ttft_ms=500)]
    given += [exchange(seq=3, arrivals_ns=(), failure="connect", tokens_out=0)]
    client = server_cells(server.points, WINDOWS, given)["a"].client
    assert (client.requests, client.failed, client.output_tokens) == (3, 1, 4)
    assert client.ttft_ms_mean == pytest.approx(20)
    assert client.e2e_latency_ms_mean == pytest.approx(40)


def test_two_sources_are_kept_apart():
    one, two = Server("http://one/metrics"), Server("http://two/metrics")
    one.scrape(1_000, *ttft(0, 0)).scrape(1_900, *ttft(1, 1))
    two.scrape(1_001, *ttft(0, 0)).scrape(1_901, *ttft(2, 1))
    mixed = sorted(one.points + two.points, key=lambda point: point.time_ns)
    found = server_cells(mixed, WINDOWS, ())["a"]
    means = {value.source: value.point for value in found.values if value.quantity == "ttft_ms_mean"}
    assert means == {"http://one/metrics": pytest.approx(1000), "http://two/metrics": pytest.approx(2000)}


def test_a_cell_nobody_scraped_in_has_no_section():
    assert server_cells(Server().scrape(2_500, "x 1").points, WINDOWS, ()) == {}
