"""Where numbers stand on a chart: axes, ticks, intervals cut at the frame, labels that keep apart. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from kvgauge.stats.estimate import Estimate

WIDE = 20.0  # largest over smallest, from which on a linear axis would press the small ones flat
ROOM = 1.12  # around the outermost point; on a logarithmic axis squared
REACH = 2.0  # an interval may widen an axis by so much, then it is cut: a wild one must not press the others flat


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From low to high; log: equal ratios are equally long, and low is above 0."""

    low: float
    high: float
    log: bool

    def share(self, value: float) -> float:
        """0 at low, 1 at high."""
        if self.log:
            return log10(value / self.low) / log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def at(self, share: float) -> float:
        """The value that stands there."""
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers within, two at least, about five."""
        return self._log_ticks() if self.log else self._linear_ticks()

    def _log_ticks(self) -> list[float]:
        powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        step = ceil(log10(self.high / self.low) / 6)
        found: list[float] = []
        for mantissas in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
            every = [mantissa * 10.0**power for power in powers if power % step == 0 for mantissa in mantissas]
            found = [value for value in every if self.low <= value <= self.high]
            if len(found) >= 3:
                return found
        return found if len(found) >= 2 else [self.low, self.high]

    def _linear_ticks(self) -> list[float]:
        wanted = (self.high - self.low) / 5
        power = 10.0 ** floor(log10(wanted))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= wanted * 0.75)
        return [step * number for number in range(ceil(self.low / step), floor(self.high / step) + 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The part of an interval that the frame shows; cut_*: it goes on there."""

    low: float
    high: float
    cut_low: bool
    cut_high: bool


def axis_over(estimates: Iterable[Estimate], marks: Iterable[float] = (), *, log: bool | None = None) -> Axis:
    """An axis that holds every point and mark, and of intervals what is in reach.

    log  None: where the numbers are far apart; an axis that is not begins at 0
    """
    known = [one for one in estimates if one.point is not None]
    values = [value for one in known if (value := one.point) is not None and value > 0]
    values += [value for value in marks if value > 0]
    if not values:
        return Axis(low=1, high=10, log=True) if log else Axis(low=0, high=1, log=False)
    least, most = min(values), max(values)
    if log is None:
        log = most / least > WIDE
    highest = min(max([most, *(one.high for one in known if one.high is not None)]), most * REACH)
    if not log:
        return Axis(low=0, high=highest * ROOM, log=False)
    lowest = max(min([least, *(one.low for one in known if one.low is not None)]), least / REACH)
    return Axis(low=lowest / ROOM**2, high=highest * ROOM**2, log=True)


def bar_of(estimate: Estimate, axis: Axis) -> Bar | None:
    """None where there is no interval."""
    low, high = estimate.low, estimate.high
    if low is None or high is None:
        return None
    return Bar(
        low=min(max(low, axis.low), axis.high),
        high=min(max(high, axis.low), axis.high),
        cut_low=low < axis.low,
        cut_high=high > axis.high,
    )


def thinned(values: Iterable[float], axis: Axis, length: float, gap: float) -> list[float]:
    """Those of the values, ascending, that leave `gap` to the one before, on an axis of this length."""
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or (axis.share(value) - axis.share(kept[-1])) * length >= gap:
            kept.append(value)
    return kept


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart and as near as can be to those wanted, in the order given: labels do not overlap.

    Neighbours that are too near become a block around the mean of what they want, until no block touches another.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[list[int]] = []
    starts: list[float] = []
    for index in order:
        blocks.append([index])
        starts.append(wanted[index])
        while len(blocks) > 1 and starts[-2] + gap * len(blocks[-2]) > starts[-1]:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
            place = [wanted[one] - gap * number for number, one in enumerate(blocks[-1])]
            starts[-2:] = [sum(place) / len(place)]
    found = [0.0] * len(wanted)
    for start, block in zip(starts, blocks, strict=True):
        for number, index in enumerate(block):
            found[index] = start + gap * number
    return found
