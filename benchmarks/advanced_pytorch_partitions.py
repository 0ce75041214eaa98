"""Number of images of each class on each client of advanced-pytorch, by its default settings."""

import argparse

from common import ROOT, declared_config, default_dataset, measurement
from flwr_datasets.metrics import compute_counts
from pytorch_example import task

NODES = 50
KEYS = ("dirichlet-alpha", "min-partition-size", "seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dataset", default=default_dataset("fashion_mnist", "zalando-datasets/fashion_mnist")
    )
    arguments = parser.parse_args()
    config = declared_config(ROOT / "examples" / "advanced-pytorch")
    split = {key: config[key] for key in KEYS}
    with measurement("advanced-pytorch-partitions", (config["seed"],)) as result:
        partitioner = task.split(arguments.dataset, NODES, *split.values()).partitioner
        counts = compute_counts(partitioner, "label", verbose_names=True)
        result |= {"config": split, "classes": list(counts.columns)}
        result["images"] = counts.to_numpy().tolist()  # by client, then by class


if __name__ == "__main__":
    main()
