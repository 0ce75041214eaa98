# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Processes: how many a machine has room for, and that none outlives the one that started it."""

import ctypes
import os
import signal
import sys
import threading
import time


def end_with_parent(parent: int) -> None:
    """End this process as soon as its parent has ended, even if that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os._exit(1)
    else:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()


def watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
