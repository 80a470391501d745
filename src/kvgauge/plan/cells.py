"""The cells of a plan: a list of concurrencies or rates becomes one cell each, and every number is checked.

    {name, load: single | wave | closed, concurrency: 5 or [1, 5]}
    {name, load: constant | poisson, rate: 5 or [1, 5]}        requests per second
    {name, load: gamma, rate, burstiness: 0.5}                 the shape; below 1 comes in clusters
    {name, load: ramp, ramp: {from: 1, to: 20, over_s: 60}}    without an end of its own it ends with the ramp
    {name, load: burst, burst: {size: 10, every_s: 5}}
    {name, load: steps, steps: [{rate: 1, for_s: 30}, {rate: 5, for_s: 30}], arrivals: poisson}    ends with the last
    {name, load: trace, trace: FILE, speed_up: 1}              the whole trace, unless an end is given
    each with   prompt, input_tokens or dataset, and output_tokens (not for a trace); warmup_requests or warmup
                (warmup.py); request.py
                concurrency: for open loads the most that may be under way
    and an end  requests (or requests_per_slot) | duration_s
                | sessions, of cells with a conversation (conversation.py)
                | until: {metric, half_width: 2%, at_most_requests and/or at_most_s}

Pure: the bytes of a trace are asked of `read_file`.
"""

import re
from collections.abc import Callable
from typing import get_args

import msgspec

from kvgauge.plan.conversation import in_sessions, read_conversation
from kvgauge.plan.metrics import UNTIL_METRICS
from kvgauge.plan.nodes import Value, nearest
from kvgauge.plan.open import read_shape, refuse_other_capacities
from kvgauge.plan.records import OPEN_LOADS, Cell, LoadShape, Until
from kvgauge.plan.request import REQUEST_KEYS, read_request
from kvgauge.plan.warmup import warmed_up

CELL_KEYS = (
    "name",
    "load",
    "concurrency",
    "requests",
    "requests_per_slot",
    "duration_s",
    "until",
    "prompt",
    "input_tokens",
    "output_tokens",
    "warmup_requests",
    "warmup",
    "rate",
    "burstiness",
    "ramp",
    "burst",
    "steps",
    "arrivals",
    "trace",
    "speed_up",
    "conversation",
    "sessions",
    *REQUEST_KEYS,
)
ENDS = ("requests", "sessions", "requests_per_slot", "duration_s", "until")

CELLS_MAX = 200
CONCURRENCY_MAX = 4096
OPEN_CONCURRENCY = 1024  # of an open load that names none
OPEN_WARMUP_REQUESTS = 10
REQUESTS_MAX = 1_000_000
DURATION_S_MAX = 7 * 86_400
TOKENS_MAX = 131_072
PROMPT_CHARACTERS_MAX = 100_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


def no_files(path: str) -> bytes:
    """Where plans may name no file."""
    raise OSError(0, "no file can be read here", path)


def read_cells(
    value: Value, read_file: Callable[[str], bytes], primary_metric: str, warmup: Value | None = None
) -> tuple[Cell, ...]:
    """Every cell of the `cells` list, expanded, in order. PlanError for the first problem.

    read_file       gives the bytes of a trace; raises OSError
    primary_metric  what `until` looks at where it names nothing else
    warmup          the plan's, for cells that name none
    """
    written = value.items(CELLS_MAX)
    if not written:
        raise value.error("a plan needs at least one cell")
    cells: list[Cell] = []
    lines: dict[str, int] = {}
    for item in written:
        for cell in _expanded(item, read_file, primary_metric, warmup):
            if cell.name in lines:
                raise item.error(f"{cell.name!r} is also a cell of line {lines[cell.name]}; rename one")
            lines[cell.name] = item.line
            cells.append(cell)
        if len(cells) > CELLS_MAX:
            raise item.error(f"more than {CELLS_MAX} cells; split the plan")
    refuse_other_capacities(value, cells)
    return tuple(cells)


