"""Memory of the processes of a run, sampled regularly. In bytes."""

import os
import re
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

MARK = "FLOWER_EXAMPLES_BENCHMARK"  # in the environment of all processes of a run
KINDS = {  # of processes, by a word of the command line
    "flwr-serverapp": "server app",
    "warm_clientapp": "client app",
    "flwr-clientapp": "client app",
    "flower-superexec": "launcher",
    "supernode.py": "SuperNode",
    "flower-supernode": "SuperNode",
    "superlink.py": "SuperLink",
    "flower-superlink": "SuperLink",
    "forkserver": "client app",
    "ClientAppActor": "client app",
    "flower-simulation": "server app",
    "raylet": "Ray",
    "gcs_server": "Ray",
}
LEAST_FREE = 2 * 2**30  # a run that leaves less of the machine's memory free is ended


class Watch(threading.Thread):
    """A thread that calls `look` regularly while the body of a `with` statement runs.

    Args:
        every: seconds between two calls.
    """

    def __init__(self, every: float) -> None:
        super().__init__(daemon=True)
        self.every, self.ended = every, threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        while not self.ended.is_set():
            self.look()
            self.ended.wait(self.every)

    def look(self) -> Any:
        raise NotImplementedError


class Memory(Watch):
    """Memory of all processes of a run together (PSS), and on the GPUs."""

    def __init__(self, every: float = 1.0) -> None:
        super().__init__(every)
        self.mark = uuid.uuid4().hex
        os.environ[MARK] = self.mark
        self.peak, self.device_peak, self.most = 0, 0, 0
        self.device_before = device_bytes()

    def look(self) -> int:
        """Return the memory of all processes now."""
        held = [pss(process) for process in self.processes()]
        self.peak, self.most = max(self.peak, sum(held)), max(self.most, len(held))
        if self.device_before is not None:
            self.device_peak = max(self.device_peak, device_bytes() - self.device_before)
        return sum(held)

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(MARK) == self.mark
            except psutil.Error:
                continue  # it has ended
            if marked and process.pid != os.getpid():
                yield process

    def found(self) -> dict[str, Any]:
        found = {"peak_bytes": self.peak, "processes": self.most}
        return found | ({} if self.device_before is None else {"device_bytes": self.device_peak})


class ClientMemory(Watch):
    """Peak memory of one client process of a simulation (PSS)."""

    def __init__(self) -> None:
        super().__init__(every=0.3)
        self.peak = 0

    def look(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            if " ".join(process.info["cmdline"] or []).startswith("ray::ClientAppActor"):
                with suppress(psutil.Error):  # it has ended
                    self.peak = max(self.peak, process.memory_full_info().pss)


class MemoryByKind(Watch):
    """Peak resident memory of one process of each kind, among this process's descendants."""

    def __init__(self) -> None:
        super().__init__(every=0.2)
        self.peaks: dict[str, int] = {}  # resident
        self.own: dict[str, int] = {}  # resident and not shared
        self.seconds: dict[str, dict[int, float]] = {}
        self.idle = 0  # the server's own, before the first slice
        self.too_much = False

    def look(self) -> None:
        processes = psutil.Process().children(recursive=True)
        for process in processes:
            with suppress(psutil.Error):
                self.note(process)
        if psutil.virtual_memory().available < LEAST_FREE:
            self.too_much = True
            for process in processes:
                with suppress(psutil.Error):
                    process.kill()

    def note(self, process: psutil.Process) -> None:
        line = " ".join(process.cmdline())
        kind = next((kind for word, kind in KINDS.items() if word in line), "other")
        memory = process.memory_info()
        self.peaks[kind] = max(self.peaks.get(kind, 0), memory.rss)
        # Ray's object store is mapped into all its processes: resident, but not their own.
        own = memory.rss - memory.shared
        self.own[kind] = max(self.own.get(kind, 0), own)
        times = process.cpu_times()
        self.seconds.setdefault(kind, {})[process.pid] = times.user + times.system

    def found(self) -> dict[str, Any]:
        cpu = {kind: sum(seconds.values()) for kind, seconds in self.seconds.items()}
        peaks = {"peak_bytes": self.peaks, "own_peak_bytes": self.own}
        return peaks | {"cpu_seconds": cpu, "idle_server_bytes": self.idle}


def pss(process: psutil.Process, field: str = "Pss") -> int:
    """Return a field of /proc/<pid>/smaps_rollup, in bytes."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return 0  # it has ended
    return sum(1024 * int(size) for size in re.findall(rf"^{field}:\s+(\d+) kB", text, re.M))


def device_bytes() -> int | None:
    """Return the memory in use on all GPUs together; None without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return 2**20 * sum(map(int, done.stdout.split()))
