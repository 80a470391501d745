"""What a self-test's two workers are started with, and what they report: msgpack over pyzmq. Imports msgspec only."""

from typing import Literal

import msgspec

from kvgauge.builds.records import Build

Role = Literal["initiator", "target"]
Operation = Literal["READ", "WRITE"]
Outcome = Literal["works", "wrong data", "hangs", "does not load", "crashes", "fails"]


class CaseSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of one case; arrives on its standard input.

    parent, peer  zmq endpoints; the target binds `peer`, the initiator connects to it
    parent_pid    who started it: a worker that has another parent by now ends at once
    timeout_s     of each step: an agent's start, a connection, a transfer
    """

    role: Role
    build: Build
    backend: str
    operation: Operation
    parent: str
    peer: str
    parent_pid: int
    timeout_s: float


class Trial(msgspec.Struct, tag="trial", frozen=True, kw_only=True):
    """One transfer of one shape, every byte of the destination's memory compared.

    blocks         that were listed, all ranks together
    faults         blocks that were wrong when NIXL said DONE, by kind; empty: none
    outside_bytes  bytes that changed although no block lies there
    took_ns        first post to last completion, and for WRITE until the peer had its notification
    """

    shape: str
    later: bool  # False: the first transfer of its shape
    blocks: int
    faults: dict[str, int]
    outside_bytes: int
    took_ns: int

    @property
    def right(self) -> bool:
        return not self.faults and not self.outside_bytes


class Step(msgspec.Struct, tag="step", frozen=True):
    """What a worker is about to do: named when it never comes back."""

    what: str


class Opened(msgspec.Struct, tag="opened", frozen=True):
    """The plugin file this process has mapped, and the libfabric it uses (None: not seen, or none)."""

    plugin: str | None
    libfabric: str | None


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """How the case ended for this worker; `works` only says that everything was tried."""

    outcome: Outcome
    reason: str


FromWorker = Trial | Step | Opened | Ended
