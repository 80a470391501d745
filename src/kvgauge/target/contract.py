"""What the rest of kvgauge asks of a target, whichever it is.

    prepare(test) -> start(run) -> endpoint, evidence(), phases() -> stop -> restore

`prepare` may be slow (install a build, patch a manifest) and happens once a test; `start` gives a target
as fresh as this kind of target can be (a url cannot be restarted: `fresh` says so); `restore` puts back what
`prepare` changed. Each is bounded in time and raises TargetError or BuildError.
"""

from typing import Protocol

import msgspec

from kvgauge.evidence.facts import Evidence
from kvgauge.plan.records import Run, Test
from kvgauge.samples.records import Transfer


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go.

    fresh       the target was started for this run
    same_clock  its stamps are of this host's monotonic clock, so they may be subtracted from ours
    """

    url: str
    model: str
    fresh: bool
    same_clock: bool


class Target(Protocol):
    def prepare(self, test: Test) -> None:
        """Make `start` possible for this test."""

    def start(self, run: Run) -> Endpoint:
        """Start it and wait until it answers."""

    def evidence(self) -> Evidence:
        """What is known by now about what really ran."""

    def phases(self) -> list[Transfer]:
        """KV moves finished since the last call."""

    def trouble(self) -> str | None:
        """What has ended for good, so that nothing more can be measured; None while it serves, or may again."""

    def mend(self) -> list[str]:
        """Start again what has ended, where that helps: what happened since the last call, a line each. Cheap."""

    def serving(self) -> bool:
        """Whether requests can be answered now: False while what `mend` started again is not up."""

    def wait_serving(self) -> None:
        """Wait until everything that was started again is up. raises TargetError"""

    def stop(self) -> None:
        """End everything `start` started. Safe to call twice."""

    def restore(self) -> None:
        """Put back what `prepare` changed."""
