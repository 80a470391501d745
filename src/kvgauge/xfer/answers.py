"""A target's part of gathered transfers: it gathers when asked, scatters what was moved, and says so."""

import time
from collections.abc import Sequence

from kvgauge.failures import TransferError
from kvgauge.kv.agent import Agent
from kvgauge.xfer.signals import ASK, MOVED, PLACED, READY, Signal, encode
from kvgauge.xfer.staging import Stage
from kvgauge.xfer.workload import Workload


class Answers:
    """What one target does between two polls.

    agents  of its ranks
    stages, peers  (rank, lane) -> blocks and staging areas of that pair; the initiating agent's name
    """

    def __init__(
        self,
        work: Workload,
        agents: Sequence[Agent],
        stages: dict[tuple[int, int], Stage],
        peers: dict[tuple[int, int], str],
    ) -> None:
        self._work, self._agents, self._stages, self._peers = work, agents, stages, peers
        self._together = work.memory == "VRAM"  # kernels queue; in host memory the first need not wait for the last

    def answer(self, heard: Sequence[tuple[int, Signal]]) -> list[int]:
        """Do all of it, tell who asked; the turns whose blocks are in their places now, one for each.

        heard   (rank, what it was told)
        raises  TransferError
        """
        for part in [heard] if self._together else [[one] for one in heard]:
            self._answer(part)
        return [signal.turn for _, signal in heard if signal.kind == MOVED]

    def _answer(self, heard: Sequence[tuple[int, Signal]]) -> None:
        began = time.monotonic_ns()
        for rank, signal in heard:
            stage = self._stage(rank, signal)
            if signal.kind == ASK:
                stage.gather(signal.slot, signal.area)
            else:
                stage.scatter(signal.slot, signal.area)
        at_ns, gap_ns = stage.finish()
        for rank, signal in heard:
            answer = Signal(
                kind=READY if signal.kind == ASK else PLACED,
                turn=signal.turn,
                lane=signal.lane,
                leg=signal.leg,
                slot=signal.slot,
                area=signal.area,
                work_ns=at_ns - began,
                at_ns=at_ns,
                gap_ns=gap_ns,
            )
            self._agents[rank].tell(self._peers[rank, signal.lane], encode(answer))

    def _stage(self, rank: int, signal: Signal) -> Stage:
        work = self._work
        stage = self._stages.get((rank, signal.lane))
        wanted = ASK if work.operation == "READ" else MOVED
        if stage is None or signal.kind != wanted or signal.slot >= work.slots or signal.area >= work.areas:
            raise TransferError(f"asked for what does not belong to this row: {signal}")
        return stage
