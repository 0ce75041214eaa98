"""The project itself: networks, data, training and testing. Plain PyTorch, as before Flower."""

from collections.abc import Callable
from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from centralized_to_federated.kit import images
from centralized_to_federated.kit.batches import batches
from centralized_to_federated.kit.partitions import Parts

IMAGE_SIZE, CHANNELS = 32, 3
EVALUATION_BATCH = 500


class Examples(NamedTuple):
    """Images as uint8 (N, CHANNELS, IMAGE_SIZE, IMAGE_SIZE) and labels as int64 (N,)."""

    images: Tensor
    labels: Tensor


def tutorial_network(num_classes: int) -> nn.Module:
    """The network of PyTorch's 60-minute tutorial: 62 thousand parameters.

    Source: https://pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
    """
    return nn.Sequential(
        *(nn.Conv2d(CHANNELS, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(16 * (IMAGE_SIZE // 4 - 3) ** 2, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, num_classes),
    )


def compact_network(num_classes: int) -> nn.Module:
    """Three convolutions and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(CHANNELS, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.ReLU()),
        *(nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.GroupNorm(8, 128), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(128 * ceil(IMAGE_SIZE / 8) ** 2, num_classes),
    )


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "compact": compact_network,
    "tutorial": tutorial_network,
}


def build(network: str, num_classes: int, seed: int) -> nn.Module:
    """Return a new network; the same seed gives the same weights."""
    torch.manual_seed(seed)
    # This memory layout makes training and testing on the CPU faster.
    return NETWORKS[network](num_classes).to(device(), memory_format=torch.channels_last)


def device() -> torch.device:
    """Return the GPU if this process may use one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_pixels(batch: Tensor) -> Tensor:
    """Scale uint8 images (N, CHANNELS, IMAGE_SIZE, IMAGE_SIZE) to float32 in [-1, 1]."""
    pixels = batch.to(device(), torch.float32).div_(127.5).sub_(1)
    return pixels.contiguous(memory_format=torch.channels_last)


def train(
    network: nn.Module,
    data: Examples,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    seed: int,
    progress: bool = False,
) -> float:
    """Train the network in place and return the mean training loss."""
    torch.manual_seed(seed)
    network.train()
    inputs, labels = data.images.to(device()), data.labels.to(device())
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=momentum, fused=True)
    total_loss = torch.zeros((), device=device())
    hidden = None if progress else True  # None hides it if there is no terminal
    with tqdm(total=epochs * len(labels), unit=" images", disable=hidden) as bar:
        for _ in range(epochs):
            for batch in batches(len(labels), batch_size, device()):
                optimizer.zero_grad()
                pixels = to_pixels(inputs[batch])
                loss = cross_entropy(network(pixels), labels[batch])
                loss.backward()
                optimizer.step()
                total_loss += loss.detach() * len(batch)
                bar.update(len(batch))
    return total_loss.item() / (epochs * len(labels))


@torch.inference_mode()
def evaluate(network: nn.Module, data: Examples) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    network.eval()
    totals = torch.zeros(2, device=device())
    for inputs, labels in zip(
        data.images.split(EVALUATION_BATCH), data.labels.split(EVALUATION_BATCH), strict=True
    ):
        logits, target = network(to_pixels(inputs)), labels.to(device())
        totals[0] += cross_entropy(logits, target, reduction="sum")
        totals[1] += (logits.argmax(1) == target).sum()
    loss, accuracy = (totals / len(data.labels)).tolist()
    return loss, accuracy


@lru_cache
def load(dataset: str, split: str, test_split: str = "test") -> Examples:
    """Load the training or test data into tensors, once for each process.

    Args:
        dataset: "digits", a local folder, or a Hub name.
        split: "train" or "test".
        test_split: name of the split for tests, or the share of "train" held out for them, "20%".
    """
    return to_examples(images.load_pixels(dataset, split, IMAGE_SIZE, CHANNELS, test_split))


def check(dataset: str, test_split: str = "test") -> None:
    """Raise an error if the data cannot be used, and log which images are left out."""
    images.check_pixels(dataset, IMAGE_SIZE, CHANNELS, test_split)


def num_classes(dataset: str) -> int:
    data = images.load_pixels(dataset, "train", IMAGE_SIZE, CHANNELS)
    return data.features["label"].num_classes


def to_examples(data: Dataset) -> Examples:
    return Examples(*map(torch.from_numpy, images.to_arrays(data, IMAGE_SIZE, CHANNELS)))


@lru_cache
def load_partition(
    dataset: str, partition_id: int, num_partitions: int, *how: Any
) -> tuple[Examples, Examples]:
    """Load one client's training and test examples, once for each process; `how` as in `split`."""
    if how[0] == "same":  # all clients share the same tensors
        return load(dataset, "train", *how[4:]), load(dataset, "test", *how[4:])
    training, test = split(dataset, num_partitions, *how)
    return to_examples(training.load(partition_id)), to_examples(test.load(partition_id))


@lru_cache
def split(
    dataset: str,
    num_partitions: int,
    partitioning: str,
    alpha: float,
    min_partition_size: int,
    seed: int,
    test_split: str = "test",
) -> tuple[Parts, Parts]:
    """Split the data between clients.

    "same" gives each client all data. "iid" gives each an equal, random share of the training and
    of the test data. "dirichlet" gives each its own shares of the training classes, and an equal,
    random share of the test data.
    """
    training, test = (
        images.load_pixels(dataset, part, IMAGE_SIZE, CHANNELS, test_split)
        for part in ("train", "test")
    )
    tests = "same" if partitioning == "same" else "iid"
    return (
        Parts(training, num_partitions, partitioning, seed, alpha, min_partition_size),
        Parts(test, num_partitions, tests, seed, name="test"),
    )


def derive_seed(seed: int, server_round: int = 1, partition_id: int = 0) -> int:
    """Return an independent seed for each round and client; by default that of cifar.py."""
    return int(np.random.SeedSequence((seed, server_round, partition_id)).generate_state(1)[0])
