"""What calibration keeps: the two files in calibrate/results/."""

import msgspec

from calibrate.family import Row
from calibrate.levels import Drifted, Nested
from calibrate.planted import Found
from calibrate.rates import Rate
from calibrate.stopping import Stopped


class Synthetic(msgspec.Struct, frozen=True, kw_only=True):
    """synthetic.json. note: where not all of it was counted on one code"""

    schema: int
    kvgauge: str
    comparisons: int
    experiments: int
    family: list[Row]
    planted: list[Found]
    stopping: list[Stopped]
    levels: list[Nested]
    drifts: list[Drifted] = []
    note: str | None = None


class Grouped(msgspec.Struct, frozen=True, kw_only=True):
    """Real pairs, so many to a comparison.

    alarms, primary_alarms, coverage  over groups of consecutive pairs that share none: the exact interval
    drawn, drawn_alarms_pct           over random groups and sides, with a delete-a-block jackknife over blocks of
                                      neighbouring pairs: these groups overlap
    """

    pairs: int
    alarms: Rate
    primary_alarms: Rate
    coverage: Rate
    drawn: int
    drawn_alarms_pct: tuple[float, float, float]
    drawn_primary_alarms_pct: tuple[float, float, float]


class Real(msgspec.Struct, frozen=True, kw_only=True):
    """real.json. machine: of results.json; metrics: that could have raised an alarm."""

    schema: int
    kvgauge: str
    machine: dict[str, str | int]
    plan: str
    pairs: int
    left_out: int
    metrics: int
    spread_pct: float
    groups: list[Grouped]
