"""Which blocks of the pool are free. Pure: no memory is touched here."""

from collections import deque

import numpy as np

from kvgauge.kv.layout import Int32


class BlockTable:
    """Hands out block numbers, oldest freed first, so that neighbours drift apart as in a real engine.

    The order starts shuffled: contiguous blocks would be merged by NIXL into a few large descriptors and
    flatter every backend.
    """

    def __init__(self, blocks: int, seed: int = 0) -> None:
        self.total = blocks
        self._free = deque(int(b) for b in np.random.default_rng(seed).permutation(blocks))
        self._held: dict[int, Int32] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def can_hold(self, blocks: int) -> bool:
        return blocks <= len(self._free)

    def allocate(self, key: int, blocks: int) -> Int32:
        """Take blocks for a request. Ask `can_hold` first; a key holds one allocation."""
        assert key not in self._held
        assert self.can_hold(blocks)
        taken = np.fromiter((self._free.popleft() for _ in range(blocks)), dtype=np.int32, count=blocks)
        self._held[key] = taken
        return taken

    def release(self, key: int) -> bool:
        """Free what the request holds; False when it holds nothing (released before)."""
        held = self._held.pop(key, None)
        if held is None:
            return False
        self._free.extend(held.tolist())
        return True
