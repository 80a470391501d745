"""Counts as rates, with the exact interval of Clopper and Pearson."""

import msgspec


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """count of n, in percent, with its 95 % interval."""

    count: int
    n: int
    pct: float
    low_pct: float
    high_pct: float


def rate(count: int, n: int) -> Rate:
    """C. J. Clopper, E. S. Pearson, Biometrika 26 (1934) 404-413. n at least 1."""
    from scipy.special import betaincinv

    low = float(betaincinv(count, n - count + 1, 0.025)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 0.975)) if count < n else 1.0
    return Rate(count=count, n=n, pct=100 * count / n, low_pct=100 * low, high_pct=100 * high)
