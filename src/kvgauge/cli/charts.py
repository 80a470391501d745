"""The chart beside the results of `kvgauge xfer`. Results never wait for it, nor end otherwise because of it."""

import sys
from pathlib import Path


def drawn(data: bytes, folder: Path) -> Path | None:
    """Where it lies, of results.json's text; None, and one line on standard error, when there is none."""
    from kvgauge.failures import KvgaugeError
    from kvgauge.report.numbers import plain
    from kvgauge.xfer.chart import chart
    from kvgauge.xfer.files import RESULTS, write_chart
    from kvgauge.xfer.results import decode

    try:
        return write_chart(folder, chart(decode(data, RESULTS)))
    except Exception as error:
        why = str(error) if isinstance(error, KvgaugeError) else f"{type(error).__name__}: {error}"
    print(
        f"kvgauge: no chart: {plain(why)[:400].rstrip('.')}. `kvgauge report {plain(str(folder))}` tries again",
        file=sys.stderr,
    )
    return None
