"""Memory of the device in bytes: free, taken by a step, and the number of workers that fit."""

import ctypes
import os
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

GIB, MIB = 2**30, 2**20
LIBC = ctypes.CDLL(None)


class Room(NamedTuple):
    """The device before the first worker."""

    free: int
    total: int
    context: int  # what a process takes on the device before it has anything there; 0 on the CPU


class Usage(NamedTuple):
    """Memory that a worker found after a step."""

    peak: int  # at its peak: PyTorch's on CUDA, the process's on the CPU
    now: int
    free: int  # of the whole device
    short: bool  # the step ran out of memory


@dataclass
class Sizing:
    """Works out how many workers the device has room for.

    Args:
        room: the device before any worker was there.
        share: of the free memory, for all workers together.
        cores: the most workers that make sense.
        by_hand: this many workers, whatever there is room for; 0 to work it out.
    """

    room: Room
    share: float
    cores: int
    by_hand: int = 0
    footprint: int = 0  # of one worker, at its peak; 0 before the first step has ended

    def __post_init__(self) -> None:
        self.overhead = self.room.context  # of a worker, beside what PyTorch counts

    @property
    def workers(self) -> int:
        """One until the first step has shown what it takes."""
        if self.by_hand or not self.footprint:
            return self.by_hand or 1
        return max(1, min(self.cores, int(self.room.free * self.share / self.footprint)))

    @property
    def share_of_each(self) -> int:
        return int(self.room.free * self.share / self.workers)

    @property
    def fraction(self) -> float | None:
        """The share of device memory that PyTorch may take in one worker."""
        if not self.room.context:
            return None
        return min(1.0, max(0.001, (self.share_of_each - self.overhead) / self.room.total))

    @property
    def note(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        taken, free = self.footprint / MIB, self.room.free / GIB
        return f"{workers}, each takes up to {taken:.0f} MiB of {free:.1f} GiB that were free"

    def learn(self, usage: Usage, alone: bool) -> None:
        """Take a worker's report into account; if it was alone, all that is gone is its own."""
        if self.room.context and alone:
            self.overhead = max(self.overhead, self.room.free - usage.free - usage.now)
        taken, share = self.overhead + usage.peak, self.share_of_each
        if usage.short and taken > share / 2:  # not a step that asked for more than the device has
            taken = int(1.5 * share)  # more for each, so fewer
        self.footprint = max(self.footprint, taken)


def limit(fraction: float | None) -> None:
    """Hold PyTorch in this process to a fraction of the device memory."""
    if fraction is not None:
        import torch

        torch.cuda.set_per_process_memory_fraction(fraction)


def give_back() -> None:
    """Return freed memory to the system; glibc would keep much of it."""
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)


def usage(error: Exception | None) -> Usage:
    """Return the memory that a step of this process took, with its error if it had one."""
    short = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        free, _ = torch.cuda.mem_get_info()
        peak, now = torch.cuda.max_memory_reserved(), torch.cuda.memory_reserved()
        return Usage(peak, now, free, short)
    now = own_memory()
    return Usage(now + since_peak(), now, cpu_free(), short)


def show_cuda(connection: Connection) -> None:
    """Send free and total memory of the device; stay until hung up."""
    import torch

    connection.send(torch.cuda.mem_get_info() if torch.cuda.is_available() else None)
    connection.poll(None)


def cpu_room() -> Room:
    return Room(cpu_free(), cpu_total(), 0)


def cpu_total() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cpu_free() -> int:
    """Return the memory that may still be taken, of the machine or of the container."""
    meminfo = fields(Path("/proc/meminfo"))
    free = [meminfo.get("MemAvailable", cpu_total())]
    group = Path("/sys/fs/cgroup")
    for most, taken in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (group / most).is_file() and (text := (group / most).read_text().strip()) != "max":
            free.append(int(text) - int((group / taken).read_text()))
    return max(0, min(free))


def own_memory() -> int:
    """Return the memory that this process shares with no other."""
    found = fields(Path("/proc/self/smaps_rollup"))
    return found.get("Private_Clean", 0) + found.get("Private_Dirty", 0)


def since_peak() -> int:
    """Return how much more this process has held at its peak."""
    found = fields(Path("/proc/self/status"))
    return found.get("VmHWM", 0) - found.get("VmRSS", 0)


def fields(path: Path) -> dict[str, int]:
    """Read lines like `VmRSS: 1024 kB`; nothing where Linux's /proc is missing."""
    if not path.is_file():
        return {}
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
