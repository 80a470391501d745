"""A process that must not outlive the one that started it, whatever becomes of that one."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None) -> None:
    """No process of ours outlives kvgauge, not even one that is stopped, or that kvgauge's death found still starting.

    parent_pid  who started it, as that one says: another parent by now means that it has gone; None: nobody says
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)
