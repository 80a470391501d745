"""Moves one request's KV blocks between two workers: all rank pairs, posted one by one, watched to the end.

No Python runs per block: descriptor lists are prepared once for whole pools, and a request is two index arrays.
"""

import statistics
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from kvgauge.failures import TransferError
from kvgauge.kv.agent import Agent, Handle
from kvgauge.kv.layout import Int32, Pair, PoolShape, descriptors, rows_of
from kvgauge.samples.records import Connection

SAME_SIZE_WANTED = 3  # later transfers of the first one's size before its excess is believed
DURATIONS_KEPT = 256


class RankInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer must know of one rank."""

    metadata: bytes
    address: int


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer must know of one worker."""

    index: int
    shape: PoolShape
    ranks: tuple[RankInfo, ...]


@dataclass(slots=True, kw_only=True)
class Link:
    """One connected pair of agents and one piece: where our side lies and where theirs does."""

    agent: Agent
    peer: str
    local: object
    remote: object
    piece_bytes: int


@dataclass(slots=True, kw_only=True)
class Leg:
    """One posted pair of a move."""

    link: Link
    handle: Handle
    descriptors: int
    posted_ns: int


@dataclass(slots=True, kw_only=True)
class Move:
    """One request's transfer in flight."""

    key: int
    peer: int
    operation: str
    links: deque[Link]
    local_rows: Int32
    remote_rows: Int32
    notification: bytes
    deadline_ns: int
    legs: list[Leg] = field(default_factory=list)
    posted_ns: int | None = None
    done_ns: int | None = None
    post_ns: int = 0
    descriptors: int = 0
    bytes_listed: int = 0
    bytes_moved: int | None = 0
    backends: set[str] = field(default_factory=set)
    failure: str | None = None


