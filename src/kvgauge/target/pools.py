"""How many KV blocks each worker's pool holds. Pure: memory is given, not read."""

from math import ceil

from kvgauge.failures import TargetError
from kvgauge.models import BLOCK_TOKENS, MODELS, blocks, copies, kv_bytes_per_token
from kvgauge.plan.conversation import turns_mean, turns_most
from kvgauge.plan.expand import under_way
from kvgauge.plan.records import Cell, Test
from kvgauge.serve.vocabulary import token_count

POOL_SHARE = 0.6  # of the memory that is available, for all pools together
LEAST_BLOCKS = 64
ROLE_TOKENS = 2  # what the embedded frontend makes of a chat message's role
DEFAULT_CONCURRENCY = 20
DEFAULT_REQUEST_TOKENS = 1024


def pool_blocks(test: Test, cells: tuple[Cell, ...], available_bytes: int | None) -> tuple[dict[str, int], str | None]:
    """Blocks of one worker of each role, and a note when memory cut them: beyond that, requests wait for admission.

    available_bytes  memory that can be taken; None: the pools are not real, so there are plenty
    raises           TargetError when there is too little even for short pools
    """
    wanted = _wanted(test, cells)
    if available_bytes is None:
        return {role: count * 4 for role, count in wanted.items()}, None
    model = MODELS[test.model]
    block_bytes = kv_bytes_per_token(model, test.kv_dtype) * BLOCK_TOKENS
    spread = {"prefill": (test.prefill_tp, test.prefill_workers), "decode": (test.decode_tp, test.decode_workers)}
    needed = sum(wanted[role] * workers * block_bytes * copies(model, tp) for role, (tp, workers) in spread.items())
    budget = int(available_bytes * POOL_SHARE)
    if needed <= budget:
        return wanted, None
    scaled = {role: int(count * budget / needed) for role, count in wanted.items()}
    longest = blocks(context_tokens(cells, DEFAULT_REQUEST_TOKENS))
    if min(scaled.values()) < max(longest, LEAST_BLOCKS // 2):
        raise TargetError(
            f"{test.model} needs {needed >> 20} MiB of KV pools for this plan and {budget >> 20} MiB may be used: "
            "lower the concurrency or the prompt length, or choose a smaller model"
        )
    note = f"KV pools cut to {budget >> 20} of {needed >> 20} MiB for want of memory: requests queue for admission"
    return scaled, note


def context_tokens(cells: tuple[Cell, ...], default: int) -> int:
    """The longest prompt and answer together that any cell asks for; `default` without cells."""
    return max((_prompt(cell) + _answer(cell) for cell in cells), default=default)


def _answer(cell: Cell) -> int:
    """Most answer tokens of one request."""
    stated = cell.dataset.output_tokens_max if cell.dataset is not None else None
    return max(cell.output_tokens, stated or 0)


def _prompt(cell: Cell) -> int:
    """Most prompt tokens of one request."""
    return _text(cell) + (ROLE_TOKENS if cell.api == "chat" else 0)


def _text(cell: Cell) -> int:
    """Most tokens of a prompt's text; of a conversation those of its last turn."""
    before = turns_most(cell) - 1
    if before and cell.dataset is not None:
        return max(1, cell.dataset.whole_words_max) + before * (_answer(cell) + 2 * ROLE_TOKENS)
    if before:
        return (before + 1) * (cell.input_tokens or 1) + before * (_answer(cell) + 2 * ROLE_TOKENS)
    if cell.trace is not None:
        return cell.trace.input_tokens_max
    if cell.dataset is not None:
        return max(1, cell.dataset.words_max)
    return cell.input_tokens if cell.input_tokens is not None else token_count(cell.prompt or "")


def _wanted(test: Test, cells: tuple[Cell, ...]) -> dict[str, int]:
    """Enough for the cell that needs most, spread over the workers; and for one request of any cell on each.

    A trace and a dataset count with their mean lengths: their longest requests hardly ever meet.
    """
    if not cells:
        both = DEFAULT_CONCURRENCY * blocks(DEFAULT_REQUEST_TOKENS)
        return {"prefill": -(-both // test.prefill_workers), "decode": -(-both // test.decode_workers)}
    one = blocks(context_tokens(cells, 0))  # a worker that cannot hold the longest request would never admit it
    prompts = max(_blocks(cell, 0) * under_way(test, cell) for cell in cells)
    wholes = max(_blocks(cell, 1) * under_way(test, cell) for cell in cells)
    return {
        "prefill": max(LEAST_BLOCKS, one, -(-prompts // test.prefill_workers)),
        "decode": max(LEAST_BLOCKS, one, -(-wholes // test.decode_workers)),
    }


def _blocks(cell: Cell, answers: int) -> int:
    """Blocks of one request's prompt, with `answers` 1 of its answer too."""
    if cell.trace is not None:
        return blocks(ceil(cell.trace.input_tokens_mean + answers * cell.trace.output_tokens_mean))
    if cell.dataset is not None:
        before = (turns_mean(cell) - 1) * (cell.dataset.words_mean + _answer(cell))
        return blocks(ceil(cell.dataset.words_mean + before + answers * _answer(cell)))
    return blocks(_prompt(cell) + answers * cell.output_tokens)
