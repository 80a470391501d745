"""What was seen to carry the transfers of a row, and what contradicts what was asked. Pure."""

import re
from collections.abc import Iterator, Sequence

import msgspec

from kvgauge.evidence import nixl, ucx
from kvgauge.xfer.measure import Measured
from kvgauge.xfer.workload import Workload, merged, pair, rows

READ_CURE = "UCX_CUDA_IPC_ENABLE_GET_ZCOPY=on on both sides (--env), or WRITE"
GATHER = "--strategy gathered moves scattered blocks as one"
WRITE_CURE = "let UCX_TLS name cuda_ipc and cuda_copy on both sides"
_ERROR = re.compile(r"^E\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] (.+)$", re.MULTILINE)


class Integrity(msgspec.Struct, frozen=True, kw_only=True):
    """Every byte of every block of every transfer was compared, warm-up and first transfers included.

    blocks_outside  changed although nothing was moved there
    """

    blocks_checked: int
    blocks_wrong: int
    kinds: dict[str, int]
    blocks_outside: int

    @property
    def right(self) -> bool:
        return self.blocks_checked > 0 and not self.blocks_wrong and not self.blocks_outside


def failed(found: Measured) -> str:
    """Why, and NIXL's own first error, which says more than its status codes do."""
    errors = (match[1] for text in found.logs.values() for match in _ERROR.finditer(text))
    said = next(errors, None)
    return f"round {found.round}: {found.failure}" + (f" (NIXL: {said[:300]})" if said else "")


def expected_merged(work: Workload) -> int:
    """Descriptors of one transfer after neighbours on both sides became one: thread 0 of initiator 0, every target."""
    if work.strategy == "gathered":
        return work.descriptors
    legs = 0
    for target in range(work.targets):
        number = pair(work, target, 0)
        legs += merged(rows(work, "initiator", number, 0), rows(work, "target", number, 0))
    return legs * work.ranks


def contradictions(rounds: Sequence[Measured], integrity: Integrity) -> tuple[str, ...]:
    """What contradicts what was asked: such numbers are shown, marked, and compared with nothing."""
    backend, work = rounds[0].backend, rounds[0].work
    said = []
    if integrity.blocks_wrong:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(integrity.kinds.items()))
        said.append(f"{integrity.blocks_wrong:,} of {integrity.blocks_checked:,} blocks wrong ({kinds})")
    if integrity.blocks_outside:
        said.append(f"{integrity.blocks_outside:,} blocks overwritten where nothing was moved")
    used = sorted({name for found in rounds for name in found.backends} - {backend})
    if used:
        said.append(f"NIXL says {', '.join(used)} carried transfers that {backend} was asked for")
    moved = {found.nixl_bytes for found in rounds if found.nixl_bytes is not None} - {work.transfer_bytes}
    if moved:
        said.append(f"NIXL counted {max(moved):,} bytes of a transfer of {work.transfer_bytes:,}")
    return tuple(said)


def off_fabric(fabric: str, evidence: dict[str, str]) -> tuple[str, ...]:
    """What UCX's own tables say against the fabric that was asked for, where TCP stands beside it."""
    if fabric not in ("cuda", "shm"):
        return ()
    if "emulated" in evidence:
        do = evidence.get("do", "name another fabric")
        return (f"UCX emulates it in software ({evidence['emulated']}): {do}",)
    rows = evidence.get("protocol", "")
    if fabric == "shm" and (not rows or "tcp/" in rows):
        seen = f"moves it otherwise ({rows})" if rows else "does not say how it moves it"
        return (f"fabric shm was asked for, and UCX {seen}",)
    if fabric == "cuda" and rows and "cuda_ipc/" not in rows:
        return (f"fabric cuda was asked for, and UCX moves it otherwise ({rows})",)
    return ()


def evidence_of(rounds: Sequence[Measured]) -> dict[str, str]:
    values: dict[str, list[str]] = {}
    for found in rounds:
        for name, log_text in found.logs.items():
            for fact in [*nixl.facts(log_text, name), *ucx.facts(log_text, name)]:
                if fact.name in ("provider", "rails", "lane", "fallback", "gpudirect", "nixl_version", "ucx_version"):
                    values.setdefault(fact.name, []).append(fact.value)
            for name_of, value in _protocols(found.work, log_text):
                values.setdefault(name_of, []).append(value)
        if found.gpu:
            values.setdefault("gpu", []).append(found.gpu)
        values.setdefault("backend", []).extend(sorted(found.backends))
    return {name: ", ".join(dict.fromkeys(said)) for name, said in sorted(values.items()) if said}


def _protocols(work: Workload, log_text: str) -> Iterator[tuple[str, str]]:
    """How UCX says that it moved this memory in this direction, from its tables; what to do where it emulated that."""
    kind, memory = work.operation.lower(), "cuda" if work.memory == "VRAM" else "host"
    tables = ucx.Tables(memory)
    for line in log_text.splitlines():
        for name, value in tables.take(line):
            if name in ("protocol", "emulated") and value.startswith(kind):
                yield name, value
                if name == "emulated" and work.memory == "VRAM":
                    cures = [READ_CURE if kind == "read" else WRITE_CURE]
                    cures += [GATHER] if work.strategy == "blocks" and work.transfer_blocks > 1 else []
                    yield "do", "; ".join([*cures, "docs/gpu.md"])
