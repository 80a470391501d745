"""The only shape a number has once it leaves the statistics: with its interval, its n and its unit."""

import msgspec


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """point in [low, high] at 95 %, from n independent observations.

    point is None when there is no value, low and high are None when there is no interval; `reason` then says why.
    note: what the value rests on where that is not the server's own word; None: nothing to say.
    """

    point: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    reason: str | None = None
    note: str | None = None


def missing(unit: str, reason: str) -> Estimate:
    """No value, and why."""
    return Estimate(point=None, low=None, high=None, n=0, unit=unit, reason=reason)


def bare(point: float, unit: str, n: int, reason: str) -> Estimate:
    """A value without an interval, and why there is none."""
    return Estimate(point=point, low=None, high=None, n=n, unit=unit, reason=reason)


def counted(count: int, unit: str, n: int, reason: str | None = None) -> Estimate:
    """A complete count of n things: nothing was sampled, so low and high are the count itself."""
    return Estimate(point=count, low=count, high=count, n=n, unit=unit, reason=reason)
