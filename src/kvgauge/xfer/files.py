"""A run of `kvgauge xfer` on disk: every transfer as Parquet, logs, results.json. docs/xfer.md describes them."""

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kvgauge.failures import UsageError
from kvgauge.samples.disk import disk_errors, write_whole
from kvgauge.xfer.measure import ORDER, Measured

SCHEMA = 1
RESULTS, CHART = "results.json", "chart.svg"
LOG_BYTES_MAX = 1 << 20


class Folder:
    """raises UsageError when it exists and holds something, SamplesError when it cannot be written"""

    def __init__(self, path: Path | None) -> None:
        stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        self.path = path or Path("kvgauge-runs") / f"{stamp}-xfer"
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UsageError(f"{self.path} is there already and is not empty: name a new folder with --out")
        with disk_errors(self.path, "timings"):
            (self.path / "timings").mkdir(parents=True, exist_ok=True)
            (self.path / "logs").mkdir(exist_ok=True)

    def keep(self, found: Measured) -> None:
        """Times and logs of one measurement, whole or not at all. raises SamplesError"""
        name = f"r{found.round}-{slug(found.work.name)}-{found.backend}"
        with disk_errors(self.path, "timings"):
            for worker, text in found.logs.items():
                log = text.encode()[:LOG_BYTES_MAX]
                (self.path / "logs" / f"{name}-{worker}.log").write_bytes(log)
            if found.records:
                self._parquet(found, self.path / "timings" / f"{name}.parquet")

    def _parquet(self, found: Measured, path: Path) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = np.concatenate(found.records)
        columns: dict[str, Any] = {name: table[:, number] for number, name in enumerate(ORDER)}
        if found.work.strategy == "blocks":  # there was nothing to take the time of: null, not 0
            columns |= {name: pa.nulls(len(table), pa.int64()) for name in ("gather_ns", "scatter_ns", "signal_ns")}
        about = {
            "kvgauge_xfer": str(SCHEMA),
            "backend": found.backend,
            "workload": msgspec.json.encode(found.work).decode(),
        }
        made = path.with_suffix(".part")
        pq.write_table(pa.table(columns).replace_schema_metadata(about), made, compression="zstd")
        made.replace(path)

    def write_results(self, text: bytes) -> None:
        """raises SamplesError"""
        write_whole(self.path / RESULTS, text)


def write_chart(folder: Path, spec: Mapping[str, object]) -> Path:
    """raises ReportError when it cannot be drawn, SamplesError when it cannot be written"""
    from kvgauge.report.charts import svg

    path = folder / CHART
    write_whole(path, svg(spec))
    return path


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")[:80]
