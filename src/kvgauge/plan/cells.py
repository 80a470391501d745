"""The cells of a plan: a list of concurrencies becomes one cell each, and every number is checked. Pure."""

import re
from typing import get_args

import msgspec

from kvgauge.plan.nodes import Value
from kvgauge.plan.records import Cell, LoadShape

CELL_KEYS = (
    "name",
    "load",
    "concurrency",
    "requests",
    "requests_per_slot",
    "prompt",
    "input_tokens",
    "output_tokens",
    "warmup_requests",
)

CELLS_MAX = 200
CONCURRENCY_MAX = 4096
REQUESTS_MAX = 1_000_000
TOKENS_MAX = 131_072
PROMPT_CHARACTERS_MAX = 100_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


def read_cells(value: Value) -> tuple[Cell, ...]:
    """Every cell of the `cells` list, expanded, in order. PlanError for the first problem."""
    written = value.items(CELLS_MAX)
    if not written:
        raise value.error("a plan needs at least one cell")
    cells: list[Cell] = []
    lines: dict[str, int] = {}
    for item in written:
        for cell in _expanded(item):
            if cell.name in lines:
                raise item.error(f"{cell.name!r} is also a cell of line {lines[cell.name]}; rename one")
            lines[cell.name] = item.line
            cells.append(cell)
        if len(cells) > CELLS_MAX:
            raise item.error(f"more than {CELLS_MAX} cells; split the plan")
    return tuple(cells)


def _expanded(value: Value) -> list[Cell]:
    """The cells one entry stands for."""
    fields = value.fields(CELL_KEYS)
    for key in ("name", "load", "concurrency", "output_tokens"):
        if key not in fields:
            raise value.missing(key, "a cell")
    name = fields["name"].scalar("text")
    if not _NAME.fullmatch(name):
        raise fields["name"].error("expected letters, digits, '.', '_' and '-', at most 60, the first not a sign")
    load = fields["load"].word(get_args(LoadShape), "load")
    prompt, input_tokens = _prompt(value, fields)
    several = fields["concurrency"].is_list
    concurrencies = _concurrencies(fields["concurrency"], load)
    requests = _requests(value, fields, load, concurrencies)
    output_tokens = fields["output_tokens"].integer(1, TOKENS_MAX)
    warmup = fields["warmup_requests"].integer(0, REQUESTS_MAX) if "warmup_requests" in fields else None
    return [
        msgspec.convert(
            {
                "name": f"{name}-{concurrency}" if several else name,
                "load": load,
                "concurrency": concurrency,
                "requests": count,
                "output_tokens": output_tokens,
                "warmup_requests": concurrency if warmup is None else warmup,
                "prompt": prompt,
                "input_tokens": input_tokens,
            },
            Cell,
        )
        for concurrency, count in zip(concurrencies, requests, strict=True)
    ]


def _prompt(value: Value, fields: dict[str, Value]) -> tuple[str | None, int | None]:
    """(prompt, None) or (None, input tokens)."""
    if "prompt" in fields and "input_tokens" in fields:
        raise fields["input_tokens"].error("given beside `prompt`; a prompt has its own length, so remove one")
    if "prompt" in fields:
        return fields["prompt"].text(characters_max=PROMPT_CHARACTERS_MAX), None
    if "input_tokens" in fields:
        return None, fields["input_tokens"].integer(1, TOKENS_MAX)
    raise value.missing("prompt` or `input_tokens", "a cell")


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


def _requests(value: Value, fields: dict[str, Value], load: str, concurrencies: list[int]) -> list[int]:
    """Measured requests for each concurrency: `requests` (one number, or one each) or slots x requests_per_slot."""
    if "requests" in fields and "requests_per_slot" in fields:
        raise fields["requests_per_slot"].error("given beside `requests`; remove one")
    if "requests_per_slot" in fields:
        per_slot = fields["requests_per_slot"].integer(1, REQUESTS_MAX // CONCURRENCY_MAX)
        return [per_slot * concurrency for concurrency in concurrencies]
    if "requests" not in fields:
        raise value.missing("requests` or `requests_per_slot", "a cell")
    wanted = fields["requests"]
    items = wanted.items(CELLS_MAX) if wanted.is_list else [wanted] * len(concurrencies)
    if len(items) != len(concurrencies):
        raise wanted.error(f"{len(items)} numbers for {len(concurrencies)} concurrencies; give one for each")
    return [_count(item, load, concurrency) for item, concurrency in zip(items, concurrencies, strict=True)]


def _count(item: Value, load: str, concurrency: int) -> int:
    count = item.integer(1, REQUESTS_MAX)
    if count < concurrency:
        raise item.error(f"{count} requests never reach concurrency {concurrency}; ask for at least {concurrency}")
    if load == "wave" and count % concurrency:
        whole = -(-count // concurrency) * concurrency
        raise item.error(f"{count} requests are not whole waves of {concurrency}; ask for {whole}")
    return count
