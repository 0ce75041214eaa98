"""Centralised against federated training at equal passes over the data, 3 seeds.

The centralised runs are those of `cifar.py`, one pass after the other, for both networks; the
federated runs go through `flower-simulation`, one pass over each client's data a round.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

from centralized_to_federated import task
from common import ROOT, declared_config, default_dataset, history, measurement, simulate

APP = ROOT / "examples" / "pytorch-from-centralized-to-federated"
SEEDS = (42, 43, 44)
PASSES = 20
NETWORKS = ("compact", "tutorial")
FEDERATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "IID, 2 clients": (2, {"partitioning": "iid"}),
    "IID, 10 clients": (10, {"partitioning": "iid"}),
    "Dirichlet 0.5, 10 clients": (10, {"partitioning": "dirichlet"}),
}


def centralised(dataset: str, network: str, seed: int, config: dict[str, Any]) -> list[float]:
    """Return the test accuracy after each pass over the training data."""
    training, test = (task.load(dataset, split) for split in ("train", "test"))
    model = task.build(network, task.num_classes(dataset), seed)
    accuracies = []
    for done in range(PASSES):
        task.train(
            model,
            training,
            epochs=1,
            batch_size=config["batch-size"],
            learning_rate=config["learning-rate"],
            momentum=config["momentum"],
            seed=task.derive_seed(seed, done + 1),
        )
        accuracies.append(task.evaluate(model, test)[1])
    return accuracies


def federated(nodes: int, run_config: dict[str, Any]) -> list[float]:
    """Return the central test accuracy after each round."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in simulate(APP, nodes, run_config, Path(folder)):
            pass
        rounds = history(Path(folder))
    return [entry["evaluate_metrics_serverapp"]["accuracy"] for entry in rounds[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default=default_dataset("cifar10", "uoft-cs/cifar10"))
    dataset = parser.parse_args().dataset
    with measurement("pytorch-from-centralized-to-federated-accuracy", SEEDS) as result:
        runs: dict[str, list[list[float]]] = {}
        for (name, (nodes, settings)), seed in itertools.product(FEDERATIONS.items(), SEEDS):
            began = time.monotonic()
            changes = {"dataset": dataset, "network": NETWORKS[0], "seed": seed}
            changes |= settings | {"num-server-rounds": PASSES}
            curve = federated(nodes, changes)
            runs.setdefault(f"{NETWORKS[0]}, {name}", []).append(curve)
            took = time.monotonic() - began
            print(
                f"{NETWORKS[0]}, {name}, seed {seed}: {curve[-1]:.4f} in {took:.0f} s", flush=True
            )
        for network, seed in itertools.product(NETWORKS, SEEDS):
            curve = centralised(dataset, network, seed, declared_config(APP))
            runs.setdefault(f"{network}, centralised", []).append(curve)
            print(f"{network}, centralised, seed {seed}: {curve[-1]:.4f}", flush=True)
        sizes = {
            name: sum(p.numel() for p in task.build(name, 10, 0).parameters()) for name in NETWORKS
        }
        images = {split: len(task.load(dataset, split).labels) for split in ("train", "test")}
        result |= {"passes": PASSES, "images": images, "parameters": sizes, "runs": runs}


if __name__ == "__main__":
    main()
