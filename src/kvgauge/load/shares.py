"""Which part of a cell each of several load workers offers. Pure; together the parts are the cell, nothing twice.

Slots go round: slot i is worker i mod N's. A closed cell's request i belongs to slot i mod `concurrency`, so that each
worker sends what its slots would; an open one's request i is worker i mod N's, which spreads a burst over all of them.
"""

from typing import Protocol

import msgspec

from kvgauge.plan.records import Cell


class Numbers(Protocol):
    """Which of all requests of a load are ours."""

    def number(self, nth: int) -> int:
        """Which of all the nth of ours is, both from 0 on."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Of every `period` things in a row, those whose place is `index` modulo `of`. index < of <= period."""

    index: int
    of: int
    period: int

    def count(self, total: int) -> int:
        """How many of the first `total` are in it."""
        rounds, rest = divmod(total, self.period)
        return rounds * _every(self.period, self.index, self.of) + _every(rest, self.index, self.of)

    def number(self, nth: int) -> int:
        """Which of all the nth of it is, both from 0 on."""
        rounds, place = divmod(nth, _every(self.period, self.index, self.of))
        return rounds * self.period + self.index + place * self.of


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's share: worker `index` of `of`."""

    index: int = 0
    of: int = 1

    def slots(self, total: int) -> int:
        """How many of a cell's slots are its own."""
        return _every(total, self.index, self.of)

    def slot(self, nth: int) -> int:
        """The number that its nth slot has in the cell."""
        return self.index + nth * self.of

    def part(self, cell: Cell) -> Part:
        """Of the cell's requests, and of its warm-up, each by itself. raises ValueError for a worker without a slot"""
        period = self.of if cell.is_open else 1 if cell.load == "single" else cell.concurrency
        if workers_max(cell) < self.of:
            raise ValueError(f"cell {cell.name}: {self.of} workers for {workers_max(cell)} slots")
        return Part(index=self.index, of=self.of, period=period)


WHOLE, ALL = Share(), Part(index=0, of=1, period=1)


def workers_max(cell: Cell) -> int:
    """How many workers a cell can be shared by: each has a slot."""
    return 1 if cell.load == "single" else cell.concurrency


def _every(total: int, index: int, of: int) -> int:
    """How many of 0..total - 1 are `index` modulo `of`."""
    return (total - index + of - 1) // of if total > index else 0
