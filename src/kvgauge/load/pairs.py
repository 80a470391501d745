"""Which arm each request of a paired load goes to: randomised blocks of two, AB or BA by the seed. Pure.

A block is a pair. In an open load, and where one request follows another, requests 2k and 2k + 1 are a pair; in a
closed load of several slots, a slot's own two requests in a row, so that both wait for the same slot.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from kvgauge.load.arrivals import Arrivals, Due

ARMS = 2
BITS = 256  # of one digest


class Order:
    """For each pair of a cell which arm comes first, as often the one as the other: the same for the same seed."""

    def __init__(self, seed: int, cell: str) -> None:
        self._name = f"pairs\0{seed}\0{cell}".encode()
        self._bits = lru_cache(maxsize=64)(self._drawn)

    def first(self, pair: int) -> int:
        """The arm, 0 or 1, whose request of this pair is sent first."""
        block, place = divmod(pair, BITS)
        return self._bits(block) >> place & 1

    def _drawn(self, block: int) -> int:
        return int.from_bytes(hashlib.sha256(self._name + f"\0{block}".encode()).digest())

    def arm(self, seq: int) -> int:
        """Which arm's request `seq` is. Numbers come in pairs too, so that prompts are drawn like arms."""
        return self.first(seq // ARMS) ^ seq % ARMS


class Half:
    """The numbers of one arm's requests, in order; pair 0 of them is pair `begin` of the order."""

    def __init__(self, order: Order, arm: int, begin: int) -> None:
        self._order, self._arm, self._begin = order, arm, begin

    def number(self, nth: int) -> int:
        """Of both arms' requests, the nth of this arm's."""
        return ARMS * nth + (self._order.first(self._begin + nth) ^ self._arm)


class InPairs:
    """Arrivals of which each is given to an arm: slot s of `load` stands for slots 2s (arm 0) and 2s + 1 (arm 1).

    begin    which pair of the order is pair 0 of this load
    by_slot  pairs are a slot's own requests; else those of the whole load as they become due
    """

    def __init__(self, load: Arrivals, order: Order, *, begin: int, by_slot: bool) -> None:
        self._load, self._order, self._begin, self._by_slot = load, order, begin, by_slot
        self._drawn = 0  # requests, or with by_slot pairs
        self._second: dict[int, int] = {}  # slot -> pair whose first request it has sent
        self._pairs: dict[int, int] = {}  # slot of the loop -> pair of the request it was given last

    def pair(self, slot: int) -> int:
        """The pair of the request that this slot of the loop sends now, counted from 0 in the order they began."""
        return self._pairs[slot]

    def lost(self) -> tuple[int, int]:
        """(pair, arm) of a request of an open load that is given up before it had a slot."""
        return self._draw(-1)

    def first(self) -> list[Due]:
        return self._given(self._load.first())

    def begun(self, slot: int, now_ns: int) -> list[Due]:
        return self._given(self._load.begun(slot // ARMS, now_ns))

    def ended(self, slot: int, at_ns: int) -> list[Due]:
        return self._given(self._load.ended(slot // ARMS, at_ns))

    def stop(self, now_ns: int) -> list[Due]:
        return self._given(self._load.stop(now_ns))

    def overflow(self, now_ns: int) -> list[int]:
        return self._load.overflow(now_ns)

    def _given(self, dues: Sequence[Due]) -> list[Due]:
        given = []
        for due in dues:
            pair, arm = self._draw(due.slot)
            slot = ARMS * due.slot + arm
            self._pairs[slot] = pair
            given.append(Due(due.due_ns, slot))
        return given

    def _draw(self, slot: int) -> tuple[int, int]:
        """(pair, arm) of the next request of this slot."""
        if not self._by_slot:
            pair, place = divmod(self._drawn, ARMS)
            self._drawn += 1
            return pair, self._order.first(self._begin + pair) ^ place
        held = self._second.pop(slot, None)
        if held is not None:
            return held, 1 - self._order.first(self._begin + held)
        pair = self._second[slot] = self._drawn
        self._drawn += 1
        return pair, self._order.first(self._begin + pair)
