"""The earlier results that ship with kvgauge: numbers others printed, in the shape of results.json, without any n."""

from importlib.resources import files

from kvgauge.report.records import Results
from kvgauge.report.results import decode

REFERENCE = "reference-results.json"


def published() -> Results:
    """NIXL 0.8.0 stock against patched, and the follow-up's TTFT over UCX on TCP against LIBFABRIC on EFA."""
    return decode(files("kvgauge.report").joinpath(REFERENCE).read_bytes(), REFERENCE)
