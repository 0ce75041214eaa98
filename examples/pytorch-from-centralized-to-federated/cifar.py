"""The centralised project: train a small CNN on CIFAR-10 and test it."""

import argparse
from typing import Any

from centralized_to_federated import task
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help='also a folder, or "digits"')
    parser.add_argument("--test-split", default="test", help="or a share to hold out, 20%%")
    parser.add_argument("--network", default="compact", choices=task.NETWORKS, help="which CNN")
    parser.add_argument(
        "--epochs", dest="local_epochs", type=int, default=10, help="passes over the training data"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images in a step")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of SGD")
    parser.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    parser.add_argument("--seed", type=int, default=42, help="of weights and order")
    arguments = parser.parse_args()

    config = {name.replace("_", "-"): value for name, value in vars(arguments).items()}
    task.check(config["dataset"], config["test-split"])
    network = centralised(config, progress=True)
    loss, accuracy = task.evaluate(
        network, task.load(config["dataset"], "test", config["test-split"])
    )
    print(f"Test loss: {loss:.4f}, accuracy: {accuracy:.4f}")


def centralised(config: dict[str, Any], progress: bool = False) -> nn.Module:
    """Return the network after training on all data; the settings are those of pyproject.toml."""
    network = task.build(config["network"], task.num_classes(config["dataset"]), config["seed"])
    loss = task.train(
        network,
        task.load(config["dataset"], "train", config["test-split"]),
        epochs=config["local-epochs"],
        batch_size=config["batch-size"],
        learning_rate=config["learning-rate"],
        momentum=config["momentum"],
        seed=task.derive_seed(config["seed"]),
        progress=progress,
    )
    print(f"Training loss: {loss:.4f}")
    return network


if __name__ == "__main__":
    main()
