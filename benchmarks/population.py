"""What a round of a population costs: by its size, by who is asked, and a model of the cost.

- sizes: gpu-scaling with 1,000, 100,000 and 1,000,000 clients, 100 drawn: start-up, seconds a
  round, memory.
- nodes: gpu-scaling with 1,000 nodes that are clients: the first round and the others.
- cost: rounds of an app whose clients take as long, and send as much, as they are told. A model of
  the seconds is fitted to some of them and compared with the others, and with gpu-scaling's own.
"""

import argparse
import itertools
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import ROOT, SEED, default_dataset, measurement, simulate
from plan import terms
from watch import Memory

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


def run(app: Path, nodes: int, config: dict[str, Any]) -> dict[str, Any]:
    """Return start-up, seconds of each round, and memory of a simulation."""
    start, seconds, began = None, [], time.monotonic()
    with Memory() as memory, tempfile.TemporaryDirectory() as folder:
        for line in simulate(app, nodes, config, Path(folder)):
            if start is None and "[ROUND 1/" in line:
                start = time.monotonic() - began
            if match := re.search(r"Round took ([\d.]+) s", line):
                seconds.append(float(match[1]))
    return {"start_seconds": start, "round_seconds": seconds} | memory.found()


def of_gpu_scaling(dataset: str, nodes: int, **changes: Any) -> dict[str, Any]:
    config = {"dataset": dataset, "executor": "inline", "num-server-rounds": ROUNDS}
    config |= {"examples-per-client": IMAGES, "clients-to-evaluate": 0, "min-clients": 1}
    config |= {"clients-to-train": DRAWN} | {k.replace("_", "-"): v for k, v in changes.items()}
    return run(GPU_SCALING, nodes, config)


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


def seconds_of(case: Case) -> float:
    """Return the seconds of a case's rounds, the median without the first."""
    config = {"population": 10_000, "clients-to-train": case.drawn}
    config |= {"megabytes": case.megabytes, "train-seconds": case.seconds}
    taken = statistics.median(run(COST_APP, case.workers, config)["round_seconds"][1:])
    print(f"{case}: {taken:.3f} s", flush=True)
    return taken


TERMS = ["round", "client", "MB of a client, by its worker", "MB of a client, by the server"]


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


PARTS = {"sizes": sizes, "nodes": nodes, "cost": cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--dataset", default=default_dataset("cifar10", "uoft-cs/cifar10"))
    arguments = parser.parse_args()
    with measurement(f"population-{arguments.part}", seeds=(SEED,)) as result:
        result |= PARTS[arguments.part](arguments.dataset)


if __name__ == "__main__":
    main()
