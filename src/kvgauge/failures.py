"""Every exception kvgauge raises on purpose.

Messages say what was seen, what was needed and what to do next: the command line prints them as they are.
"""


class KvgaugeError(Exception):
    """Something the user can act on. `exit_code` is what the command ends with."""

    exit_code = 3


class UsageError(KvgaugeError):
    """The command line or a file it names is wrong; nothing was started."""

    exit_code = 2


class PlanError(UsageError):
    """A plan that cannot be run as written.

    line  1-based line of the plan file, None where no line is to blame
    """

    def __init__(self, message: str, *, source: str = "plan", line: int | None = None) -> None:
        self.source, self.line = source, line
        super().__init__(f"{source}:{line}: {message}" if line is not None else f"{source}: {message}")


class BuildError(KvgaugeError):
    """A NIXL build cannot be installed, found or loaded."""


class TargetError(KvgaugeError):
    """The target did not start, died, or stopped answering."""


class TransferError(KvgaugeError):
    """A KV transfer failed, ran past its deadline, or delivered wrong bytes."""


class LoadError(KvgaugeError):
    """The load could not be offered at all (a single failed request is an Exchange, not this)."""


class SamplesError(KvgaugeError):
    """Samples cannot be written or read."""


class ReportError(KvgaugeError):
    """What was found cannot be shown as asked; it is on disk all the same."""


class TooFewSamples(ValueError):
    """A statistic was asked for that this many samples cannot give."""
