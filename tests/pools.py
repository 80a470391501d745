"""KV pools of running workers, read and written from outside through /proc/PID/mem: faults need no hook in kvgauge."""

import os
import warnings

import numpy as np
import pytest

from kvgauge.kv import stamps

HEAD_BYTES = stamps.STAMP_WORDS * 8


class OpenPool:
    """The first rank's pool of one worker. Blocks are arrays [regions, words of a block], pieces being one here."""

    def __init__(self, target, name):
        info = target._crew._up[name]
        self.pid, self.shape, self._address = target.pids()[name], info.shape, info.ranks[0].address
        assert self.shape.pieces == 1
        try:
            self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR)
            self._write_at(self._address, self._read_at(self._address, 8))
        except OSError as error:
            reason = f"CORRUPTED BLOCKS NOT TESTED: /proc/{self.pid}/mem cannot be written ({error.strerror})"
            warnings.warn(reason, stacklevel=2)
            pytest.skip(reason)

    def _read_at(self, address, size):
        return os.pread(self._memory, size, address)

    def _write_at(self, address, data):
        assert os.pwrite(self._memory, data, address) == len(data)

    def _offset(self, region, block):
        return self._address + (region * self.shape.blocks + block) * self.shape.block_bytes

    def read(self, block):
        raw = [
            self._read_at(self._offset(region, block), self.shape.block_bytes) for region in range(self.shape.regions)
        ]
        return np.frombuffer(b"".join(raw), dtype=np.uint64).reshape(self.shape.regions, -1).copy()

    def write(self, block, words):
        for region in range(self.shape.regions):
            self._write_at(self._offset(region, block), words[region].tobytes())

    def holders(self):
        """{nonce: {position in the prompt: block}} as the first region's heads say, of every request ever stored."""
        found = {}
        for block in range(self.shape.blocks):
            head = np.frombuffer(self._read_at(self._offset(0, block), HEAD_BYTES), dtype=np.uint64)
            if head[0]:
                found.setdefault(int(head[0]), {})[int(head[2])] = block
        return found

    def is_whole(self, nonce, blocks, *, full):
        """Whether prefill has written everything of these blocks (position -> block)."""
        held = [self.read(blocks[position]) for position in sorted(blocks)]
        pool = np.stack(held, axis=1)[:, :, None, :]
        identity = stamps.Identity(nonce=nonce, digest=int(held[0][0, 3]))
        wanted = stamps.expected(identity, self.shape.regions, len(held), 0, 0)
        return stamps.check(pool, np.arange(len(held), dtype=np.int32), 0, wanted, full=full) == {}

    def close(self):
        os.close(self._memory)


def flip(word):
    """One bit of this word of the first region's block."""

    def corrupt(pool, blocks, _earlier):
        words = pool.read(blocks[1])
        words[0, word] ^= np.uint64(1 << 40)
        pool.write(blocks[1], words)

    return corrupt


def swap(pool, blocks, _earlier):
    one, two = pool.read(blocks[0]), pool.read(blocks[2])
    pool.write(blocks[0], two)
    pool.write(blocks[2], one)


def put_stale(pool, blocks, earlier):
    pool.write(blocks[3], pool.read(earlier[3]))


def zero(pool, blocks, _earlier):
    pool.write(blocks[2], np.zeros_like(pool.read(blocks[2])))
