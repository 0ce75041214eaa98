"""Processes that end together with the one that started them."""

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
