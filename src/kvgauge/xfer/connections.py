"""What a worker has, and what it prepares between its agents and those of the other side."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kvgauge.failures import TransferError
from kvgauge.kv.agent import Agent
from kvgauge.xfer.answers import Answers
from kvgauge.xfer.gathered import GatheredLeg
from kvgauge.xfer.loop import Leg
from kvgauge.xfer.memory import Pool
from kvgauge.xfer.messages import Connected, RankInfo, Step, WorkerSpec
from kvgauge.xfer.staging import Staging, clock_name
from kvgauge.xfer.workload import Int32, descriptors, pair, rows, staged


@dataclass(slots=True, kw_only=True)
class Own:
    """Agents, their names and pools: thread by thread, rank by rank. staging: where blocks are gathered"""

    spec: WorkerSpec
    say: Callable[[Step], None]
    names: list[str] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    agents: list[Agent] = field(default_factory=list)
    staging: Staging | None = None

    def lane(self, thread: int) -> int:
        return self.spec.index * self.spec.work.threads + thread

    def infos(self) -> list[RankInfo]:
        return [
            RankInfo(
                metadata=agent.metadata,
                address=pool.address,
                device=pool.device,
                staging=self.staging.address(number) if self.staging else 0,
                clock=clock_name(),
            )
            for number, (agent, pool) in enumerate(zip(self.agents, self.pools, strict=True))
        ]


@dataclass(slots=True, kw_only=True)
class Legs:
    """Of each thread; `gathered` holds the same ones where blocks are gathered, else nothing."""

    plain: list[list[Leg]] = field(default_factory=list)
    gathered: list[list[GatheredLeg]] = field(default_factory=list)


def connect(own: Own, targets: list[list[RankInfo]]) -> tuple[Connected, Legs]:
    """An initiator to every agent of these targets, and the lists of each pair. raises TransferError"""
    work, found = own.spec.work, Legs()
    add_ns: list[int] = []
    make_ns: list[int] = []
    prepare_ns: list[int] = []
    prepared = 0
    for thread in range(work.threads):
        plain: list[Leg] = []
        gathered: list[GatheredLeg] = []
        for target, ranks in enumerate(targets):
            for rank, info in enumerate(ranks):
                number = thread * work.ranks + rank
                own.say(Step(f"connecting {own.names[number]} to target {target}"))
                name, added, made = own.agents[number].connect(info.metadata)
                add_ns.append(added)
                make_ns += [] if made is None else [made]
                began = time.monotonic_ns()
                leg, count = _prepare(own, number, thread, target, name, info)
                prepare_ns.append(time.monotonic_ns() - began)
                prepared += count
                plain.append(leg)
                if own.staging is not None:
                    which = pair(work, target, own.lane(thread))
                    stage = own.staging.stage(number, own.pools[number], target, which)
                    gathered.append(GatheredLeg(leg, stage, name, info.clock == clock_name() != ""))
        found.plain.append(plain)
        found.gathered += [gathered] if gathered else []
    return Connected(add_ns=add_ns, make_ns=make_ns, prepare_ns=prepare_ns, prepared=prepared), found


def _prepare(own: Own, number: int, thread: int, target: int, peer: str, info: RankInfo) -> tuple[Leg, int]:
    work, agent, pool, lane = own.spec.work, own.agents[number], own.pools[number], own.lane(thread)
    which = pair(work, target, lane)
    our_rows: tuple[Int32, ...]
    if own.staging is not None:
        ours = staged(work, own.staging.address(number), target, pool.device)
        theirs = staged(work, info.staging, lane, info.device)
        our_rows = their_rows = tuple(np.array([area], dtype=np.int32) for area in range(work.areas))
    else:
        ours = descriptors(work, pool.address, target, pool.device)
        theirs = descriptors(work, info.address, lane, info.device)
        our_rows = tuple(rows(work, "initiator", which, slot) for slot in range(work.slots))
        their_rows = tuple(rows(work, "target", which, slot) for slot in range(work.slots))
    local, remote = agent.prepare(ours, None, work.memory), agent.prepare(theirs, peer, work.memory)
    return Leg(agent.wheel, local, our_rows, remote, their_rows), len(ours) + len(theirs)


def meet(own: Own, initiators: list[list[RankInfo]]) -> Answers:
    """A target of gathered transfers answers, so it must know who asks. raises TransferError"""
    work, stages, peers, staging = own.spec.work, {}, {}, own.staging
    if staging is None:
        raise TransferError(f"{own.spec.side} {own.spec.index} has no staging buffer: {work.strategy} needs none")
    for initiator, agents in enumerate(initiators):
        for number, info in enumerate(agents):
            thread, rank = divmod(number, work.ranks)
            lane = initiator * work.threads + thread
            own.say(Step(f"connecting {own.names[rank]} to initiator {initiator}"))
            peers[rank, lane] = own.agents[rank].connect(info.metadata)[0]
            which = pair(work, own.spec.index, lane)
            stages[rank, lane] = staging.stage(rank, own.pools[rank], lane, which)
    return Answers(work, own.agents, stages, peers)
