"""What a round of a population costs: by its size, by who is asked, and a model of the cost.

- sizes: gpu-scaling with 1,000, 100,000 and 1,000,000 clients, 100 drawn: start-up, seconds a
  round, memory.
- nodes: gpu-scaling with 1,000 nodes that are clients: the first round and the others.
- parts: where the time of a round of 100,000 clients goes: in one process, which can be timed from
  inside, and with workers.
- cost: rounds of an app whose clients take as long, and send as much, as they are told. A model of
  the seconds is fitted to some of them and compared with the others, and with gpu-scaling's own.
"""

import argparse
import functools
import itertools
import json
import os
import pkgutil
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import ONE_CPU, ROOT, SEED, default_dataset, measurement, simulate
from flwr.common.config import parse_config_args
from plan import terms
from watch import Memory

from kit.settings import as_run_config

# What a round is made of: functions by the modules that call them.
TIMED = {
    "training": ("gpu_scaling.task", "train"),
    "testing": ("gpu_scaling.task", "evaluate"),
    "data of a client": ("gpu_scaling.dataset.Source", "load"),
    "a network for each message": ("gpu_scaling.task", "build"),
    "checks of replies": ("gpu_scaling.kit.loop", "problems"),
    "averaging": ("flwr.serverapp.strategy.FedAvgM", "aggregate_train"),
    "saving": ("gpu_scaling.kit.run.Run", "save"),
}
GPU_SCALING, COST_APP = ROOT / "examples" / "gpu-scaling", ROOT / "benchmarks" / "cost_app"
SIZES, DRAWN, WORKERS, IMAGES, ROUNDS = (1_000, 100_000, 1_000_000), 100, 2, 33, 8


class Case(NamedTuple):
    """A round: workers, clients drawn, MB of the model, seconds of training."""

    workers: int
    drawn: int
    megabytes: float
    seconds: float


FITTED = [Case(*case) for case in itertools.product((1, 2), (20, 100), (0.5, 4.0), (0.002, 0.02))]
OTHERS = [Case(2, 50, 2.0, 0.01), Case(1, 40, 1.0, 0.005), Case(2, 200, 0.5, 0.005)]
OTHERS += [Case(2, 20, 16.0, 0.01), Case(2, 400, 1.0, 0.002)]


def run(app: Path, nodes: int, config: dict[str, Any], backend: str = ONE_CPU) -> dict[str, Any]:
    """Return start-up, seconds of each round, and memory of a simulation."""
    start, seconds, began = None, [], time.monotonic()
    with Memory() as memory, tempfile.TemporaryDirectory() as folder:
        for line in simulate(app, nodes, config, Path(folder), backend):
            if start is None and "[ROUND 1/" in line:
                start = time.monotonic() - began
            if match := re.search(r"Round took ([\d.]+) s", line):
                seconds.append(float(match[1]))
    return {"start_seconds": start, "round_seconds": seconds} | memory.found()


def settings(dataset: str, changes: dict[str, Any]) -> dict[str, Any]:
    config = {"dataset": dataset, "executor": "inline", "num-server-rounds": ROUNDS}
    config |= {"examples-per-client": IMAGES, "clients-to-evaluate": 0, "min-clients": 1}
    return config | {"clients-to-train": DRAWN} | {k.replace("_", "-"): changes[k] for k in changes}


def of_gpu_scaling(dataset: str, nodes: int, **changes: Any) -> dict[str, Any]:
    return run(GPU_SCALING, nodes, settings(dataset, changes))


def sizes(dataset: str) -> dict[str, Any]:
    runs = {}
    of_gpu_scaling(dataset, WORKERS, population=SIZES[0], num_server_rounds=1)  # decodes the images
    for size in SIZES:
        runs[str(size)] = of_gpu_scaling(dataset, WORKERS, population=size)
        print(f"{size} clients: {runs[str(size)]}", flush=True)
    return {"drawn": DRAWN, "workers": WORKERS, "images": IMAGES, "runs": runs}


def nodes(dataset: str) -> dict[str, Any]:
    found = of_gpu_scaling(dataset, 1000)
    print(f"1000 nodes: {found}", flush=True)
    return {"nodes": 1000, "drawn": DRAWN} | found


