"""The server's line below a test's table."""

import msgspec
import pytest

from kvgauge.report.records import RunResult, TestResult, Tp
from kvgauge.report.server import server_line
from kvgauge.stats.server import ClientSaw, Server, ServerSource, ServerValue

CLIENT = ClientSaw(requests=10, failed=0, output_tokens=20, ttft_ms_mean=30.0, e2e_latency_ms_mean=60.0)


def value(quantity, point, *, n=10, source="http://f/metrics", engine="vLLM"):
    return ServerValue(quantity=quantity, source=source, engine=engine, metric="x", point=point, n=n, unit="u")


def server(*values, client=CLIENT, gaps=0, resets=0, reason=None):
    source = ServerSource(source="http://f/metrics", scrapes=5, gaps=gaps, resets=resets, reason=reason)
    return Server(sources=(source,), values=values, client=client)


def line(*servers, status="valid"):
    runs = tuple(
        RunResult(
            run_id=f"r{at}", repetition=at, cell="c", concurrency=1, seed=1, status=status, reasons=(), metrics={}, server=each,
        )
        for at, each in enumerate(servers, 1)
    )  # fmt: skip
    test = TestResult(
        name="t", backend="UCX", fabric="tcp", build="1", stand_in=None, patches=None, model="m",
        tp=Tp(prefill=1, decode=1), expect="valid", baseline=(), runs=runs, summary=(), gains=(),
    )  # fmt: skip
    return server_line(test, "c")


def test_the_servers_ttft_stands_beside_the_clients_of_the_same_requests():
    said = line(server(value("ttft_ms_mean", 20.0)), server(value("ttft_ms_mean", 22.0)))
    assert said == "server in c (n=2): TTFT mean 21.0 ms, the client's 30.0 ms of the same requests"


def test_sources_of_one_engine_are_added_up_and_another_engine_is_not():
    said = line(
        server(
            value("kv_bytes", 1 << 20, source="d0"), value("kv_bytes", 3 << 20, source="d1"),
            value("kv_bytes", 4 << 20, engine="SGLang"), value("kv_transfers", 2, source="d0"),
            value("kv_transfers", 2, source="d1"), value("kv_transfer_ms_mean", 10.0, n=1, source="d0"),
            value("kv_transfer_ms_mean", 20.0, n=3, source="d1"), value("kv_failures", 1, source="d1"),
        )
    )  # fmt: skip
    assert said == "server in c (n=1): KV 4.0 MiB in 4 transfers, mean 17.5 ms · KV failures 1"


def test_levels_prefix_hits_gaps_and_restarts_are_said():
    said = line(
        server(
            value("requests_running_max", 8), value("requests_waiting_max", 3), value("prefix_hit_tokens", 64),
            value("prefix_query_tokens", 1024), gaps=2, resets=1,
        )
    )  # fmt: skip
    assert said == (
        "server in c (n=1): at most 8 running, 3 waiting · prefix cache hits 64 of 1,024 tokens · "
        "2 of 7 scrapes without an answer · its counters began again 1 times"
    )


@pytest.mark.parametrize(("counted", "told"), [(10, False), (11, True)])
def test_requests_that_this_client_did_not_send_are_noticed(counted, told):
    said = line(server(value("first_tokens", counted), value("kv_failures", 0)))
    assert ("somebody else used it too" in said) == told


def test_a_source_without_known_metrics_or_without_answers_says_why():
    said = line(server(gaps=4, reason="HTTP 404"))
    assert said == "server in c: no known metric (5 scrapes, 4 without an answer; HTTP 404)"


def test_nothing_is_said_when_nothing_was_scraped_or_no_run_counts():
    assert line(None) is None
    assert line(server(value("ttft_ms_mean", 1.0)), status="failed") is None


def test_the_section_survives_json():
    given = server(value("ttft_ms_mean", 20.0), resets=1)
    assert msgspec.json.decode(msgspec.json.encode(given), type=Server) == given
