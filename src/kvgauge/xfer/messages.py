"""What the conductor and the workers of `kvgauge xfer` say to one another: msgpack over pyzmq. Imports msgspec only."""

import msgspec

from kvgauge.builds.records import Build
from kvgauge.xfer.workload import Side, Workload

MESSAGE_BYTES_MAX = 64 << 20


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One worker; arrives on its standard input.

    parent       zmq endpoint of whoever started it
    threads      of NIXL's backend (num_threads), not of ours
    stream_host  where a plain TCP stream may be listened for
    yielding     there are more workers than cores: give way between polls
    timeout_s    of one transfer
    """

    side: Side
    index: int
    work: Workload
    backend: str
    build: Build
    parent: str
    device: int = 0
    progress_thread: bool = False
    threads: int = 0
    stream_host: str = "127.0.0.1"
    yielding: bool = False
    timeout_s: float = 30.0


class RankInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer must know of one agent. clock: whose stamps can be compared; "" with nobody's"""

    metadata: bytes
    address: int
    device: int
    staging: int = 0  # address of its staging buffer, where blocks are gathered
    clock: str = ""


# -- to workers


class Connect(msgspec.Struct, tag="connect", frozen=True):
    """Initiator: connect to every agent of these targets, in their order, and prepare the lists."""

    targets: list[list[RankInfo]]


class Meet(msgspec.Struct, tag="meet", frozen=True):
    """Target: be able to answer every agent of these initiators, in their order. Where blocks are gathered."""

    initiators: list[list[RankInfo]]


class Fill(msgspec.Struct, tag="fill", frozen=True):
    """Source: write the image of this batch."""

    turn: int


class Go(msgspec.Struct, tag="go", frozen=True):
    """Initiator: `count` transfers in each thread, one a slot."""

    turn: int
    count: int


class Check(msgspec.Struct, tag="check", frozen=True):
    """Both sides: wait for this batch's notifications (targets), compare what was moved (the destination)."""

    turn: int
    count: int


class Copy(msgspec.Struct, tag="copy", frozen=True):
    """Initiator: copy so many bytes again and again, for about so long, with nothing but memory."""

    size_bytes: int
    duration_s: float


class Serve(msgspec.Struct, tag="serve", frozen=True):
    """Target: take one TCP stream that begins with `nonce`."""

    nonce: bytes


class Stream(msgspec.Struct, tag="stream", frozen=True):
    """Initiator: send a TCP stream there for about so long."""

    host: str
    port: int
    nonce: bytes
    duration_s: float


class Renew(msgspec.Struct, tag="renew", frozen=True):
    """Start new agents in place of the old ones, with the same pools: answered by Ready.

    What connecting costs a process that has connected before. (The old agents are not connected anew: LIBFABRIC of
    NIXL 1.5.0 never gets a second handshake from a peer that was removed, and waits 60 s for it.)
    """


class Bye(msgspec.Struct, tag="bye", frozen=True):
    pass


ToWorker = Connect | Meet | Fill | Go | Check | Copy | Serve | Stream | Renew | Bye


# -- from workers


class Step(msgspec.Struct, tag="step", frozen=True):
    """What it is about to do: named when it never comes back."""

    what: str


class Ready(msgspec.Struct, tag="ready", frozen=True, kw_only=True):
    """Agents have started and memory is registered. Times in ns, one for each agent."""

    ranks: list[RankInfo]
    load_ns: int
    agent_ns: list[int]
    register_ns: list[int]
    pool_bytes: int  # of one agent
    gpu: str | None = None


class Connected(msgspec.Struct, tag="connected", frozen=True, kw_only=True):
    """Times in ns, one for each pair of agents; make_ns is empty for a build without make_connection."""

    add_ns: list[int]
    make_ns: list[int]
    prepare_ns: list[int]  # both lists of a pair
    prepared: int  # descriptors in them


class Met(msgspec.Struct, tag="met", frozen=True):
    pass


class Filled(msgspec.Struct, tag="filled", frozen=True):
    turn: int


class Timed(msgspec.Struct, tag="timed", frozen=True, kw_only=True):
    """A batch is over at this initiator.

    rows         int64, COLUMNS each, one for each transfer
    backends     as query_xfer_backend answered for its last transfer
    merged       descriptors of its last transfer as NIXL's telemetry counts them, after merging; None: no telemetry
    nixl_bytes   bytes of its last transfer as NIXL counts them
    """

    turn: int
    rows: bytes
    backends: list[str]
    merged: int | None
    nixl_bytes: int | None


class Checked(msgspec.Struct, tag="checked", frozen=True, kw_only=True):
    """blocks compared; wrong: (lane, slot, wrong blocks); outside: blocks changed though nothing was moved there."""

    turn: int
    blocks: int
    wrong: list[tuple[int, int, int]]
    kinds: dict[str, int]
    outside: int


class Limited(msgspec.Struct, tag="limited", frozen=True):
    """Bytes copied (`copy`) or received (`stream`), and the ns that took; a reason where it could not be done."""

    what: str
    size_bytes: int
    took_ns: int
    reason: str | None = None


class Serving(msgspec.Struct, tag="serving", frozen=True):
    host: str
    port: int


class Failed(msgspec.Struct, tag="failed", frozen=True):
    reason: str


FromWorker = Step | Ready | Connected | Met | Filled | Timed | Checked | Limited | Serving | Failed

encode = msgspec.msgpack.Encoder().encode


def initiator_agent(index: int, thread: int, rank: int) -> str:
    return f"initiator-{index}-thread-{thread}-rank-{rank}"


def target_agent(index: int, rank: int) -> str:
    return f"target-{index}-rank-{rank}"
