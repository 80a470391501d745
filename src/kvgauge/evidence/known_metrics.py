"""What serving engines call what we want to know of them: a table, and nothing but.

Names as seen in vLLM 0.32, SGLang (docs and sources of 2025-2026), Dynamo 1.6.1 and NIXL 1.5.1. A histogram gives a
mean only, (sum after - sum before) / (count after - count before): its buckets are too coarse for the quantiles of one
cell (vLLM's transfer buckets begin at 5 ms).
"""
# ruff: noqa: E501 - a table is read along its rows

from typing import Literal

import msgspec

Take = Literal["mean", "sum", "count", "increase", "max"]

POLLED = "it runs until the caller asks NIXL whether the transfer has ended: at least the wire's time, perhaps far more"


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that one metric tells.

    take      mean, sum or count of a histogram (or summary) over the cell; increase of a counter; max of a gauge
    quantity  our word for it; where several metrics of one source give the same, the first of the table stands
    factor    from the metric's unit to `unit`
    labels    which series count; () all, added up
    note      what the reader must know to believe it
    """

    engine: Literal["vLLM", "SGLang", "Dynamo", "NIXL"]
    name: str
    take: Take
    quantity: str
    unit: str
    means: str
    factor: float = 1.0
    labels: tuple[tuple[str, str], ...] = ()
    note: str | None = None


def _vllm(name: str, take: Take, quantity: str, unit: str, means: str, **more: object) -> Known:
    return Known(engine="vLLM", name=f"vllm:{name}", take=take, quantity=quantity, unit=unit, means=means, **more)  # type: ignore[arg-type]


def _sglang(name: str, take: Take, quantity: str, unit: str, means: str, **more: object) -> Known:
    return Known(engine="SGLang", name=f"sglang:{name}", take=take, quantity=quantity, unit=unit, means=means, **more)  # type: ignore[arg-type]


def _dynamo(name: str, take: Take, quantity: str, unit: str, means: str, **more: object) -> Known:
    return Known(engine="Dynamo", name=f"dynamo_{name}", take=take, quantity=quantity, unit=unit, means=means, **more)  # type: ignore[arg-type]


def _nixl(name: str, take: Take, quantity: str, unit: str, means: str, **more: object) -> Known:
    return Known(engine="NIXL", name=f"agent_{name}", take=take, quantity=quantity, unit=unit, means=means, **more)  # type: ignore[arg-type]


_MS = 1e3  # seconds to milliseconds
_PCT = 1e2
_MIB = float(1 << 20)

KNOWN: tuple[Known, ...] = (
    # Dynamo first: its frontend is where requests come in
    _dynamo("frontend_time_to_first_token_seconds", "mean", "ttft_ms_mean", "ms", "request received to first token", factor=_MS),
    _dynamo("frontend_time_to_first_token_seconds", "count", "first_tokens", "requests", "requests that gave a token"),
    _dynamo("frontend_inter_token_latency_seconds", "mean", "itl_ms_mean", "ms", "gap between tokens", factor=_MS),
    _dynamo("frontend_request_duration_seconds", "mean", "e2e_latency_ms_mean", "ms", "request received to its end", factor=_MS),
    _dynamo("frontend_requests_total", "increase", "requests", "requests", "requests ended, failed ones too"),
    _dynamo("frontend_inflight_requests", "max", "requests_running_max", "requests", "requests under way, largest scrape"),
    _dynamo("frontend_queued_requests", "max", "requests_waiting_max", "requests", "requests without a first token, largest scrape"),
    _dynamo("frontend_disconnected_clients", "increase", "disconnected", "requests", "clients that went away", note="a gauge in name, a counter in use"),
    _dynamo("frontend_input_sequence_tokens", "sum", "prompt_tokens", "tokens", "prompt tokens"),
    _dynamo("frontend_output_tokens_total", "increase", "output_tokens", "tokens", "output tokens"),
    _dynamo("frontend_cached_tokens", "sum", "prefix_hit_tokens", "tokens", "prompt tokens found in a prefix cache"),
    _dynamo("component_router_time_to_first_token_seconds", "mean", "router_ttft_ms_mean", "ms", "the router's time to first token", factor=_MS,
            note="disaggregated, it ends with prefill: the KV transfer is not in it, and it does not match the client's"),
    _dynamo("component_router_kv_transfer_estimated_latency_seconds", "mean", "kv_transfer_ms_upper_mean", "ms", "the router's estimate of the KV transfer", factor=_MS,
            note="an upper bound: decode's queueing is in it"),
    _dynamo("component_requests_total", "increase", "component_requests", "requests", "requests a worker took"),
    _dynamo("component_errors_total", "increase", "component_errors", "errors", "errors of a worker"),
    _dynamo("component_inflight_requests", "max", "component_running_max", "requests", "requests a worker has, largest scrape"),
    _dynamo("component_request_duration_seconds", "mean", "component_request_ms_mean", "ms", "a worker's part of a request", factor=_MS),
    # vLLM
    _vllm("time_to_first_token_seconds", "mean", "ttft_ms_mean", "ms", "request received to first token", factor=_MS),
    _vllm("time_to_first_token_seconds", "count", "first_tokens", "requests", "requests that gave a token"),
    _vllm("inter_token_latency_seconds", "mean", "itl_ms_mean", "ms", "gap between tokens", factor=_MS),
    _vllm("time_per_output_token_seconds", "mean", "itl_ms_mean", "ms", "gap between tokens (older name)", factor=_MS),
    _vllm("request_time_per_output_token_seconds", "mean", "tpot_ms_mean", "ms", "a request's mean time per token after the first", factor=_MS),
    _vllm("e2e_request_latency_seconds", "mean", "e2e_latency_ms_mean", "ms", "request received to last token", factor=_MS),
    _vllm("request_queue_time_seconds", "mean", "queue_ms_mean", "ms", "waiting to be scheduled", factor=_MS),
    _vllm("request_prefill_time_seconds", "mean", "prefill_ms_mean", "ms", "scheduled to first token", factor=_MS),
    _vllm("request_decode_time_seconds", "mean", "decode_ms_mean", "ms", "first to last token", factor=_MS),
    _vllm("request_success_total", "increase", "requests", "requests", "requests ended well"),
    _vllm("prompt_tokens_total", "increase", "prompt_tokens", "tokens", "prompt tokens"),
    _vllm("generation_tokens_total", "increase", "output_tokens", "tokens", "output tokens"),
    _vllm("num_requests_running", "max", "requests_running_max", "requests", "requests being computed, largest scrape"),
    _vllm("num_requests_waiting", "max", "requests_waiting_max", "requests", "requests waiting, largest scrape"),
    _vllm("kv_cache_usage_perc", "max", "kv_cache_used_pct_max", "%", "KV cache in use, largest scrape", factor=_PCT),
    _vllm("num_preemptions_total", "increase", "preemptions", "requests", "requests put back for want of KV blocks"),
    _vllm("prefix_cache_queries_total", "increase", "prefix_query_tokens", "tokens", "prompt tokens looked for in the prefix cache"),
    _vllm("prefix_cache_hits_total", "increase", "prefix_hit_tokens", "tokens", "of those, found"),
    _vllm("external_prefix_cache_queries_total", "increase", "external_query_tokens", "tokens", "prompt tokens asked of the KV connector"),
    _vllm("external_prefix_cache_hits_total", "increase", "external_hit_tokens", "tokens", "of those, given by it"),
    _vllm("prompt_tokens_by_source_total", "increase", "external_kv_tokens", "tokens", "prompt tokens whose KV came from another worker",
          labels=(("source", "external_kv_transfer"),)),
    _vllm("nixl_bytes_transferred", "sum", "kv_bytes", "B", "KV bytes moved"),
    _vllm("nixl_xfer_time_seconds", "count", "kv_transfers", "transfers", "KV transfers, of each rank"),
    _vllm("nixl_xfer_time_seconds", "mean", "kv_transfer_ms_mean", "ms", "time of a KV transfer", factor=_MS, note=POLLED),
    _vllm("nixl_post_time_seconds", "mean", "kv_post_ms_mean", "ms", "time inside NIXL's post call", factor=_MS),
    _vllm("nixl_num_descriptors", "mean", "kv_descriptors_mean", "descriptors", "descriptors of a transfer"),
    _vllm("nixl_num_failed_transfers_total", "increase", "kv_failures", "transfers", "KV transfers that failed"),
    _vllm("nixl_num_failed_notifications_total", "increase", "kv_notification_failures", "messages", "notifications that failed"),
    _vllm("nixl_num_kv_expired_reqs_total", "increase", "kv_expired", "requests", "KV that nobody fetched in time (prefill)"),
    _vllm("nixl_num_notifications_after_expiry_total", "increase", "kv_stale", "messages", "KV fetched after prefill had given it up: its blocks may have been another request's"),
    # SGLang
    _sglang("time_to_first_token_seconds", "mean", "ttft_ms_mean", "ms", "request received to first token", factor=_MS),
    _sglang("time_to_first_token_seconds", "count", "first_tokens", "requests", "requests that gave a token"),
    _sglang("inter_token_latency_seconds", "mean", "itl_ms_mean", "ms", "gap between tokens", factor=_MS),
    _sglang("e2e_request_latency_seconds", "mean", "e2e_latency_ms_mean", "ms", "request received to last token", factor=_MS),
    _sglang("queue_time_seconds", "mean", "queue_ms_mean", "ms", "waiting to be scheduled", factor=_MS),
    _sglang("num_requests_total", "increase", "requests", "requests", "requests ended"),
    _sglang("num_aborted_requests_total", "increase", "aborted", "requests", "requests aborted"),
    _sglang("prompt_tokens_total", "increase", "prompt_tokens", "tokens", "prompt tokens"),
    _sglang("generation_tokens_total", "increase", "output_tokens", "tokens", "output tokens"),
    _sglang("cached_tokens_total", "increase", "prefix_hit_tokens", "tokens", "prompt tokens found in a prefix cache"),
    _sglang("num_running_reqs", "max", "requests_running_max", "requests", "requests being computed, largest scrape"),
    _sglang("num_queue_reqs", "max", "requests_waiting_max", "requests", "requests waiting, largest scrape"),
    _sglang("token_usage", "max", "kv_cache_used_pct_max", "%", "KV cache in use, largest scrape", factor=_PCT),
    _sglang("num_prefill_inflight_queue_reqs", "max", "kv_sending_max", "requests", "prefilled, KV not yet fetched, largest scrape"),
    _sglang("num_decode_transfer_queue_reqs", "max", "kv_receiving_max", "requests", "waiting for their KV, largest scrape"),
    _sglang("kv_transfer_total_mb", "sum", "kv_bytes", "B", "KV bytes moved", factor=_MIB, note="the engine counts in units of 2^20 B"),
    _sglang("kv_transfer_latency_ms", "count", "kv_transfers", "transfers", "KV transfers (newer SGLang)"),
    _sglang("kv_transfer_latency_ms", "mean", "kv_transfer_ms_mean", "ms", "time of a KV transfer (newer SGLang)", note=POLLED),
    _sglang("kv_transfer_latency_ms", "max", "kv_transfer_ms_last_max", "ms", "the last KV transfer's time, largest scrape (older SGLang: a gauge)", note=POLLED),
    _sglang("kv_transfer_bootstrap_ms", "mean", "kv_bootstrap_ms_mean", "ms", "the two sides finding each other"),
    _sglang("kv_transfer_alloc_ms", "mean", "kv_alloc_ms_mean", "ms", "waiting for KV blocks at decode"),
    _sglang("num_transfer_failed_reqs_total", "increase", "kv_failures", "transfers", "requests whose KV transfer failed"),
    _sglang("num_bootstrap_failed_reqs_total", "increase", "kv_bootstrap_failures", "requests", "requests whose two sides did not find each other"),
    # NIXL's own exporter, one process a port
    _nixl("rx_bytes_total", "increase", "kv_rx_bytes", "B", "bytes this agent read (READ: the initiator counts)"),
    _nixl("tx_bytes_total", "increase", "kv_tx_bytes", "B", "bytes this agent wrote (WRITE: the initiator counts)"),
    _nixl("rx_requests_num_total", "increase", "kv_rx_transfers", "transfers", "READs this agent began"),
    _nixl("tx_requests_num_total", "increase", "kv_tx_transfers", "transfers", "WRITEs this agent began"),
    _nixl("xfer_time_us", "mean", "kv_transfer_ms_mean", "ms", "time of a transfer", factor=1e-3, note=POLLED),
    _nixl("xfer_post_time_us", "mean", "kv_post_ms_mean", "ms", "time inside the post call", factor=1e-3),
    _nixl("errors_total", "increase", "kv_failures", "transfers", "errors, of every status"),
    _nixl("telemetry_events_dropped_total", "increase", "telemetry_dropped", "events", "events the exporter lost: the other counts are too low by these"),
)  # fmt: skip
