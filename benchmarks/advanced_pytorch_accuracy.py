"""Accuracy of advanced-pytorch with its own defaults, over rounds and seeds, on real data."""

import argparse
import tempfile
import time
from pathlib import Path

from common import ROOT, default_dataset, history, measurement, simulate

SEEDS = (42, 43, 44)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument(
        "--dataset", default=default_dataset("fashion_mnist", "zalando-datasets/fashion_mnist")
    )
    arguments = parser.parse_args()
    with measurement("advanced-pytorch-accuracy", SEEDS) as result:
        result |= {"nodes": 50, "runs": []}
        for seed in SEEDS:
            config = {
                "dataset": arguments.dataset,
                "num-server-rounds": arguments.rounds,
                "seed": seed,
                "wandb.mode": "disabled",
            }
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                for line in simulate(ROOT / "examples/advanced-pytorch", 50, config, Path(folder)):
                    if "serverapp: accuracy" in line:
                        print(f"seed {seed}: {line.split('serverapp: ')[1].strip()}", flush=True)
                run = {"seed": seed, "history": history(Path(folder))}
            result["runs"].append(run | {"seconds": time.monotonic() - began})


if __name__ == "__main__":
    main()
