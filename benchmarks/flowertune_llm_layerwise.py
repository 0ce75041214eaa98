"""Memory and speed of aggregating whole models slice by slice, in five parts.

- memory: 2 GB from 2 to 8 clients, slice by slice and all at once.
- published: 5 GB from 4 to 16 clients, beside published figures.
- gpt2-large: GPT-2 large in float32 from 6 clients, beside published figures.
- 70b: all of Llama-3.1-70B's shapes from 2 clients.
- processes: four of its layers between real processes, over TLS.

The weights are made, different ones for each client and chunk; the result is checked and dropped.
The resident memory of every process is sampled five times a second.
"""

import argparse
import os
import re
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import ROOT, SEED, measurement, simulate
from watch import MemoryByKind

from kit.federation import Federation
from kit.settings import as_run_config

APP = ROOT / "examples" / "flowertune-llm"
LLAMA_70B = "synthetic-llama-3.1-70b"
# NVIDIA FLARE's peak GB with all models of 5 GB in memory, and with its disk offload 21: read off
# the chart of its release notes, which state neither hardware nor seconds.
# Source: https://nvflare.readthedocs.io/en/2.8.0/release_notes/flare_280.html
PUBLISHED = {4: 44.5, 8: 62.5, 12: 88.0, 16: 115.0}
# Tensor streaming, as NVIDIA FLARE states it: GPT-2 large, 6 clients, models exchanged and not
# trained, in Docker. Peaks of memory, seconds of a round.
FLARE = {
    "source": "https://github.com/NVIDIA/NVFlare/blob/main/examples/advanced/tensor-stream/COMPARISON.md",
    "version": "2.7.1",
    "hardware": "AWS EC2 r6a.8xlarge, 32 vCPUs, 256 GB",
    "ways": {
        "without tensor streaming": {
            "server": "137.8 GiB, when it crashed after 9 rounds",
            "client": "about 19 GiB",
            "seconds": {"down": 44.1, "up": 79.0, "aggregation": 34.9},
        },
        "with tensor streaming": {
            "server": "about 81.75 GiB",
            "client": "about 9 to 15 GiB",
            "seconds": {"down": 75.7, "up": 57.4, "aggregation": 20.9},
        },
    },
}


def settings(model: str, **changes: object) -> dict[str, Any]:
    return {
        "model.name": model,
        "train.disable": True,
        "strategy.fraction-train": 1.0,
        "aggregation.output": "discard",
    } | changes


def simulated(clients: int, run_config: dict[str, Any]) -> dict[str, Any]:
    """Return time and memory of one aggregation."""
    result: dict[str, Any] = {"clients": clients, "mode": run_config["aggregation.mode"]}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, MemoryByKind() as memory:
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
    return result | {"seconds": time.monotonic() - began} | memory.found()


def show(result: dict[str, Any]) -> None:
    peaks = {kind: round(peak / 2**20) for kind, peak in sorted(result["peak_bytes"].items())}
    idle = result["idle_server_bytes"] / 2**20
    print(f"{result['clients']} clients, {result['mode']}: {peaks} MiB, idle server {idle:.0f} MiB")


def copy_rate() -> dict[str, float]:
    """Return the speed of one core copying 64 MiB into used and into new memory, in MB a second."""
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


def gpt2_large() -> dict[str, Any]:
    changes = {"aggregation.mode": "layerwise"}
    row = simulated(6, settings("synthetic-gpt2-large", **changes))
    show(row)
    return {"row": row, "published": FLARE}


def whole_70b() -> dict[str, Any]:
    rates = copy_rate()
    row = simulated(2, settings(LLAMA_70B, **{"aggregation.mode": "layerwise"}))
    show(row)
    return {"row": row, "copy_mb_a_second": rates}


def processes(slices: Sequence[int]) -> dict[str, Any]:
    return {"rows": [between_processes(megabytes) for megabytes in slices]}


def between_processes(slice_megabytes: int) -> dict[str, Any]:
    """Return time and memory of one aggregation on a SuperLink with two SuperNodes."""
    run_config = settings("synthetic-llama-70b-4-layers", **{"aggregation.mode": "layerwise"})
    run_config |= {"aggregation.slice-megabytes": slice_megabytes}
    with (
        tempfile.TemporaryDirectory() as folder,
        MemoryByKind() as memory,
        Federation(APP, Path(folder), warm=True, database=False, verbose=False) as federation,
    ):
        for partition in range(2):
            federation.start_supernode(partition, 2)
        run_id = federation.run(as_run_config(run_config))
        status = federation.follow(run_id)
        log = federation.log_of_run(run_id).read_text()
    found = re.findall(r"([\d.]+) of ([\d.]+) GB, (\d+) MB/s", log)[-1]
    row = {"clients": 2, "mode": "layerwise", "status": status, "gigabytes": float(found[1])}
    row |= {"mb_a_second": int(found[2]), "slice_megabytes": slice_megabytes} | memory.found()
    show(row)
    return row


SLICES = (128, 256)  # MiB, between processes: each message starts a process
PARTS = {
    "memory": memory,
    "published": published,
    "gpt2-large": gpt2_large,
    "70b": whole_70b,
    "processes": processes,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument(
        "--slices", nargs="+", type=int, default=SLICES, help="between processes: their MiB"
    )
    given = parser.parse_args()
    name = f"flowertune-llm-layerwise-{given.part}"
    if not version("flwr").startswith("1.25."):
        name += "-newest"
    with measurement(name, seeds=(SEED,)) as result:
        result |= processes(given.slices) if given.part == "processes" else PARTS[given.part]()


if __name__ == "__main__":
    main()