def _expanded(
    value: Value, read_file: Callable[[str], bytes], primary_metric: str, default_warmup: Value | None
) -> list[Cell]:
    """The cells one entry stands for."""
    fields = value.fields(CELL_KEYS)
    for key in ("name", "load"):
        if key not in fields:
            raise value.missing(key, "a cell")
    name = fields["name"].scalar("text")
    if not _NAME.fullmatch(name):
        raise fields["name"].error("expected letters, digits, '.', '_' and '-', at most 60, the first not a sign")
    load = msgspec.convert(fields["load"].word(get_args(LoadShape), "load"), LoadShape)
    is_open = load in OPEN_LOADS
    shapes = read_shape(value, fields, load, read_file) | read_conversation(fields)
    if load != "trace":
        for key in ("output_tokens",) if is_open else ("concurrency", "output_tokens"):
            if key not in fields:
                raise value.missing(key, "a cell")
        if "dataset" not in fields:
            shapes["prompt"], shapes["input_tokens"] = _prompt(value, fields)
        shapes["output_tokens"] = fields["output_tokens"].integer(1, TOKENS_MAX)
    shapes |= read_request(fields, shapes.get("input_tokens"), read_file)
    rates = shapes.pop("rates", [None])
    if is_open:
        concurrencies = [_open_concurrency(fields)] * len(rates)
    else:
        concurrencies = _concurrencies(fields["concurrency"], load)
        rates = rates * len(concurrencies)
    varied = fields.get("rate") if is_open else fields.get("concurrency")
    ends = _ends(value, fields, load, concurrencies, primary_metric)
    warmup = fields["warmup_requests"].integer(0, REQUESTS_MAX) if "warmup_requests" in fields else None
    cells = []
    for concurrency, rate, end in zip(concurrencies, rates, ends, strict=True):
        number = str(concurrency) if rate is None else f"{rate:g}"
        given: dict[str, object] = {
            "name": f"{name}-{number}" if varied is not None and varied.is_list else name,
            "load": load,
            "concurrency": concurrency,
            "warmup_requests": _warmup(concurrency, is_open=is_open) if warmup is None else warmup,
            "rate": rate,
        }
        cells.append(msgspec.convert({**shapes, **end, **given}, Cell))
    _refuse_without_first_tokens(value, cells)
    ended = [_of_trace(cell) if cell.trace is not None else in_sessions(cell, REQUESTS_MAX) for cell in cells]
    return [warmed_up(cell, fields, default_warmup) for cell in ended]


def _refuse_without_first_tokens(value: Value, cells: list[Cell]) -> None:
    """An end that looks at what an answer in one piece does not show."""
    for cell in cells:
        if cell.until is not None and not cell.stream and cell.until.metric != "e2e_latency_ms_mean":
            raise value.error(f"until looks at {cell.until.metric}, and without streaming nothing is known of it")


def _warmup(concurrency: int, *, is_open: bool) -> int:
    return min(concurrency, OPEN_WARMUP_REQUESTS) if is_open else concurrency


def _of_trace(cell: Cell) -> Cell:
    """No more requests than the trace has."""
    assert cell.trace is not None
    return msgspec.structs.replace(cell, requests=min(cell.requests, cell.trace.requests))


def _prompt(value: Value, fields: dict[str, Value]) -> tuple[str | None, int | None]:
    """(prompt, None) or (None, input tokens)."""
    if "prompt" in fields and "input_tokens" in fields:
        raise fields["input_tokens"].error("given beside `prompt`; a prompt has its own length, so remove one")
    if "prompt" in fields:
        return fields["prompt"].text(characters_max=PROMPT_CHARACTERS_MAX), None
    if "input_tokens" in fields:
        return None, fields["input_tokens"].integer(1, TOKENS_MAX)
    raise value.missing("prompt` or `input_tokens", "a cell")


def _open_concurrency(fields: dict[str, Value]) -> int:
    if "concurrency" not in fields:
        return OPEN_CONCURRENCY
    if fields["concurrency"].is_list:
        raise fields["concurrency"].error("an open load has one limit of requests under way; vary `rate` instead")
    return fields["concurrency"].integer(1, CONCURRENCY_MAX)


def _concurrencies(value: Value, load: str) -> list[int]:
    items = value.items(CELLS_MAX) if value.is_list else [value]
    if not items:
        raise value.error("expected at least one number")
    found: list[int] = []
    for item in items:
        concurrency = item.integer(1, CONCURRENCY_MAX)
        if concurrency in found:
            raise item.error(f"{concurrency} is listed twice; remove one")
        if load == "single" and concurrency != 1:
            raise item.error(f"a single-request load has concurrency 1, not {concurrency}; use wave or closed")
        found.append(concurrency)
    return found