def parts(dataset: str) -> dict[str, Any]:
    """Return the seconds that parts of a round take, and those of the whole with workers."""
    changes = {"population": SIZES[1], "clients_to_evaluate": DRAWN}
    workers = of_gpu_scaling(dataset, WORKERS, **changes)["round_seconds"]
    config = as_run_config(settings(dataset, changes))
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "in-process", "--config", config]
        done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    found = {"drawn": DRAWN, "images": IMAGES, "workers": WORKERS}
    found |= json.loads(done.stdout.splitlines()[-1]) | {
        "seconds_with_workers": statistics.median(workers[1:])
    }
    print(found)
    return found


def in_process(config: str) -> dict[str, Any]:
    """Run gpu-scaling in this process; return the seconds of a round, and those of its parts."""
    sys.path.insert(0, str(GPU_SCALING))
    from gpu_scaling.kit.in_process import run_app
    from gpu_scaling.kit.loop import Loop

    seconds, rounds = defaultdict(float), []
    for part, (place, name) in TIMED.items():
        module = pkgutil.resolve_name(place)
        setattr(module, name, timed(getattr(module, name), part, seconds))
    end_round = Loop.end_round

    def marked(loop: Loop, *args: Any) -> None:
        end_round(loop, *args)
        rounds.append((time.perf_counter(), dict(seconds)))

    Loop.end_round = marked
    run_app(GPU_SCALING, 1, parse_config_args([config]))
    # From the end of the first round on: the first imports and decodes.
    (began, before), (ended, after), count = rounds[1], rounds[-1], len(rounds) - 2
    of_round = {part: (after[part] - before.get(part, 0.0)) / count for part in after}
    return {"seconds": (ended - began) / count, "parts": of_round}


def timed(function: Callable, part: str, seconds: dict[str, float]) -> Callable:
    """Return a function that adds the time it takes to its part's seconds."""

    @functools.wraps(function)
    def wrapper(*args: Any, **given: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **given)
        finally:
            seconds[part] += time.perf_counter() - began

    return wrapper


def seconds_of(case: Case) -> float:
    """Return the seconds of a case's rounds, the median without the first.

    Ray starts as many workers as the cores allow, however few the nodes: each takes its share.
    """
    cores = len(os.sched_getaffinity(0)) // case.workers
    backend = ONE_CPU.replace('"num_cpus": 1', f'"num_cpus": {cores}')
    config = {"population": 10_000, "clients-to-train": case.drawn}
    config |= {"megabytes": case.megabytes, "train-seconds": case.seconds}
    taken = statistics.median(run(COST_APP, case.workers, config, backend)["round_seconds"][1:])
    print(f"{case}: {taken:.3f} s", flush=True)
    return taken


TERMS = ["round", "client of a worker", "MB of a client of a worker", "MB of a client"]


def of(case: Case) -> np.ndarray:
    """Return the terms of the model of the cost."""
    return np.array(terms(case.drawn, case.workers, case.megabytes))


def training(case: Case) -> float:
    return case.drawn * case.seconds / case.workers


def cost(dataset: str) -> dict[str, Any]:
    taken = {case: seconds_of(case) for case in FITTED + OTHERS}
    left = np.array([taken[case] - training(case) for case in FITTED])
    weights = 1 / np.array([taken[case] for case in FITTED])  # what counts is the relative error
    rows = np.array([of(case) for case in FITTED])
    factors = np.linalg.lstsq(rows * weights[:, None], left * weights, rcond=None)[0]

    def error(case: Case) -> float:
        return float((of(case) @ factors + training(case)) / taken[case] - 1)

    def compared(cases: list[Case]) -> list[dict[str, float]]:
        return [case._asdict() | {"taken": taken[case], "error": error(case)} for case in cases]

    found = {"terms": TERMS, "factors": factors.tolist()}
    found |= {"fitted": compared(FITTED), "others": compared(OTHERS)}
    for kind in ("fitted", "others"):
        print(kind, max(abs(row["error"]) for row in found[kind]))
    return found


PARTS = {"sizes": sizes, "nodes": nodes, "parts": parts, "cost": cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "in-process"])
    parser.add_argument("--config", help="of the run in one process")
    parser.add_argument("--dataset", default=default_dataset("cifar10", "uoft-cs/cifar10"))
    arguments = parser.parse_args()
    if arguments.part == "in-process":
        print(json.dumps(in_process(arguments.config)))
        return
    with measurement(f"population-{arguments.part}", seeds=(SEED,)) as result:
        result |= PARTS[arguments.part](arguments.dataset)


if __name__ == "__main__":
    main()
