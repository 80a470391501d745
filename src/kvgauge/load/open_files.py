"""How many files a plan holds open at once, and how many this process may: every connection is one."""

import contextlib
import errno
import resource

from kvgauge.failures import UsageError
from kvgauge.plan.records import Cell, Plan

OWN = 40  # of client and frontend beside their connections: 20 of them are in use before the first request
OPEN_LEAST = 64  # connections of an open load
EACH_WORKER = 4
EACH_RANK = 16  # of a worker: 8 are in use with one peer a rank
ENOUGH = 65_536  # a limit that was raised to millions makes some libraries slow


def needed(plan: Plan, *, embedded: bool) -> int:
    """Descriptors that the busiest process of this plan needs. `embedded`: frontend and workers are ours too."""
    arms = len(plan.tests) if plan.mode == "paired" else 1  # that this process speaks to at once
    client = OWN + arms * max(map(_connections, plan.cells))
    if not embedded:
        return client
    workers = max(test.prefill_workers + test.decode_workers for test in plan.tests)
    ranks = max(max(test.prefill_tp, test.decode_tp) for test in plan.tests)
    return max(client + arms * EACH_WORKER * workers, OWN + EACH_RANK * ranks)


def _connections(cell: Cell) -> int:
    """That a cell cannot do without: an open load takes what is left, and says how many that was."""
    return min(cell.concurrency, OPEN_LEAST) if cell.is_open else cell.concurrency


def raise_limit() -> int:
    """Let this process, and those it starts, open as many files as they may. Returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it: then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if soft == resource.RLIM_INFINITY else soft


def refuse_too_few(plan: Plan, may: int, *, embedded: bool) -> None:
    """raises UsageError when the plan needs more than `may`"""
    wanted = needed(plan, embedded=embedded)
    if wanted > may:
        busiest = max(plan.cells, key=_connections)
        raise UsageError(
            f"this plan needs {wanted} open files in one process ({_connections(busiest)} connections in cell "
            f"{busiest.name}), and {may} are allowed, soft and hard limit. Raise the hard limit (ulimit -n {wanted} as "
            "root, LimitNOFILE= of a service, --ulimit nofile= of a container), or lower the concurrency"
        )


def why(error: OSError) -> str:
    """What to say of a connection that could not be made."""
    said = error.strerror or str(error)
    if error.errno != errno.EMFILE:
        return said
    return f"{said}: this process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}; raise its limit (ulimit -n)"
