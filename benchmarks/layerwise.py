"""Memory and speed of aggregating whole models slice by slice.

    python benchmarks/layerwise.py memory      2 GB, 2 to 8 clients, slice by slice and all at once
    python benchmarks/layerwise.py published   5 GB, 4 to 16 clients, beside published figures
    python benchmarks/layerwise.py 70b         all of Llama-3.1-70B's shapes from 2 clients
    python benchmarks/layerwise.py processes   four of its layers between real processes, over TLS

The weights are made, other ones for each client and chunk, checked after aggregation and dropped.
The resident memory of every process is sampled five times a second.
"""

import argparse
import os
import re
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
from common import ROOT, SEED, measurement, simulate

sys.path.insert(0, str(ROOT / "tools"))
APP = ROOT / "examples" / "flowertune-llm"
LLAMA_70B = "synthetic-llama-3.1-70b"
# Peak GB of all models held in memory, as NVIDIA FLARE states it for 5 GB; with its disk offload 21
PUBLISHED = {4: 44.5, 8: 62.5, 12: 88.0, 16: 115.0}
KINDS = {  # what a process is, by a word of its command line
    "flwr-serverapp": "server app",
    "flower-supernode": "SuperNode",
    "superlink.py": "SuperLink",
    "flower-superexec": "launcher",
    "warm_clientapp": "client app",
    "flwr-clientapp": "client app",
    "forkserver": "client app",
    "ClientAppActor": "client app",
    "flower-simulation": "server app",
    "raylet": "Ray",
    "gcs_server": "Ray",
}
LEAST_FREE = 2 * 2**30  # a run that leaves less of the machine's memory is ended


class Memory:
    """Samples the resident memory of this process's descendants; keeps each kind's peak."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}  # resident
        self.own: dict[str, int] = {}  # resident and not shared
        self.seconds: dict[str, dict[int, float]] = {}
        self.idle = 0  # the server's own, before the first slice
        self.too_much = False
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def sample(self) -> None:
        while not self.stop.wait(0.2):
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
        # Ray's object store is mapped into all of its processes: resident, and not their own.
        own = memory.rss - memory.shared
        self.own[kind] = max(self.own.get(kind, 0), own)
        times = process.cpu_times()
        self.seconds.setdefault(kind, {})[process.pid] = times.user + times.system

    def report(self) -> dict[str, Any]:
        cpu = {kind: sum(seconds.values()) for kind, seconds in self.seconds.items()}
        peaks = {"peak_bytes": self.peaks, "own_peak_bytes": self.own}
        return peaks | {"cpu_seconds": cpu, "idle_server_bytes": self.idle}


def settings(model: str, **changes: object) -> dict[str, Any]:
    return {
        "model.name": model,
        "train.disable": True,
        "strategy.fraction-train": 1.0,
        "aggregation.output": "discard",
    } | changes


def simulated(clients: int, run_config: dict[str, Any]) -> dict[str, Any]:
    """Return what one aggregation took."""
    result: dict[str, Any] = {"clients": clients, "mode": run_config["aggregation.mode"]}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Memory() as memory:
        try:
            for line in simulate(APP, clients, run_config, Path(folder)):
                if "sampled" in line:
                    memory.idle = memory.own["server app"]
                    started = time.monotonic()
                if "Aggregated" in line or "Round took" in line:
                    print("  ", line.split(":      ")[-1].strip(), flush=True)
                if found := re.search(r"Round took ([\d.]+) s", line):
                    result["round_seconds"] = float(found[1])
                if found := re.search(r"of ([\d.]+) GB, (\d+) MB/s", line):
                    result |= {"gigabytes": float(found[1]), "mb_a_second": int(found[2])}
        except RuntimeError:
            if not memory.too_much:
                raise
        result["too_much"] = memory.too_much
        result["start_seconds"] = started - began
    return result | {"seconds": time.monotonic() - began} | memory.report()


def show(result: dict[str, Any]) -> None:
    peaks = {kind: round(peak / 2**20) for kind, peak in sorted(result["peak_bytes"].items())}
    idle = result["idle_server_bytes"] / 2**20
    print(f"{result['clients']} clients, {result['mode']}: {peaks} MiB, idle server {idle:.0f} MiB")


def copy_rate() -> dict[str, float]:
    """Return how fast one core copies 64 MiB: into used memory, and into new; MB a second."""
    data, used = os.urandom(2**20) * 64, bytearray(64 * 2**20)
    rates = {}
    for name, copy in {
        "into used memory": lambda: used.__setitem__(slice(None), data),
        "into new memory": lambda: bytearray(data),
    }.items():
        copy()
        began = time.perf_counter()
        for _ in range(10):
            copy()
        rates[name] = 10 * len(data) / 1e6 / (time.perf_counter() - began)
    return rates


def memory() -> dict[str, Any]:
    rows = []
    for mode in ("layerwise", "all_at_once"):
        for clients in (2, 4, 8):
            rows.append(simulated(clients, settings("synthetic-2gb", **{"aggregation.mode": mode})))
            show(rows[-1])
    return {"rows": rows}


def published() -> dict[str, Any]:
    rows = []
    for clients in PUBLISHED:
        changes = {"aggregation.mode": "layerwise"}
        rows.append(simulated(clients, settings("synthetic-5gb", **changes)))
        show(rows[-1])
    return {"rows": rows, "published_gigabytes": PUBLISHED}


def whole_70b() -> dict[str, Any]:
    rates = copy_rate()
    row = simulated(2, settings(LLAMA_70B, **{"aggregation.mode": "layerwise"}))
    show(row)
    return {"row": row, "copy_mb_a_second": rates}


def processes() -> dict[str, Any]:
    """Aggregate on a SuperLink with two SuperNodes."""
    from federation import Federation

    run_config = settings("synthetic-llama-70b-4-layers", **{"aggregation.mode": "layerwise"})
    run_config |= {"aggregation.slice-megabytes": SLICE}
    words = " ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else repr(value)}"
        for key, value in run_config.items()
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory() as memory,
        Federation(APP, Path(folder), warm=True, database=False, verbose=False) as federation,
    ):
        for partition in range(2):
            federation.start_supernode(partition, 2)
        status = federation.follow(federation.run(words))
        log = (Path(folder) / "logs" / "superlink.log").read_text()
    found = re.findall(r"([\d.]+) of ([\d.]+) GB, (\d+) MB/s", log)[-1]
    row = {"clients": 2, "mode": "layerwise", "status": status, "gigabytes": float(found[1])}
    row |= {"mb_a_second": int(found[2]), "slice_megabytes": SLICE} | memory.report()
    show(row)
    return {"row": row}


SLICE = 128  # MiB, between processes: each message starts a process
PARTS = {"memory": memory, "published": published, "70b": whole_70b, "processes": processes}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    part = parser.parse_args().part
    with measurement(f"layerwise-{part}", seeds=(SEED,)) as result:
        result |= PARTS[part]()


if __name__ == "__main__":
    main()
