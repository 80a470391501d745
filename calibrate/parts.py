"""The synthetic calibration in parts that need nothing of one another: each a process, its result a line of JSON.

python -m calibrate.parts family lognormal 500 7
"""

import sys
from collections.abc import Callable, Sequence

import msgspec

from calibrate import family, levels, stopping
from calibrate.noise import KINDS
from calibrate.planted import Planted, plant

PART = 200  # comparisons or experiments at most
NESTED = 500  # comparisons of deployments with runs on each
DRIFTED = 2000  # of deployments in time, three ways each


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """what: a key of MAKERS. seed: no two parts share one."""

    what: str
    kind: str
    count: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.what}-{self.kind}-{self.count}-{self.seed}"

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "calibrate.parts", self.what, self.kind, str(self.count), str(self.seed)]


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What a part gave; tallies: by design."""

    kind: str
    tallies: list[tuple[family.Design, family.Tally]] = []
    planted: Planted | None = None
    stopped: list[stopping.Stopped] = []
    nested: list[levels.Nested] = []
    drifted: list[levels.Drifted] = []


def _family(part: Part) -> Counted:
    return Counted(kind=part.kind, tallies=list(family.tally(part.kind, part.count, part.seed).items()))


def _planted(part: Part) -> Counted:
    return Counted(kind=part.kind, planted=plant(part.kind, part.count, part.seed))


def _stopping(part: Part) -> Counted:
    spreads = stopping.SPREADS
    return Counted(kind=part.kind, stopped=[stopping.stop(part.kind, s, part.count, part.seed) for s in spreads])


def _levels(part: Part) -> Counted:
    return Counted(kind=part.kind, nested=[levels.nest(*shape, part.count, part.seed) for shape in levels.SHAPES])


def _drifts(part: Part) -> Counted:
    (kind,) = (one for one in levels.DRIFTS if one == part.kind)
    return Counted(
        kind=kind,
        drifted=[one for blocks in levels.BLOCKS for one in levels.drift(kind, blocks, part.count, part.seed)],
    )


MAKERS: dict[str, Callable[[Part], Counted]] = {
    "family": _family,
    "planted": _planted,
    "stopping": _stopping,
    "levels": _levels,
    "drifts": _drifts,
}


def parts_of(comparisons: int, experiments: int) -> list[Part]:
    """Kinds in turn, so that a calibration that is cut off has as much of each."""
    wanted = [("stopping", kind, comparisons, comparisons) for kind in stopping.KINDS]
    wanted += [
        (what, kind, n, PART) for kind in KINDS for what, n in (("family", comparisons), ("planted", experiments))
    ]
    wanted.append(("levels", "nested", min(NESTED, comparisons), NESTED))
    wanted += [("drifts", kind, min(DRIFTED, comparisons), DRIFTED) for kind in levels.DRIFTS]
    found = []
    for round_number in range(-(-max(comparisons, experiments) // PART)):
        for place, (what, kind, count, most) in enumerate(wanted):
            start = round_number * most
            if start < count:
                seed = 1000 * (place + 1) + round_number
                found.append(Part(what=what, kind=kind, count=min(most, count - start), seed=seed))
    return found


def main(arguments: Sequence[str]) -> int:
    what, kind, count, seed = arguments
    part = Part(what=what, kind=kind, count=int(count), seed=int(seed))
    print(msgspec.json.encode(MAKERS[part.what](part)).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
