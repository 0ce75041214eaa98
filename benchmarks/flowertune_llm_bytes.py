"""Held-out loss against bytes sent, at equal steps: dtypes on the wire, and DiLoCo; 3 seeds.

SmolLM2-135M learns the documentation of Python's standard library, with offline.toml's settings and
two sites that take part in every round, as between organisations. All ways take the same number of
local steps, DiLoCo in fewer rounds. The rounds run in one process, two runs at a time: loss and
bytes do not depend on the clock.
"""

import argparse
import itertools
import logging
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import ROOT, declared_config, history, measurement

APP = ROOT / "examples" / "flowertune-llm"
SEEDS = (42, 43, 44)
SITES, STEPS = 2, 48
DILOCO = {"strategy.outer-learning-rate": 0.7, "strategy.outer-momentum": 0.9}
Way = tuple[int, str, dict[str, Any]]  # rounds, dtype on the wire, other settings
WAYS: dict[str, Way] = {
    "float32": (6, "float32", {}),
    "bfloat16": (6, "bfloat16", {}),
    "int8": (6, "int8", {}),
    "int4": (6, "int4", {}),
    "float32, 3 rounds": (3, "float32", {}),
    "int4, 3 rounds": (3, "int4", {}),
    "DiLoCo, float32": (3, "float32", DILOCO),
    "DiLoCo, int4": (3, "int4", DILOCO),
}


def run(way: Way, seed: int) -> list[dict[str, float]]:
    """Return, after each round, local steps, bytes to and from a site so far, and the loss."""
    import torch
    from flowertune_llm.kit.in_process import run_app

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rounds, dtype, others = way
    settings = declared_config(APP, offline=True) | others
    settings |= {"num-server-rounds": rounds, "train.training-arguments.max-steps": STEPS // rounds}
    settings |= {"strategy.transport-dtype": dtype, "strategy.fraction-train": 1.0, "seed": seed}
    settings |= {"train.evaluate-every-round": 1, "train.save-every-round": rounds}
    with tempfile.TemporaryDirectory() as folder:
        run_app(APP, SITES, settings | {"output-dir": f"{folder}/outputs"})
        entries = history(Path(folder))
    points, sent = [], 0
    for entry in entries:
        sent += sum(entry["traffic"].values())
        done, loss = entry["round"] * STEPS // rounds, entry["evaluate_metrics_serverapp"]["loss"]
        points.append({"steps": done, "bytes": sent, "loss": loss})
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="only these, one seed: a trial")
    arguments = parser.parse_args()
    seeds = SEEDS[:1] if arguments.ways else SEEDS
    names = arguments.ways or list(WAYS)
    with (
        measurement("flowertune-llm-bytes", seeds, trial=bool(arguments.ways)) as result,
        ProcessPoolExecutor(2, get_context("spawn")) as pool,
    ):
        result |= {"sites": SITES, "steps": STEPS, "rounds": {n: WAYS[n][0] for n in names}}
        made = {
            (seed, name): pool.submit(run, WAYS[name], seed)
            for seed, name in itertools.product(seeds, names)
        }
        runs = result["runs"] = {name: [] for name in names}
        for (seed, name), points in made.items():
            runs[name].append(points.result())
            last = runs[name][-1][-1]
            print(f"{name}, seed {seed}: {last['loss']:.4f}, {last['bytes']:,} bytes", flush=True)


if __name__ == "__main__":
    main()
