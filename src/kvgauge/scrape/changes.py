"""What one scrape tells that the one before did not. Pure."""

from math import isnan

from kvgauge.evidence.prometheus import Exposition, Key

Change = tuple[str, str, str, float | None]  # name, labels, kind, value (None: gone)
UP = "kvgauge:up"  # of every scrape: 1 when it gave series, 0 when not


def changed(before: dict[Key, float], now: Exposition) -> list[Change]:
    """Series that are new, have another value, or are gone."""
    rows: list[Change] = [
        (name, labels, now.kinds[name], value)
        for (name, labels), value in now.values.items()
        if (old := before.get((name, labels))) is None or (old != value and not (isnan(old) and isnan(value)))
    ]
    rows += [(name, labels, "unknown", None) for name, labels in before.keys() - now.values.keys()]
    return rows


def remark(now: Exposition) -> str | None:
    """What of an answer could not be used, in one line."""
    said = [now.cut] if now.cut else []
    if now.garbage:
        said.append(f"{now.garbage} lines are no series (the first: {now.first!r})")
    return "; ".join(said) or None