class Mover:
    """Connects to peers when first needed, as engines do, and carries moves to their end."""

    def __init__(self, agents: list[Agent], bases: list[int], shape: PoolShape, clock_ns: Callable[[], int]) -> None:
        self._agents = agents
        self._shape = shape
        self._clock_ns = clock_ns
        self._bases = bases
        self._local: dict[tuple[int, int], object] = {}
        self._links: dict[int, list[Link]] = {}
        self._connections: dict[tuple[str, str], Connection] = {}
        self._durations: dict[tuple[str, str], dict[int, deque[int]]] = defaultdict(dict)
        self._first: dict[tuple[str, str], tuple[int, int]] = {}
        self._moves: list[Move] = []
        self._peer_shapes: dict[int, PoolShape] = {}

    @property
    def busy(self) -> bool:
        return bool(self._moves)

    def connected(self, peer: int) -> bool:
        return peer in self._links

    def connect(self, peer: WorkerInfo, pairs: list[Pair]) -> None:
        """Connect every pair of agents that shares a piece, and prepare both sides' descriptor lists.

        raises  TransferError
        """
        names: dict[tuple[int, int], str] = {}
        links = []
        for pair in pairs:
            agent = self._agents[pair.our_rank]
            ranks = (pair.our_rank, pair.their_rank)
            if ranks not in names:
                names[ranks] = self._join(agent, peer.ranks[pair.their_rank])
            name = names[ranks]
            theirs = descriptors(peer.ranks[pair.their_rank].address, peer.shape, pair.their_piece)
            links.append(
                Link(
                    agent=agent,
                    peer=name,
                    local=self._own(pair.our_rank, pair.our_piece),
                    remote=agent.prepare(theirs, name),
                    piece_bytes=self._shape.piece_bytes,
                )
            )
        self._links[peer.index] = links
        self._peer_shapes[peer.index] = peer.shape

    def _join(self, agent: Agent, remote: RankInfo) -> str:
        name, add_ns, make_ns = agent.connect(remote.metadata)
        self._connections[agent.name, name] = Connection(
            initiator=agent.name, peer=name, add_remote_ns=add_ns, make_connection_ns=make_ns
        )
        return name

    def _own(self, rank: int, piece: int) -> object:
        if (rank, piece) not in self._local:
            own = descriptors(self._bases[rank], self._shape, piece)
            self._local[rank, piece] = self._agents[rank].prepare(own)
        return self._local[rank, piece]

    def begin(self, key: int, peer: int, operation: str, blocks: tuple[Int32, Int32], deadline_ns: int) -> Move:
        """Queue one request's move; `progress` posts it pair by pair.

        blocks  (ours, theirs), same length, in prompt order
        """
        ours, theirs = blocks
        move = Move(
            key=key,
            peer=peer,
            operation=operation,
            links=deque(self._links[peer]),
            local_rows=rows_of(ours, self._shape),
            remote_rows=rows_of(theirs, self._peer_shapes[peer]),
            notification=key.to_bytes(8, "little"),
            deadline_ns=deadline_ns,
        )
        self._moves.append(move)
        return move

    def progress(self, *, post: bool = True) -> list[Move]:
        """Post at most one pair of the oldest unposted move, look at all legs, return the moves that ended."""
        if not self._moves:
            return []
        if post:
            self._post_one()
        ended = []
        for move in self._moves:
            self._look(move)
            if move.done_ns is not None:
                ended.append(move)
        if ended:
            self._moves = [move for move in self._moves if move.done_ns is None]
        return ended

    def connections(self) -> list[Connection]:
        """What each pair cost, the excess of its first transfer included as soon as it is known."""
        return [self._with_excess(pair, connection) for pair, connection in self._connections.items()]

    def _post_one(self) -> None:
        move = next((move for move in self._moves if move.links and move.failure is None), None)
        if move is None:
            return
        link = move.links.popleft()
        began = self._clock_ns()
        if move.posted_ns is None:
            move.posted_ns = began
        try:
            handle, _ = link.agent.post(
                move.operation, (link.local, move.local_rows), (link.remote, move.remote_rows), move.notification
            )
        except TransferError as error:
            move.failure = str(error)
            return
        count = len(move.local_rows)
        move.post_ns += self._clock_ns() - began
        move.legs.append(Leg(link=link, handle=handle, descriptors=count, posted_ns=began))
        move.descriptors += count
        move.bytes_listed += count * link.piece_bytes

    def _look(self, move: Move) -> None:
        still = []
        for leg in move.legs:
            state = leg.link.agent.state(leg.handle)
            if state == "PROC":
                still.append(leg)
            elif state == "DONE":
                self._finish(move, leg)
            else:
                move.failure = (
                    move.failure or f"NIXL reports {state} for a {move.operation} over {leg.link.agent.backend}"
                )
                self._release(move, leg)
        move.legs = still
        now = self._clock_ns()
        if now > move.deadline_ns and (still or move.links) and move.failure is None:
            move.failure = (
                f"{move.operation} past its deadline: {len(still)} of {move.descriptors} descriptors' pairs unfinished"
            )
        if move.failure is not None:
            for leg in still:
                self._release(move, leg)
            move.legs, move.links = [], deque()
        if not move.legs and not move.links:
            move.done_ns = now

    def _finish(self, move: Move, leg: Leg) -> None:
        agent = leg.link.agent
        move.backends.add(agent.used_backend(leg.handle))
        moved = agent.moved_bytes(leg.handle)
        move.bytes_moved = None if moved is None or move.bytes_moved is None else move.bytes_moved + moved
        self._remember((agent.name, leg.link.peer), leg.descriptors, self._clock_ns() - leg.posted_ns)
        self._release(move, leg)

    def _release(self, move: Move, leg: Leg) -> None:
        try:
            leg.link.agent.release(leg.handle)
        except TransferError as error:
            move.failure = move.failure or str(error)

    def _remember(self, pair: tuple[str, str], count: int, took_ns: int) -> None:
        if pair not in self._first:
            self._first[pair] = (count, took_ns)
            return
        self._durations[pair].setdefault(count, deque(maxlen=DURATIONS_KEPT)).append(took_ns)

    def _with_excess(self, pair: tuple[str, str], connection: Connection) -> Connection:
        if pair not in self._first:
            return connection
        count, first_ns = self._first[pair]
        later = self._durations[pair].get(count, ())
        excess = int(first_ns - statistics.median(later)) if len(later) >= SAME_SIZE_WANTED else None
        return msgspec.structs.replace(connection, first_transfer_ns=first_ns, first_excess_ns=excess)
