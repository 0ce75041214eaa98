# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Processes: starting none that outlives its parent, finding and ending them, counting cores."""

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
    """Make this process end when its parent ends, even if the parent is killed."""
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
    """Kill all descendants of this process.

    All are stopped first, so that none can start another, or react to another's end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become its children
    stopped: set[int] = set()
    while new := {pid for pid in descendants() if pid not in stopped and send(pid, signal.SIGSTOP)}:
        stopped |= new
    for pid in stopped:
        send(pid, signal.SIGKILL)


def send(pid: int, number: int) -> bool:
    """Send a signal to a process; tell whether it was there."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def descendants(of: int | None = None) -> list[int]:
    """Return the ids of all descendants of a process, by default this one."""
    children: dict[int, list[int]] = {}
    ended = set()
    for pid, parent, state in processes():
        children.setdefault(parent, []).append(pid)
        if state in "ZX":  # a zombie, which may still have children
            ended.add(pid)
    found = [of or os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return [pid for pid in found[1:] if pid not in ended]


def running(pids: Collection[int]) -> list[int]:
    """Return the processes among `pids` that have not ended."""
    return [pid for pid, _, state in processes() if pid in pids and state not in "ZX"]


def processes() -> Iterator[tuple[int, int, str]]:
    """Yield each process of this machine, its parent, and a letter for its state."""
    if sys.platform == "linux":  # a container may lack ps
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
    """Return the words of a process's command; an empty list if they cannot be read."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    with suppress(OSError):
        command = ["ps", "-o", "command=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True).stdout.split()
    return []


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
