"""What the two sides of a gathered transfer say to one another, as NIXL notifications. Pure.

READ:  ASK (gather this slot) ->, <- READY (it lies in the staging buffer), then the READ. WRITE: the WRITE's own
notification is MOVED (put it into its slot), <- PLACED (its blocks can be used).
"""

import struct

import msgspec

from kvgauge.failures import TransferError

ASK, READY, MOVED, PLACED = b"A", b"R", b"M", b"P"
_FORM = struct.Struct("<4sc5I3q")
_MARK = b"kvgx"


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """One of them, about one pair of agents' part of one transfer.

    lane, leg  which pair: the target's group; the leg's number at the initiator
    work_ns    READY, PLACED: what the target's gathering or scattering took
    at_ns      PLACED: when the blocks could be used, by the target's clock
    gap_ns     PLACED: how long before that stamp they may have been
    """

    kind: bytes
    turn: int
    lane: int
    leg: int
    slot: int
    area: int
    work_ns: int = 0
    at_ns: int = 0
    gap_ns: int = 0


def encode(signal: Signal) -> bytes:
    s = signal
    return _FORM.pack(_MARK, s.kind, s.turn, s.lane, s.leg, s.slot, s.area, s.work_ns, s.at_ns, s.gap_ns)


def decode(note: bytes) -> Signal:
    """raises TransferError for what is no signal"""
    if len(note) == _FORM.size:
        mark, kind, turn, lane, leg, slot, area, work_ns, at_ns, gap_ns = _FORM.unpack(note)
        if mark == _MARK and kind in (ASK, READY, MOVED, PLACED) and min(work_ns, at_ns, gap_ns) >= 0:
            return Signal(
                kind=kind, turn=turn, lane=lane, leg=leg, slot=slot, area=area, work_ns=work_ns, at_ns=at_ns,
                gap_ns=gap_ns,
            )  # fmt: skip
    raise TransferError(f"a notification of {len(note)} bytes that no kvgauge of this version sends: {note[:24]!r}")


def is_signal(note: bytes) -> bool:
    return note[:4] == _MARK
