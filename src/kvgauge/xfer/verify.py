"""After a batch, at the destination: every byte of every transfer, whoever sent it."""

from collections.abc import Sequence

from kvgauge.xfer import image
from kvgauge.xfer.memory import Pool
from kvgauge.xfer.messages import Checked, WorkerSpec, initiator_agent, target_agent


def compare(spec: WorkerSpec, pools: Sequence[tuple[str, Pool]], turn: int, count: int) -> Checked:
    """The first `count` slots of every group of these pools.

    pools  (agent's name, its pool), in the order of the agents: thread by thread, rank by rank
    """
    blocks = outside = 0
    wrong: dict[tuple[int, int], int] = {}
    kinds: dict[str, int] = {}
    for number, (name, pool) in enumerate(pools):
        words = pool.host()
        for lane, expect in expected(spec, number, name, turn):
            for slot in range(count):
                found, changed = image.check(words, expect, slot)
                outside += changed
                blocks += spec.work.leg_blocks
                for kind, many in found.items():
                    kinds[kind] = kinds.get(kind, 0) + many
                    wrong[lane, slot] = wrong.get((lane, slot), 0) + many
    listed = [(lane, slot, many) for (lane, slot), many in sorted(wrong.items())]
    return Checked(turn=turn, blocks=blocks, wrong=listed, kinds=kinds, outside=outside)


def expected(spec: WorkerSpec, number: int, name: str, turn: int) -> list[tuple[int, image.Expect]]:
    """(lane, what must lie there) of every group of the pool of agent `number`."""
    work, found = spec.work, []
    thread, rank = divmod(number, work.ranks)
    blank = image.base(name, -1)
    if spec.side == "initiator":
        lane = spec.index * work.threads + thread
        sources = [(lane, (target, lane), target_agent(target, rank)) for target in range(work.targets)]
    else:
        sources = [
            (lane, (spec.index, lane), initiator_agent(*divmod(lane, work.threads), rank))
            for lane in range(work.groups_target)
        ]
    for lane, groups, source in sources:
        now, before = image.base(source, turn), image.base(source, turn - 1)
        found.append((lane, image.Expect(work, spec.side, groups, now=now, before=before, blank=blank)))
    return found
