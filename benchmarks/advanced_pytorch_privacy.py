"""Accuracy of advanced-pytorch with differential privacy, with few and all clients a round."""

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from common import ROOT, default_dataset, history, measurement, simulate

SEEDS = (42, 43, 44)
NODES, ROUNDS = 50, 10
# Noise too small to hide anything shows the cost of clipping and equal weights alone.
CLIPPING_ALONE = 1e-9
KEYS = ("fraction-train", "dp.noise-multiplier", "dp.clipping-norm")
SETTINGS = (
    (0.25, 0.0, 1.0),
    (0.25, CLIPPING_ALONE, 1.0),
    (0.25, 0.1, 1.0),
    (0.25, 0.3, 1.0),
    (1.0, 0.0, 1.0),
    (1.0, 0.3, 1.0),
    (1.0, 1.0, 1.0),
    (1.0, 1.0, 0.5),
)


def accuracies(config: dict[str, Any]) -> list[float]:
    """Return the centralized accuracy of each whole round, the untrained model's first."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            for _ in simulate(ROOT / "examples/advanced-pytorch", NODES, config, Path(folder)):
                pass
        except RuntimeError as error:  # with too much noise, training ends in NaN
            if "min-replies = " not in str(error):
                raise
        rounds = history(Path(folder))
    return [entry["evaluate_metrics_serverapp"]["accuracy"] for entry in rounds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dataset", default=default_dataset("fashion_mnist", "zalando-datasets/fashion_mnist")
    )
    arguments = parser.parse_args()
    fixed = {
        "dataset": arguments.dataset,
        "num-server-rounds": ROUNDS,
        "dp.repeatable-noise": True,
        "wandb.mode": "disabled",
    }
    with measurement("advanced-pytorch-privacy", SEEDS) as result:
        result |= {"nodes": NODES, "runs": []}
        for values, seed in product(SETTINGS, SEEDS):
            changes = dict(zip(KEYS, values, strict=True)) | {"seed": seed}
            reached = accuracies(fixed | changes)
            print(f"{changes}: {reached[-1]:.3f} after {len(reached) - 1} rounds", flush=True)
            result["runs"].append({"config": changes, "accuracies": reached})


if __name__ == "__main__":
    main()
