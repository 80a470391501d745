"""Moves one request's KV blocks between two workers: all rank pairs, posted one by one, watched to the end.

No Python runs per block: descriptor lists are prepared once for whole pools, and a request is two index arrays.
"""

import statistics
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
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
    lost_ns: int | None = None  # the peer's process has ended: from then on nothing comes through here any more


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
    settled: bool = True  # False: given up while NIXL still moved bytes; `Mover.settled` tells when it has let go
    begun_ns: int = 0
    lost: str | None = None  # its peer's process has ended; what is posted may still end well


class Mover:
    """Connects to peers when first needed, as engines do, and carries moves to their end.

    connect_wait_ns  a slower network imitated: nothing is posted to a peer until so long after it was connected
    """

    def __init__(
        self,
        agents: list[Agent],
        bases: list[int],
        shape: PoolShape,
        clock_ns: Callable[[], int],
        *,
        connect_wait_ns: int = 0,
    ) -> None:
        self._agents = agents
        self._shape = shape
        self._clock_ns = clock_ns
        self._bases = bases
        self._local: dict[tuple[int, int], object] = {}
        self._connect_wait_ns = connect_wait_ns
        self._links: dict[int, list[Link]] = {}
        self._ready_ns: dict[int, int] = {}  # peer -> when it may be posted to
        self._connections: dict[tuple[str, str], Connection] = {}
        self._durations: dict[tuple[str, str], dict[int, deque[int]]] = defaultdict(dict)
        self._first: dict[tuple[str, str], tuple[int, int]] = {}
        self._moves: list[Move] = []
        self._peer_shapes: dict[int, PoolShape] = {}
        self._forgotten: list[Link] = []
        self._stuck: dict[int, list[Leg]] = {}  # of moves past their deadline: what NIXL has not let go of

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
        try:
            self._links[peer.index] = self._link(peer, pairs, names)
        except TransferError:
            for (our_rank, _), name in names.items():
                self._agents[our_rank].forget(name, [])
            raise
        self._peer_shapes[peer.index] = peer.shape
        self._ready_ns[peer.index] = self._clock_ns() + self._connect_wait_ns

    def _link(self, peer: WorkerInfo, pairs: list[Pair], names: dict[tuple[int, int], str]) -> list[Link]:
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
        return links

    def forget(self, peer: int, until_ns: int) -> None:
        """The peer's process has ended: nothing more is posted to it, and its next one is connected to anew.

        until_ns  what is posted has until then to end by itself. NIXL notices a broken connection at once or not at
                  all, and bytes our kernel has already received may still be written into the blocks.
        """
        links = self._links.pop(peer, [])
        for link in links:
            link.lost_ns = until_ns
        self._forgotten += links
        for move in self._moves:
            if move.peer == peer and move.lost is None:
                move.lost = f"{move.operation}: the worker on the other side has ended"
                move.deadline_ns = min(move.deadline_ns, until_ns)
        self._clear_forgotten()

    def _clear_forgotten(self) -> None:
        stuck = (leg.link.lost_ns for legs in self._stuck.values() for leg in legs)
        if not self._forgotten or any(move.lost for move in self._moves) or any(stuck):
            return
        agents = {link.agent.name: link.agent for link in self._forgotten}
        prepared: dict[tuple[str, str], list[object]] = defaultdict(list)
        for link in self._forgotten:
            prepared[link.agent.name, link.peer].append(link.remote)
        for (name, peer), lists in prepared.items():
            agents[name].forget(peer, lists)
        self._forgotten = []

    def _join(self, agent: Agent, remote: RankInfo) -> str:
        name, add_ns, make_ns = agent.connect(remote.metadata)
        self._connections[agent.name, name] = Connection(
            initiator=agent.name,
            peer=name,
            add_remote_ns=add_ns,
            make_connection_ns=make_ns,
            modelled_ns=self._connect_wait_ns,
        )
        return name

    def _own(self, rank: int, piece: int) -> object:
        if (rank, piece) not in self._local:
            own = descriptors(self._bases[rank], self._shape, piece)
            self._local[rank, piece] = self._agents[rank].prepare(own)
        return self._local[rank, piece]

    def begin(self, key: int, peer: int, operation: str, blocks: tuple[Int32, Int32], deadline_ns: int) -> Move:
        """Queue one request's move; `progress` posts it pair by pair.

        blocks       (ours, theirs), same length, in prompt order
        deadline_ns  as if it were posted now: waiting for other moves' posts and for a connection does not count
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
            begun_ns=self._clock_ns(),
        )
        self._moves.append(move)
        return move

    def withdraw(self, move: Move) -> bool:
        """Forget a move of which nothing is posted. False: it is under way, or over, and ends by itself."""
        if move.posted_ns is not None or move.done_ns is not None:
            return False
        self._moves = [other for other in self._moves if other is not move]
        self._clear_forgotten()
        return True

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
            self._clear_forgotten()
        return ended

    def settled(self) -> list[int]:
        """Keys of moves that were given up and that NIXL has let go of since the last call: their blocks are safe."""
        over = []
        for key, legs in list(self._stuck.items()):
            legs[:] = [leg for leg in legs if not self._let_go(leg)]
            if not legs:
                del self._stuck[key]
                over.append(key)
        if over:
            self._clear_forgotten()
        return over

    def _let_go(self, leg: Leg) -> bool:
        lost = leg.link.lost_ns is not None and self._clock_ns() > leg.link.lost_ns
        if leg.link.agent.state(leg.handle) == "PROC" and not lost:
            return False
        with suppress(TransferError):
            leg.link.agent.release(leg.handle)
        return True

    def connections(self) -> list[Connection]:
        """What each pair cost, the excess of its first transfer included as soon as it is known."""
        return [self._with_excess(pair, connection) for pair, connection in self._connections.items()]

    def _post_one(self) -> None:
        now = self._clock_ns()
        ready = (
            move
            for move in self._moves
            if move.links and move.failure is None and move.lost is None and self._ready_ns[move.peer] <= now
        )
        move = next(ready, None)
        if move is None:
            return
        link = move.links.popleft()
        began = self._clock_ns()
        if move.posted_ns is None:
            move.posted_ns = began
            move.deadline_ns += began - move.begun_ns
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
        if move.failure is None and (still or move.links):
            if move.lost is not None and (now > move.deadline_ns or not still):
                move.failure = move.lost
            elif move.posted_ns is not None and now > move.deadline_ns:
                unfinished, pairs = len(still) + len(move.links), len(self._links[move.peer])
                move.failure = f"{move.operation} past its deadline: {unfinished} of {pairs} pairs of ranks unfinished"
        if move.failure is not None:
            self._give_up(move, still)
            move.legs, move.links = [], deque()
        if not move.legs and not move.links:
            move.done_ns = now

    def _give_up(self, move: Move, still: list[Leg]) -> None:
        """A peer that has ended moves nothing more. Otherwise what NIXL still moves is watched until it lets go."""
        if move.lost is not None:
            for leg in still:
                self._release(move, leg)
        elif still:
            self._stuck[move.key] = still
            move.settled = False

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
