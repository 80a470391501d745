"""The views a question may be asked of: names, columns, SQL over what `tables` holds. Pure."""

from collections.abc import Iterable

import msgspec

from kvgauge.compare.values import RUN_LEVEL
from kvgauge.plan.metrics import METRICS
from kvgauge.samples.schema import KINDS, Kind, columns_of


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One view.

    about    what a row is
    columns  name -> meaning, in order
    sql      how it is made of the tables below it; None: it is such a table
    """

    name: str
    about: str
    columns: dict[str, str]
    sql: str | None = None


RUN = {
    "folder": "name of the run folder it came from",
    "run_id": "the run, unique within its folder",
    "test": "the plan's row",
    "run_status": "worst state of the run and its cells: valid, invalid, failed, interrupted, pending",
}
CELL = {
    "cell": "the cell; null for what belongs to the run as a whole",
    "cell_status": "state of this run in this cell",
    "valid": "whether that state is valid: only such rows enter kvgauge's own summaries and gains",
}
ESTIMATE = {
    "point": "the value, in `unit`; null when there is none",
    "low": "lower end of its 95 % interval",
    "high": "upper end",
    "n": "independent observations behind it",
    "unit": "of point, low and high",
    "reason": "why a value or an interval is missing",
}
CELL_SAID = {
    "concurrency": "of the cell",
    "reasons": "why it is not valid",
    "remarks": "what does not make it wrong, but must be known to read it",
}
POINTS = {  # metrics that are columns of `cells`, by what they measure
    name: f"point of {name} ({metric.unit}); null: see `estimates`" for name, metric in METRICS.items()
} | {
    "requests": "successful measured requests",
    "failures": "failed measured requests",
    "late_ms_mean": "mean sent - due, ms",
    "kv_bytes_expected": "bytes of KV the model's geometry asks for",
    "kv_bytes_moved": "bytes NIXL counted",
}

_SAMPLES: dict[Kind, str] = {
    "exchanges": "requests",
    "arrivals": "arrivals",
    "transfers": "transfers",
    "metrics": "metrics",
}
_SAMPLE_OF_RUN = """
SELECT {columns}, s.* EXCLUDE (folder, run_id{more}){derived}
FROM {kind}_samples s
LEFT JOIN runs r ON r.folder = s.folder AND r.run_id = s.run_id
{joins}"""
_RUN_COLUMNS = "s.folder, s.run_id, r.test, r.run_status"
_CELL_JOIN = "LEFT JOIN cells c ON c.folder = s.folder AND c.run_id = s.run_id AND c.cell = s.cell"
_CELL_COLUMNS = f"{_RUN_COLUMNS}, s.cell, c.cell_status, coalesce(c.valid, false) AS valid"
_ENDS = """
LEFT JOIN arrivals_samples a ON a.folder = s.folder AND a.run_id = s.run_id AND a.cell = s.cell AND a.seq = s.seq
  AND a."index" = 0