def _ends(
    value: Value, fields: dict[str, Value], load: LoadShape, concurrencies: list[int], primary_metric: str
) -> list[dict[str, object]]:
    """What ends each of the cells: requests, and where they are given duration_s and until."""
    given = [key for key in ENDS if key in fields]
    if len(given) > 1:
        raise fields[given[1]].error(f"given beside `{given[0]}`; a cell has one end, so remove one")
    if not given and load == "ramp":
        return [{"requests": REQUESTS_MAX, "duration_s": _ramp_s(fields["ramp"])}]
    if not given and load == "steps":
        return [{"requests": REQUESTS_MAX, "duration_s": _steps_s(fields["steps"])}]
    if not given and load == "trace":
        return [{"requests": REQUESTS_MAX}]
    if not given:
        ends = "requests` (or `requests_per_slot`), `duration_s` or `until"
        raise value.missing("sessions` or `duration_s" if "conversation" in fields else ends, "a cell")
    if given == ["duration_s"]:
        duration_s = fields["duration_s"].number(0.001, DURATION_S_MAX)
        return [{"requests": REQUESTS_MAX, "duration_s": duration_s}] * len(concurrencies)
    if given == ["until"]:
        return [_until(fields["until"], primary_metric)] * len(concurrencies)
    return [{"requests": count} for count in _requests(fields, load, concurrencies)]


def _ramp_s(value: Value) -> float:
    return value.fields(("from", "to", "over_s"))["over_s"].number(0.001, DURATION_S_MAX)


def _steps_s(value: Value) -> float:
    held = [item.fields(("rate", "for_s"))["for_s"].number(0.001, DURATION_S_MAX) for item in value.items(CELLS_MAX)]
    return min(DURATION_S_MAX, sum(held))


def _until(value: Value, primary_metric: str) -> dict[str, object]:
    fields = value.fields(("metric", "half_width", "at_most_requests", "at_most_s"))
    if "half_width" not in fields:
        raise value.missing("half_width", "until")
    if "at_most_requests" not in fields and "at_most_s" not in fields:
        raise value.missing("at_most_requests` or `at_most_s", "until")
    metric = fields["metric"].scalar("a metric") if "metric" in fields else primary_metric
    if metric not in UNTIL_METRICS:
        where = fields.get("metric", value)
        raise where.error(
            f"{metric!r} has no interval within a run that is honest while it runs; {nearest(metric, UNTIL_METRICS)}"
        )
    end: dict[str, object] = {
        "until": Until(metric=metric, half_width=fields["half_width"].number(0.001, 0.5, percent=True)),
        "requests": REQUESTS_MAX,
    }
    if "at_most_requests" in fields:
        end["requests"] = fields["at_most_requests"].integer(1, REQUESTS_MAX)
    if "at_most_s" in fields:
        end["duration_s"] = fields["at_most_s"].number(0.001, DURATION_S_MAX)
    return end


def _requests(fields: dict[str, Value], load: LoadShape, concurrencies: list[int]) -> list[int]:
    """Measured requests of each cell: `requests` (one number, or one each) or slots x requests_per_slot."""
    if "requests_per_slot" in fields:
        if load in OPEN_LOADS:
            raise fields["requests_per_slot"].error(f"a {load} load has no slots that send in turn; give `requests`")
        per_slot = fields["requests_per_slot"].integer(1, REQUESTS_MAX // CONCURRENCY_MAX)
        return [per_slot * concurrency for concurrency in concurrencies]
    wanted = fields["sessions" if "sessions" in fields else "requests"]
    items = wanted.items(CELLS_MAX) if wanted.is_list else [wanted] * len(concurrencies)
    if len(items) != len(concurrencies):
        what = "rates" if load in OPEN_LOADS else "concurrencies"
        raise wanted.error(f"{len(items)} numbers for {len(concurrencies)} {what}; give one for each")
    what = "sessions" if "sessions" in fields else "requests"
    return [_count(item, load, concurrency, what) for item, concurrency in zip(items, concurrencies, strict=True)]


def _count(item: Value, load: LoadShape, concurrency: int, what: str) -> int:
    count = item.integer(1, REQUESTS_MAX)
    if load in OPEN_LOADS:
        return count
    if count < concurrency:
        raise item.error(f"{count} {what} never reach concurrency {concurrency}; ask for at least {concurrency}")
    if load == "wave" and count % concurrency:
        whole = -(-count // concurrency) * concurrency
        raise item.error(f"{count} {what} are not whole waves of {concurrency}; ask for {whole}")
    return count
