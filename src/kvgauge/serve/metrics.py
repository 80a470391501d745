"""Counters and histograms of the frontend in Prometheus text, under vLLM's names where vLLM has one."""

from bisect import bisect_left

_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)
_BYTES = tuple(float(1 << power) for power in range(16, 34, 2))
_COUNTS = (10.0, 20.0, 30.0, 50.0, 100.0, 200.0, 400.0, 1_000.0, 2_000.0, 4_000.0, 10_000.0, 20_000.0, 50_000.0)


class Histogram:
    def __init__(self, name: str, help_text: str, bounds: tuple[float, ...]) -> None:
        self.name, self.help_text, self._bounds = name, help_text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, labels: str) -> list[str]:
        found, running = [f"# HELP {self.name} {self.help_text}", f"# TYPE {self.name} histogram"], 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            running += count
            found.append(f'{self.name}_bucket{{{labels},le="{bound}"}} {running}')
        return [*found, f"{self.name}_sum{{{labels}}} {self._sum}", f"{self.name}_count{{{labels}}} {running}"]


class Metrics:
    """What /metrics says."""

    def __init__(self, model: str) -> None:
        self._labels = f'model_name="{model}"'
        self.counters = {
            "vllm:request_success_total": 0,
            "vllm:prompt_tokens_total": 0,
            "vllm:generation_tokens_total": 0,
            "vllm:nixl_num_failed_transfers_total": 0,
            "kvgauge:request_failed_total": 0,
            "kvgauge:request_aborted_total": 0,
            "kvgauge:kv_pieces_wrong_total": 0,
        }
        self.sources = {"local_compute": 0, "local_cache_hit": 0, "external_kv_transfer": 0}
        self.gauges = {"vllm:num_requests_running": 0.0, "vllm:num_requests_waiting": 0.0}
        self.ttft = Histogram("vllm:time_to_first_token_seconds", "Time to first token.", _SECONDS)
        self.tpot = Histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per output token after the first.", _STEP_SECONDS
        )
        self.e2e = Histogram("vllm:e2e_request_latency_seconds", "End to end request latency.", _SECONDS)
        self.transfer = Histogram("vllm:nixl_xfer_time_seconds", "First post to last completion.", _SECONDS)
        self.post = Histogram("vllm:nixl_post_time_seconds", "Time inside NIXL's post calls.", _SECONDS)
        self.moved = Histogram("vllm:nixl_bytes_transferred", "KV bytes of a request.", _BYTES)
        self.descriptors = Histogram("vllm:nixl_num_descriptors", "Descriptors of a request.", _COUNTS)

    def text(self) -> bytes:
        lines = []
        for name, value in self.counters.items():
            lines += [f"# TYPE {name.removesuffix('_total')} counter", f"{name}{{{self._labels}}} {value}"]
        lines.append("# TYPE vllm:prompt_tokens_by_source counter")
        for source, tokens in self.sources.items():
            lines.append(f'vllm:prompt_tokens_by_source_total{{{self._labels},source="{source}"}} {tokens}')
        for name, level in self.gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name}{{{self._labels}}} {level}"]
        for histogram in (self.ttft, self.tpot, self.e2e, self.transfer, self.post, self.moved, self.descriptors):
            lines += histogram.lines(self._labels)
        return ("\n".join(lines) + "\n").encode()
