"""Flags to workloads. Pure."""

from collections.abc import Sequence
from itertools import product

import msgspec

from kvgauge.failures import UsageError
from kvgauge.models import DTYPE_BYTES, MODELS, check_tp
from kvgauge.plan.nodes import nearest
from kvgauge.xfer.workload import Memory, Operation, Pattern, Strategy, Workload, of_model, refusal, size_text

REFERENCE = ("Qwen3-0.6B", "Llama-3.1-8B", "Llama-3.1-70B:8")
SCHEMES = {"pairwise": (1, 1), "many-to-one": (0, 1), "one-to-many": (1, 0)}  # processes a side; 0: as many as --peers
ROWS_MAX = 500


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says. Several values sweep: every combination is a row.

    models       NAME or NAME:TP; none, and no block sizes: the three of the reference plan
    block_sizes  bytes: blocks that belong to no model, `counts` of them in a transfer
    """

    models: tuple[str, ...] = ()
    tokens: tuple[int, ...] = (512,)
    block_tokens: int = 16
    tp: int = 1
    layers: int | None = None
    dtype: str = "bf16"
    block_sizes: tuple[int, ...] = ()
    counts: tuple[int, ...] = (64,)
    patterns: tuple[Pattern, ...] = ("scattered",)
    operations: tuple[Operation, ...] = ("READ",)
    strategies: tuple[Strategy, ...] = ("blocks",)
    depths: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    scheme: str = "pairwise"
    peers: int = 2
    memory: Memory = "DRAM"


def workloads_of(asked: Asked) -> tuple[Workload, ...]:
    """Every row, in the order of the flags. raises UsageError"""
    if asked.scheme not in SCHEMES:
        raise UsageError(f"unknown scheme {asked.scheme!r}; {nearest(asked.scheme, list(SCHEMES))}")
    initiators, targets = (count or asked.peers for count in SCHEMES[asked.scheme])
    kinds = [*_models(asked), *_blocks(asked)]
    variants = list(product(asked.patterns, asked.operations, asked.strategies, asked.depths, asked.threads))
    if len(kinds) * len(variants) > ROWS_MAX:
        raise UsageError(f"{len(kinds) * len(variants):,} rows: at most {ROWS_MAX}; sweep less at a time")
    found = []
    for kind, (pattern, operation, strategy, depth, threads) in product(kinds, variants):
        work = msgspec.structs.replace(
            kind,
            pattern=pattern,
            operation=operation,
            strategy=strategy,
            depth=depth,
            threads=threads,
            initiators=initiators,
            targets=targets,
            memory=asked.memory,
        )
        if (why := refusal(work)) is not None:
            raise UsageError(f"{work.name}: {why}")
        found.append(msgspec.structs.replace(work, name=_named(work, asked)))
    return tuple(found)


def _named(work: Workload, asked: Asked) -> str:
    """Rows that differ must not share a name: what is swept stands in it."""
    swept = (
        (asked.patterns, work.pattern),
        (asked.operations, work.operation),
        (asked.strategies, work.strategy),
        (asked.depths, f"depth {work.depth}"),
        (asked.threads, f"threads {work.threads}"),
    )
    return " ".join([work.name, *(said for values, said in swept if len(values) > 1)])


def _models(asked: Asked) -> list[Workload]:
    if asked.dtype not in DTYPE_BYTES:
        raise UsageError(f"unknown KV dtype {asked.dtype!r}; {nearest(asked.dtype, list(DTYPE_BYTES))}")
    if asked.block_tokens < 1 or min(asked.tokens, default=0) < 1:
        raise UsageError("tokens and the tokens of a block must be at least 1")
    named = asked.models or (() if asked.block_sizes else REFERENCE)
    found = []
    for word in dict.fromkeys(named):
        name, separator, ranks = word.partition(":")
        if name not in MODELS:
            raise UsageError(f"unknown model {name!r}; {nearest(name, list(MODELS))}")
        if separator and not (ranks.isascii() and ranks.isdigit()):
            raise UsageError(f"cannot read --model {word}: give NAME or NAME:TP")
        model, tp = MODELS[name], int(ranks) if separator else asked.tp
        if (why := check_tp(model, tp)) is not None:
            raise UsageError(why)
        if asked.layers is not None and not 1 <= asked.layers <= model.layers:
            raise UsageError(f"{asked.layers} layers: {name} has {model.layers}")
        found += [
            of_model(
                model,
                tokens=tokens,
                tp=tp,
                dtype=asked.dtype,
                block_tokens=asked.block_tokens,
                layers=asked.layers,
            )
            for tokens in dict.fromkeys(asked.tokens)
        ]
    return found


def _blocks(asked: Asked) -> list[Workload]:
    return [
        Workload(name=f"{count} x {size_text(size)}", blocks=count, block_bytes=size)
        for size, count in product(dict.fromkeys(asked.block_sizes), dict.fromkeys(asked.counts))
    ]


def needed_bytes(workloads: Sequence[Workload], *, both_sides: bool) -> int:
    """Memory the largest row takes here: its pools, and in GPU runs their host copies."""
    return max(sum(work.memory_bytes.values()) if both_sides else max(work.memory_bytes.values()) for work in workloads)
