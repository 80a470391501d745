"""The reference plan, and the quick form of any plan."""

from collections.abc import Collection
from importlib import resources

import msgspec

from kvgauge.failures import PlanError
from kvgauge.models import blocks
from kvgauge.plan.expand import prompt_tokens
from kvgauge.plan.open import without_end
from kvgauge.plan.read import read
from kvgauge.plan.records import Cell, Plan

REFERENCE_SOURCE = "reference plan"

QUICK_REPETITIONS = 3  # the fewest that give a paired interval of any use


# Six tests x 3 repetitions have to end in less than 5 minutes on two cores. Rough seconds to plan with:
#   Qwen3-0.6B     a round of 50 tokens 0.1; of 512/128 0.3 at concurrency 1, 0.6 at 5, 1.0 at 10, 1.7 at 20
#   Llama-3.1-8B   50 tokens 0.45;           512/128 1.2, 1.6, 2.1, 3.1
#   Llama-3.1-70B  50 tokens 0.6 to 1.1;     512/128 1.8, 3.0, 4.5, 7.5
# Rounds of 512/128 are most of the time, so every cell gets one round, and only the cell that decides a second,
# without which a closed loop is a wave; and unique prompts at more concurrency than it has are left to the full plan:
# 20 prompts of 70B are 3 GB of KV and 10 s on a small machine. The run is the unit of replication: one request in it
# is a small sample of that run, not of the test.
QUICK_PER_SLOT = 1
QUICK_PER_SLOT_SINGLE = 2
QUICK_PER_SLOT_DECIDING = 2
QUICK_WARMUP_REQUESTS = 1
QUICK_OPEN_REQUESTS, QUICK_OPEN_S = 20, 10.0  # an open load, or one that ends by the clock or its values


def _quick_cell(cell: Cell, *, decides: bool, warm: bool) -> Cell:
    """The cell with few requests, never more than it had; whole waves stay whole.

    decides   it is the primary metric's
    warm      a cell before it in the run sent prompts of as many blocks, so no warm-up is due
    """
    if cell.steady is not None:  # which takes longer than all the rest
        cell = msgspec.structs.replace(cell, steady=None, warmup_requests=QUICK_WARMUP_REQUESTS)
    warmup = 0 if warm else min(cell.warmup_requests, QUICK_WARMUP_REQUESTS)
    if cell.is_open or cell.duration_s is not None or cell.until is not None:
        few = without_end(cell, requests=max(QUICK_OPEN_REQUESTS, _closed_slots(cell)), duration_s=QUICK_OPEN_S)
        return msgspec.structs.replace(few, warmup_requests=warmup)
    per_slot = QUICK_PER_SLOT_SINGLE if cell.load == "single" else QUICK_PER_SLOT
    if decides:
        per_slot = max(per_slot, QUICK_PER_SLOT_DECIDING)
    return msgspec.structs.replace(
        cell,
        requests=min(cell.requests, cell.concurrency * per_slot),
        sessions=None if cell.sessions is None else min(cell.sessions, cell.concurrency),
        warmup_requests=warmup,
    )


def _closed_slots(cell: Cell) -> int:
    return 0 if cell.is_open else cell.concurrency


def quick(plan: Plan) -> Plan:
    """The same tests with at most 3 repetitions, few requests, and no cell heavier than the deciding one: a first look.

    Warm-up shrinks to one request where a run first meets a prompt of that many KV blocks: cells that follow
    on the same target find it warm. Cells whose rate a pilot has to find are left out: six pilots take minutes.

    raises  PlanError for a plan that few requests say nothing of
    """
    primary = next((cell for cell in plan.cells if cell.name == plan.primary.cell), None)
    if primary is not None and primary.capacity is not None:
        why = f"cell {primary.name!r} decides, and its rate needs pilots, which --quick leaves out"
        raise PlanError(f"{why}: leave --quick away, or give it a rate", source=plan.source)
    if plan.mode == "paired":
        why = "a paired plan is of hundreds of pairs of requests; a few say nothing"
        raise PlanError(f"{why}: leave --quick away, or give its cells a shorter duration_s", source=plan.source)
    cells: list[Cell] = []
    met: set[int] = set()
    most = next((_closed_slots(cell) for cell in plan.cells if cell.name == plan.primary.cell), 0)
    for cell in plan.cells:
        if cell.capacity is not None or (cell.input_tokens is not None and _closed_slots(cell) > most > 0):
            continue
        size = blocks(prompt_tokens(cell))
        cells.append(_quick_cell(cell, decides=cell.name == plan.primary.cell, warm=size in met))
        met.add(size)
    return msgspec.structs.replace(
        plan, cells=tuple(cells), repetitions=min(plan.repetitions, QUICK_REPETITIONS), quick=True
    )


def reference(known_builds: Collection[str]) -> Plan:
    """The plan `kvgauge run` uses when none is named."""
    text = resources.files("kvgauge.plan").joinpath("reference.yaml").read_bytes()
    return read(text, source=REFERENCE_SOURCE, known_builds=known_builds)
