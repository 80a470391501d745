"""A request whose KV is on its way to a decode worker, and the record of its move once that has ended."""

from dataclasses import dataclass
from typing import Any

from kvgauge.kv.layout import Int32
from kvgauge.kv.transfer import Move
from kvgauge.models import transfer_bytes
from kvgauge.samples.records import Transfer
from kvgauge.serve.messages import Decode, Reserve, Spec, Written
from kvgauge.serve.ranks import Ranks


@dataclass(slots=True)
class Incoming:
    """`move` is set for a READ, which is ours; of a WRITE we have prefill's notifications and its account."""

    request: Decode | Reserve
    blocks: Int32
    move: Move | None = None
    notes_missing: int = 0
    arrived_ns: int | None = None  # WRITE: when the last notification came
    written: Written | None = None
    aborted: bool = False
    lost: bool = False  # the prefill worker has ended; the one of that number now is another
    deadline_ns: int = 0
    late: str = "WRITE past its deadline: prefill's notifications did not come"


def backend_of(move: Move) -> str:
    """Which backends NIXL says carried it; `none` before the first post."""
    return ",".join(sorted(move.backends)) or "none"


def record_of(incoming: Incoming, spec: Spec, ranks: Ranks) -> Transfer:
    """Its blocks not yet checked. A WRITE must have its account."""
    request = incoming.request
    return Transfer(
        request_id=f"{request.key:016x}",
        prefill_worker=request.prefill_worker,
        decode_worker=spec.index,
        prompt_tokens=request.prompt_tokens,
        pairs=len(ranks.shares),
        bytes_expected=transfer_bytes(ranks.model, spec.kv_dtype, request.prompt_tokens, spec.decode_tp),
        checked_ns=0,
        pieces=0,
        pieces_wrong=0,
        **_measured(incoming),
    )


def _measured(incoming: Incoming) -> dict[str, Any]:
    """The fields of Transfer that the move itself gave."""
    if (move := incoming.move) is not None:
        return {
            "operation": "READ",
            "backend": backend_of(move),
            "descriptors": move.descriptors,
            "bytes_listed": move.bytes_listed,
            "bytes_moved": move.bytes_moved,
            "posted_ns": move.posted_ns or 0,
            "transferred_ns": move.done_ns if move.failure is None else None,
            "post_ns": move.post_ns,
            "failure": move.failure,
        }
    written = incoming.written
    assert written is not None
    return {
        "operation": "WRITE",
        "backend": written.backend,
        "descriptors": written.descriptors,
        "bytes_listed": written.bytes_listed,
        "bytes_moved": written.bytes_moved,
        "posted_ns": written.posted_ns,
        "transferred_ns": incoming.arrived_ns,
        "post_ns": written.post_ns,
        "failure": written.failure,
    }
