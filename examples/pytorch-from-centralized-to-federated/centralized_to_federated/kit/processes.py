# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Processes: how many a machine has room for, and that none outlives the one that started it."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path


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


def kill_descendants() -> None:
    """Kill all that this process has started, what those have started, and so on.

    All are stopped first, so that none can start another, or react to the end of one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become its children
    stopped: set[int] = set()
    while new := {pid for pid in descendants() if pid not in stopped and send(pid, signal.SIGSTOP)}:
        stopped |= new
    for pid in stopped:
        send(pid, signal.SIGKILL)


def send(pid: int, number: int) -> bool:
    """Send a signal to a process; say whether it was there."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def descendants(of: int | None = None) -> list[int]:
    """Return what a process, by default this one, has started, what that has, and so on."""
    children: dict[int, list[int]] = {}
    ended = set()
    for pid, parent, state in processes():
        children.setdefault(parent, []).append(pid)
        if state in "ZX":  # a zombie, which may still be the parent of others
            ended.add(pid)
    found = [of or os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return [pid for pid in found[1:] if pid not in ended]


def running(pids: Collection[int]) -> list[int]:
    """Return those of some processes that have not ended."""
    return [pid for pid, _, state in processes() if pid in pids and state not in "ZX"]


def processes() -> Iterator[tuple[int, int, str]]:
    """Yield each process of this machine, its parent, and a letter for its state."""
    if sys.platform == "linux":  # where a container may have no ps
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
                yield int(path.parent.name), int(parent), state
        return
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        pid, parent, state = line.split()[:3]
        yield int(pid), int(parent), state[0]


def command_of(pid: int) -> list[str]:
    """Return the words of the command that a process runs; none if it cannot be seen."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    with suppress(OSError):
        command = ["ps", "-o", "command=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True).stdout.split()
    return []


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