LEFT JOIN arrivals_samples z ON z.folder = s.folder AND z.run_id = s.run_id AND z.cell = s.cell AND z.seq = s.seq
  AND z."index" = s.arrival_count - 1"""
_LATENCIES = """,
  (a.arrival_ns - s.due_ns) / 1e6 AS ttft_ms,
  (z.arrival_ns - s.due_ns) / 1e6 AS e2e_latency_ms,
  CASE WHEN s.tokens_out > 1 AND s.arrival_count > 1 AND s.tokens_source <> 'events'
    THEN (z.arrival_ns - a.arrival_ns) / 1e6 / (s.tokens_out - 1) END AS tpot_ms,
  (s.sent_ns - s.due_ns) / 1e6 AS late_ms"""
_GAP = """,
  (s.arrival_ns - lag(s.arrival_ns) OVER (
    PARTITION BY s.folder, s.run_id, s.cell, s.seq ORDER BY s."index")) / 1e6 AS gap_ms"""
_MOVE = ",\n  (s.transferred_ns - s.posted_ns) / 1e6 AS transfer_ms"


def _of_samples(kind: Kind, about: str, *, cell: bool, joins: str = "", derived: str = "", **more: str) -> View:
    """A view over sample files: which run and cell, the columns of docs/samples.md, then what follows from them."""
    head = RUN | (CELL if cell else {})
    held = {name: "as in docs/samples.md" for name in columns_of(kind) if name not in head}
    sql = _SAMPLE_OF_RUN.format(
        columns=_CELL_COLUMNS if cell else _RUN_COLUMNS,
        more=", cell" if cell else "",
        kind=kind,
        joins=(_CELL_JOIN if cell else "") + joins,
        derived=derived,
    )
    return View(name=_SAMPLES[kind], about=about, columns=head | held | more, sql=sql)


TABLES: tuple[View, ...] = (  # these are filled from results.json and evidence.json, and the others lean on them
    View(
        name="runs",
        about="one test, one repetition; those that do not count too, and the one that is under way",
        columns={
            "folder": RUN["folder"],
            "run_id": RUN["run_id"],
            "plan": "name of the plan",
            "test": RUN["test"],
            "repetition": "1-based",
            "run_status": RUN["run_status"],
            "valid": "whether the whole run and all its cells are valid",
            "reasons": "why it is not, each once",
            "backend": "what the test asked for: UCX, LIBFABRIC, or unobserved",
            "fabric": "what the test asked for",
            "build": "which NIXL the plan says",
            "stand_in": "set when that is not what the row is named after",
            "model": "as the plan calls it",
            "prefill_tp": "tensor parallelism of prefill",
            "decode_tp": "and of decode",
            "rehearsal": "true: nothing here transfers to EFA",
            "seed": "of its prompts",
            "proved": "what was seen to carry the transfers, `name value; ...`; empty: nothing",
            "limits": "of imported results: what they lack",
            "samples": "on disk: parquet; streams (under way, or cut off: the last second may be missing); or none",
        },
    ),
    View(
        name="cells",
        about="one run in one cell, its metrics as columns (points only; `estimates` has intervals and reasons)",
        columns=RUN | CELL | CELL_SAID | POINTS,
    ),
    View(
        name="estimates",
        about="one metric of one run in one cell, with interval, n and reason",
        columns=RUN | CELL | {"repetition": "1-based", "metric": "docs/results.md lists them"} | ESTIMATE,
    ),
    View(
        name="summary",
        about="one metric of one test in one cell over its valid runs (n = runs)",
        columns={key: RUN[key] for key in ("folder", "test")} | {"cell": CELL["cell"], "metric": "its name"} | ESTIMATE,
    ),
    View(
        name="gains",
        about="what a test gained over a baseline in one metric of one cell",
        columns={
            "folder": RUN["folder"],
            "test": RUN["test"],
            "baseline": "the test it is compared with",
            "cell": CELL["cell"],
            "metric": "its name",
            "primary_metric": "whether the plan decides by it",
            "gain_pct": "percent, positive is better",
            "gain_low_pct": "lower end of its 95 % interval",
            "gain_high_pct": "upper end",
            "n": "pairs of runs, or what n_counts says",
            "n_counts": "runs; in mode paired pairs of requests",
            "verdict": "better, worse, equivalent, no difference shown, cannot tell, invalid",
            "p_value": "Holm-adjusted",
            "reason": "why it is not better or worse",
        },
    ),
    View(
        name="evidence",
        about="one thing that was seen of a run's transport, machine and build",
        columns=RUN
        | {
            "name": "backend, provider, handshakes_nixl, wire_bytes, connection, ...; units end the name",
            "value": "as text; null when it could not be had",
            "shown_by": "the line or sum that shows it, or why there is no value",
        },
    ),
)

VIEWS: tuple[View, ...] = (
    *TABLES,
    _of_samples(
        "exchanges",
        "one request, warm-up included",
        cell=True,
        joins=_ENDS,
        derived=_LATENCIES,
        ttft_ms="due time to first content; null when nothing came (of an answer in one piece: its whole latency)",
        e2e_latency_ms="due time to last content",
        tpot_ms="(last - first content) / (tokens_out - 1); null below 2 tokens or events, and where N is unknown",
        late_ms="sent - due",
    ),
    _of_samples(
        "arrivals",
        "one content event of a request",
        cell=True,
        derived=_GAP,
        gap_ms="since the event before it of the same request; null for the first",
    ),
    _of_samples(
        "transfers",
        "one KV move",
        cell=False,
        derived=_MOVE,
        transfer_ms="first post to last completion; null when it never came",
    ),
    _of_samples("metrics", "one series of a /metrics that changed between two scrapes", cell=False),
)
NAMES: dict[str, View] = {view.name: view for view in VIEWS}


def sample_tables() -> Iterable[tuple[Kind, str]]:
    """The kinds of sample files, and the name under which all rows of one kind are found."""
    return ((kind, f"{kind}_samples") for kind in KINDS)


def metric_columns() -> tuple[str, ...]:
    """Metrics that are columns of `cells`."""
    return tuple(POINTS)


def described(names: Iterable[str] = NAMES) -> str:
    """Views and their columns, one a line."""
    lines = []
    for name in names:
        view = NAMES[name]
        lines.append(f"{name}: {view.about}")
        width = max(len(column) for column in view.columns)
        lines += [f"  {column:<{width}}  {meaning}" for column, meaning in view.columns.items()]
        lines.append("")
    return "\n".join(lines)


assert not set(RUN_LEVEL) & set(POINTS), "metrics of whole runs are rows of `estimates`"
