"""Memory of all processes of a run together, on the machine and on its GPUs. In bytes."""

import os
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

MARK = "FLOWER_EXAMPLES_BENCHMARK"  # in the environment of all processes of a run


class Memory(threading.Thread):
    """Watches what the processes of a run hold together; bytes."""

    def __init__(self, every: float = 1.0) -> None:
        super().__init__(daemon=True)
        self.mark, self.every = uuid.uuid4().hex, every
        os.environ[MARK] = self.mark
        self.peak, self.device_peak, self.most, self.running = 0, 0, 0, True
        self.device_before = device_bytes()

    def __enter__(self) -> "Memory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.join()

    def run(self) -> None:
        while self.running:
            self.look()
            time.sleep(self.every)

    def look(self) -> int:
        """Return what all hold now."""
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


def pss(process: psutil.Process, field: str = "Pss") -> int:
    """Return a field of /proc/<pid>/smaps_rollup, in bytes."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return 0  # it has ended
    return sum(1024 * int(size) for size in re.findall(rf"^{field}:\s+(\d+) kB", text, re.M))


def device_bytes() -> int | None:
    """Return what is taken on all GPUs together, None without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return 2**20 * sum(map(int, done.stdout.split()))
