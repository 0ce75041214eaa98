"""200 clients' steps through the pool of gpu-scaling on one CUDA device, with 1 to 16 workers.

Without Ray, data or a Hub: random images in place of real ones. For each number of workers, steps
a second and the most device memory taken, contexts included; and how many workers the pool works
out by itself. Writes results/gpu-scaling-gpu.json; without a CUDA device it says so and ends well.
`--on-cpu` runs the same code small on the CPU, to try it, and writes nothing.
"""

import argparse
import os
import signal
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SEED, in_words, measurement
from gpu_scaling import steps
from gpu_scaling.dataset import SPLITS, Source
from gpu_scaling.executors import Inline, Options, Pool, Spawn

CLIENTS, WORKERS, IMAGES = 200, (1, 2, 4, 8, 16), 200
SETTINGS = steps.Training(epochs=1, batch_size=32, learning_rate=0.05, momentum=0.9, threads=1)


class DeviceMemory(threading.Thread):
    """Watches how much of the device the others take; this process is there from before."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.running = 0, True
        self.before = free_bytes()

    def __enter__(self) -> "DeviceMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.join()

    def run(self) -> None:
        while self.running:
            self.peak = max(self.peak, self.before - free_bytes())
            time.sleep(0.02)


def free_bytes() -> int:
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


def random_data(folder: str, clients: int, images: int) -> Source:
    """Write random images where the data of so many clients would be."""
    source = Source("random", clients, "iid", 0.5, 2, 0, folder)
    rng, count = np.random.default_rng(SEED), clients * images
    source.rows.mkdir(parents=True)
    (source.images / "classes.json").write_text("10")
    for split in SPLITS:
        pixels = rng.integers(256, size=(count, 3, 32, 32), dtype=np.uint8)
        np.save(source.images / f"{split}-images.npy", pixels)
        np.save(source.images / f"{split}-labels.npy", rng.integers(10, size=count))
        np.save(source.rows / f"{split}-rows.npy", np.arange(count))
        np.save(source.rows / f"{split}-ends.npy", np.arange(1, clients + 1) * images)
    return source


def measure(source: Source, workers: int) -> dict[str, Any]:
    """Have every client trained once; return steps a second, and the most memory taken."""
    with DeviceMemory() as memory, ThreadPoolExecutor(32) as clients:
        pool = Pool(uuid.uuid4().hex[:8], Options(workers, recycle_after=10**6), os.getpid())
        weights = pool.run(steps.initial, source.num_classes, 42)
        jobs = [
            (steps.train, weights, source, i, SETTINGS, i) for i in range(source.num_partitions)
        ]
        for part in (jobs[: len(jobs) // 4], jobs):  # the first quarter starts the workers
            began = time.perf_counter()
            results = [job.result() for job in [clients.submit(pool.run, *job) for job in part]]
        seconds = time.perf_counter() - began
    assert all(np.isfinite(loss) for _, loss, _ in results)
    server = pool.run(os.getppid)
    os.kill(server, signal.SIGKILL)
    wait_for_the_end(server)
    return {
        "workers": workers or "worked out",
        "steps_a_second": len(jobs) / seconds,
        "peak_bytes": memory.peak,
        "note": pool.note,
    }


def wait_for_the_end(server: int) -> None:
    """Wait until a pool has given its memory back."""
    while Path(f"/proc/{server}").exists() and "Z" not in status(server):
        time.sleep(0.1)
    time.sleep(2)


def status(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def others(source: Source, count: int) -> list[dict[str, Any]]:
    """Return steps a second of the other executors, one client at a time."""
    found = []
    for name, executor, many in (("inline", Inline(), count), ("spawn", Spawn(), min(count, 5))):
        weights = Inline().run(steps.initial, source.num_classes, 42)
        executor.run(steps.train, weights, source, 0, SETTINGS, 0)  # warms up
        began = time.perf_counter()
        for client in range(many):
            executor.run(steps.train, weights, source, client, SETTINGS, client)
        found.append({"executor": name, "steps_a_second": many / (time.perf_counter() - began)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on-cpu", action="store_true", help="try the script; writes nothing")
    on_cpu = parser.parse_args().on_cpu
    small = not torch.cuda.is_available()
    if small and not on_cpu:
        print(f"skipped: no CUDA device for PyTorch {torch.__version__} here; --on-cpu to try")
        return
    clients, images, sizes = (8, 8, (1, 2)) if small else (CLIENTS, IMAGES, WORKERS)
    with measurement("gpu-scaling-gpu", seeds=(SEED,), trial=small) as result:
        with tempfile.TemporaryDirectory() as folder:
            source = random_data(folder, clients, images)
            rows = [measure(source, workers) for workers in (*sizes, 0)]
            lines = rows if small else rows + others(source, clients)
        for line in lines:
            print(in_words(line))
        result |= {"clients": clients, "images": images, "batch": SETTINGS.batch_size}
        result |= {"rows": rows, "others": lines[len(rows) :]}


if __name__ == "__main__":
    main()
