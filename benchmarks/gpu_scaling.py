"""Memory and speed of gpu-scaling, from 2 to 1,000 clients, with each executor.

Memory is what all processes of a run hold together: PSS, in which a page that several share counts
once; on a machine with a GPU the memory of the device, too. Each part writes a file of its own to
results/, so that parts can be taken one by one:

- executors: steps a second of each executor alone, without Flower; the same step, one client.
- workers: what each further worker of the pool holds for itself.
- simulation: for each executor and number of clients, start-up, seconds a round, memory; each
  client has as many images whatever their number.
- rounds: memory round by round, over many rounds, with the pool.
- thousand: 1,000 clients, 100 sampled a round.
- supernodes: real SuperNode processes by run.sh, started one after the other.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from common import ROOT, SEED, default_dataset, measurement, simulate
from watch import Memory, pss

from kit.settings import as_run_config

APP = ROOT / "examples" / "gpu-scaling"
CLIENTS = (2, 10, 50, 100, 300)
EXECUTORS = ("inline", "pool", "spawn")
SAMPLED, SAMPLED_SPAWN = 100, 10  # clients of a round, at most: a spawned step takes seconds
ROUNDS, ROUNDS_SPAWN = 6, 2
IMAGES, TEST_IMAGES = 33, 2000  # of each client, as of 10,000 in 300 parts; of all together


def run_simulation(clients: int, run_config: dict[str, Any]) -> dict[str, Any]:
    """Return start-up and seconds a round of a simulation, and its memory, peak and by round."""
    start, seconds, by_round, began = None, [], [], time.monotonic()
    with Memory() as memory, tempfile.TemporaryDirectory() as folder:
        for line in simulate(APP, clients, run_config, Path(folder)):
            if start is None and "[ROUND 1/" in line:
                start = time.monotonic() - began
            if match := re.search(r"Round took ([\d.]+) s", line):
                seconds.append(float(match[1]))
                by_round.append(memory.look())
    return {
        "start_seconds": start,
        "total_seconds": time.monotonic() - began,
        "round_seconds": seconds,
        "round_bytes": by_round,
    } | memory.found()


def simulation(dataset: str, executors: list[str], sizes: list[int]) -> dict[str, Any]:
    runs = []
    for clients in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_part(dataset, clients * IMAGES, Path(folder))
            for executor in executors:
                spawn = executor == "spawn"
                sampled = min(clients, SAMPLED_SPAWN if spawn else SAMPLED)
                config = {"dataset": folder, "cache-dir": f"{folder}-cache", "executor": executor}
                config |= {"clients-to-train": sampled, "clients-to-evaluate": 0}
                config |= {"num-server-rounds": ROUNDS_SPAWN if spawn else ROUNDS}
                found = run_simulation(clients, config)
                later = statistics.median(found["round_seconds"][1:])
                found |= {"executor": executor, "clients": clients, "sampled": sampled}
                found |= {"steps_a_second": sampled / later}
                runs.append(found)
                print(f"{executor}, {clients} clients: {shown(found)}", flush=True)
            shutil.rmtree(f"{folder}-cache")
    return {"runs": runs, "images": IMAGES, "test_images": TEST_IMAGES}


def write_part(dataset: str, images: int, folder: Path) -> None:
    """Write so many training images of a dataset, and TEST_IMAGES others, as a dataset."""
    from gpu_scaling.kit.images import load_images

    for split, count in (("train", images), ("test", TEST_IMAGES)):
        data = load_images(dataset, split, 32, 3).shuffle(seed=SEED).select(range(count))
        data.to_parquet(folder / f"{split}.parquet")


def shown(found: dict[str, Any]) -> str:
    speed = f"{found['steps_a_second']:.1f} steps/s, " if "steps_a_second" in found else ""
    return (
        f"{speed}start {found['start_seconds']:.0f} s, peak {found['peak_bytes'] / 2**30:.2f} GiB"
    )


def rounds(base: dict[str, Any], clients: int, count: int) -> dict[str, Any]:
    config = base | {"clients-to-train": 20, "clients-to-evaluate": 0, "num-server-rounds": count}
    found = run_simulation(clients, config) | {"clients": clients}
    print(f"{count} rounds: {shown(found)}; {[b >> 20 for b in found['round_bytes']]} MiB")
    return found


def thousand(base: dict[str, Any]) -> dict[str, Any]:
    config = base | {"clients-to-train": 100, "clients-to-evaluate": 100, "num-server-rounds": 3}
    found = run_simulation(1000, config) | {"clients": 1000, "sampled": 100}
    print(f"1000 clients: {shown(found)}; rounds {found['round_seconds']} s")
    return found


def supernodes(base: dict[str, Any], count: int) -> dict[str, Any]:
    """Start SuperNodes by run.sh, ten of them sampled in each of two rounds; weigh each kind."""
    sampled, began = min(10, count), time.monotonic()
    words = [str(n) for n in (count, count, sampled, 2)]
    found: dict[str, Any] = {"supernodes": count, "sampled": sampled, "round_seconds": []}
    with Memory(every=3.0) as memory, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [APP / "run.sh", *words, "--run-config", as_run_config(base)],
            cwd=folder,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = []
        for line in process.stdout:
            lines.append(line)
            if f"SuperNodes: {count} of {count} connected" in line and "start_seconds" not in found:
                found["start_seconds"] = time.monotonic() - began
                time.sleep(5)
                found |= weigh(list(memory.processes()))
            if match := re.search(r"Round took ([\d.]+) s", line):
                found["round_seconds"].append(float(match[1]))
        found["completed"] = process.wait() == 0
    found |= {"total_seconds": time.monotonic() - began} | memory.found()
    print(f"{count} SuperNodes: {found}")
    if not found["completed"]:
        found["log"] = lines[-20:]
        print("".join(lines[-20:]))
    return found


def weigh(processes: list[psutil.Process]) -> dict[str, Any]:
    """Return the PSS of each kind of process, and what a SuperNode and its SuperExec take."""
    kinds: dict[str, list[int]] = {"supernode.py": [], "flower-superexec": [], "others": []}
    for process in processes:
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue  # it has ended
        command = command.replace("flower-supernode", "supernode.py")  # the newest release's
        kind = next((name for name in kinds if name in command), "others")
        kinds[kind].append(pss(process))
    each = sum(sum(kinds[kind]) for kind in ("supernode.py", "flower-superexec"))
    return {
        "bytes": {kind: sum(sizes) for kind, sizes in kinds.items()},
        "supernode_bytes": each // max(1, len(kinds["supernode.py"])),
    }


def executors(base: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Return the steps a second of each executor, without Flower and Ray.

    In short turns, so that a machine that is slower for a while is so for all of them.
    """
    from gpu_scaling import steps
    from gpu_scaling.dataset import Source
    from gpu_scaling.executors import Inline, Options, Pool, Spawn

    source = Source(base["dataset"], 300, "iid", 0.5, 2, 42).prepare()
    pool = Pool(uuid.uuid4().hex[:8], Options(workers=1, recycle_after=10**6), os.getpid())
    weights = pool.run(steps.initial, source.num_classes, 42)
    settings = steps.Training(1, 16, 0.05, 0.9, threads=1)
    speeds: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for name, executor, count in (
            ("inline", Inline(), 25),
            ("pool", pool, 25),
            ("spawn", Spawn(), 1),
        ):
            began = time.perf_counter()
            for client in range(count):
                executor.run(steps.train, weights, source, client, settings, client)
            if repeat:  # the first warms up
                speed = count / (time.perf_counter() - began)
                speeds.setdefault(name, []).append(speed)
                print(f"{name}: {speed:.2f} steps a second", flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    count = statistics.mean(len(source.load("train", i).labels) for i in range(300))
    return {
        "images": count,
        "steps_a_second": medians,
        "each": speeds,
        "pool_over_spawn": medians["pool"] / medians["spawn"],
        "inline_over_pool": statistics.median(
            inline / pooled for inline, pooled in zip(speeds["inline"], speeds["pool"], strict=True)
        ),
    }


def workers(base: dict[str, Any], most: int) -> dict[str, Any]:
    """Return what a pool holds with 1 to `most` workers, each after ten steps, on the CPU."""
    from concurrent.futures import ThreadPoolExecutor

    from gpu_scaling import steps
    from gpu_scaling.dataset import Source
    from gpu_scaling.executors import Options, Pool

    source = Source(base["dataset"], 300, "iid", 0.5, 2, 42).prepare()
    settings = steps.Training(1, 16, 0.05, 0.9, threads=1)
    runs = []
    for count in [2**n for n in range(most.bit_length()) if 2**n <= most]:
        pool = Pool(uuid.uuid4().hex[:8], Options(workers=count), os.getpid())
        weights = pool.run(steps.initial, source.num_classes, 42)
        jobs = [(steps.train, weights, source, i, settings, i) for i in range(10 * count)]
        with ThreadPoolExecutor(2 * count) as clients:
            for job in [clients.submit(pool.run, *job) for job in jobs]:
                job.result()
        server = psutil.Process(pool.run(os.getppid))
        forks = server.children()
        own = [pss(fork, "Private_(?:Clean|Dirty)") for fork in forks]
        runs.append(
            {
                "workers": len(forks),
                "pool_bytes": sum(map(pss, [server, *forks])),
                "own_bytes": statistics.mean(own),
                "replaced_seconds": replaced(pool),
            }
        )
        print(runs[-1], flush=True)
        server.kill()
    first, last = runs[0], runs[-1]
    further = (last["pool_bytes"] - first["pool_bytes"]) / (last["workers"] - first["workers"])
    return {"runs": runs, "further_worker_bytes": further}


def replaced(pool: Any) -> float:
    """Return the seconds from the death of a worker to the answer of a fresh one."""
    os.kill(pool.run(os.getpid), 9)
    began = time.perf_counter()
    pool.run(os.getpid)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default=default_dataset("cifar10", "uoft-cs/cifar10"))
    parser.add_argument("--parts", nargs="+", metavar="PART", help="some of them; all by default")
    parser.add_argument("--executors", nargs="+", default=EXECUTORS, choices=EXECUTORS)
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS, help="of simulation")
    parser.add_argument("--rounds", type=int, default=50, help="of the part of that name")
    parser.add_argument("--supernodes", type=int, default=50)
    parser.add_argument("--workers", type=int, default=8, help="at most, of the part of that name")
    given = parser.parse_args()
    base = {"dataset": given.dataset}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "executors": lambda: executors(base, repeats=15),
        "workers": lambda: workers(base, given.workers),
        "simulation": lambda: simulation(given.dataset, given.executors, given.clients),
        "rounds": lambda: rounds(base, clients=100, count=given.rounds),
        "thousand": lambda: thousand(base),
        "supernodes": lambda: supernodes(base, given.supernodes),
    }
    for name in given.parts or parts:
        if name not in parts:
            parser.error(f"--parts {name}: no such part; there are {', '.join(parts)}")
        with measurement(f"gpu-scaling-{name}", seeds=(SEED,)) as result:
            result |= parts[name]()


if __name__ == "__main__":
    main()
