"""Numbers as people read them. Nothing else in kvgauge rounds."""

from kvgauge.stats.estimate import Estimate

NONE = "\N{EN DASH}"
MIB = 2**20
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def decimals(value: float) -> int:
    """Digits after the point: one below 100, more below 1, none from 100 on."""
    size = abs(value)
    if size >= 100 or size == 0:
        return 0
    return 1 if size >= 1 else 2 if size >= 0.1 else 3


def number(value: float, places: int | None = None) -> str:
    """1,234 / 12.3 / 0.12 / 0.012"""
    return f"{value:,.{decimals(value) if places is None else places}f}"


def value_text(estimate: Estimate) -> str:
    """The point, a dash where there is none. The unit stands in the column's head.

    Counts that came out whole stay whole, and published numbers (n = 0) stay as they were printed.
    """
    point = estimate.point
    if point is None:
        return NONE
    whole = point == int(point) and (estimate.n == 0 or estimate.low == point == estimate.high)
    return number(point, 0 if whole else None)


def interval_text(estimate: Estimate) -> str:
    """±half where the point is in the middle, low to high where it is not, nothing where there is no interval."""
    point, low, high = estimate.point, estimate.low, estimate.high
    if point is None or low is None or high is None or low == high:
        return ""
    half, places = (high - low) / 2, decimals(point)
    if abs((high + low) / 2 - point) > 1e-6 * max(abs(point), half):
        return f"{number(low, places)}{NONE}{number(high, places)}"
    rounded = number(half, places)
    return f"±{half:.1g}" if float(rounded.replace(",", "")) == 0 and half >= 1e-4 else f"±{rounded}"


def with_interval(estimate: Estimate) -> str:
    """Value and interval on one line."""
    return f"{value_text(estimate)} {interval_text(estimate)}".rstrip()


def signed_pct(value: float) -> str:
    return f"{value:+,.1f} %"


def plain(text: str) -> str:
    """Text of the user's, safe for a terminal: control characters (escape sequences) are shown, not obeyed."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def elided(text: str, most: int) -> str:
    """At most so many characters, the middle left out: of a path both ends tell most."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (most - 1 - head) :]}"


def superscript(index: int) -> str:
    return str(index).translate(SUPERSCRIPTS)
