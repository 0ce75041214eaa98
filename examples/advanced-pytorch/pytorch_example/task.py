"""Model, data, training and testing: plain PyTorch, nothing of Flower but its datasets."""

import logging
import sys
import warnings
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from flwr_datasets.partitioner import DirichletPartitioner

IMAGE_SIZE = 28
# Mean and standard deviation of Fashion-MNIST's training pixels, scaled to [0, 1].
PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530
EVALUATION_BATCH = 250

if not sys.stderr.isatty():
    datasets.disable_progress_bars()
# Its retries against an unreachable Hub would bury the one line that says what to do.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


class Examples(NamedTuple):
    """Images as uint8 (N, 1, 28, 28) and labels as int64 (N,)."""

    images: Tensor
    labels: Tensor


class Net(nn.Module):
    """Two convolutions and two linear layers, 106 thousand parameters.

    Strides instead of pooling make it half as fast again to train, for about a point of accuracy.
    No batch norm: its running statistics average badly over clients with different classes.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (IMAGE_SIZE // 4) ** 2, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, num_classes)
        # On the CPU this layout makes testing 1.5 times faster and training no slower.
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map float pixels (N, 1, 28, 28) to logits (N, num_classes)."""
        return self.head(self.features(pixels))


def device() -> torch.device:
    """Return the GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_pixels(images: Tensor) -> Tensor:
    """Normalise uint8 images (N, 1, 28, 28) to float32 in channels-last layout."""
    pixels = images.to(device(), torch.float32).div_(255).sub_(PIXEL_MEAN).div_(PIXEL_STD)
    return pixels.contiguous(memory_format=torch.channels_last)


def train(
    model: Net,
    data: Examples,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    seed: int,
    personal_head: nn.Linear | None = None,
) -> float:
    """Train the model in place and return the mean training loss.

    A personal head learns beside it, from the same features; its gradient stops there, so that
    the shared layers and the global head are trained as if it were not present.
    """
    torch.manual_seed(seed)
    model.train()
    pixels, labels = to_pixels(data.images), data.labels.to(device())
    parameters = list(model.parameters())
    if personal_head is not None:
        parameters += personal_head.parameters()
    optimizer = torch.optim.SGD(parameters, learning_rate, momentum=momentum, fused=True)
    total_loss = torch.zeros((), device=device())
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).to(device()).split(batch_size):
            optimizer.zero_grad()
            features, target = model.features(pixels[batch]), labels[batch]
            loss = global_loss = cross_entropy(model.head(features), target)
            if personal_head is not None:
                loss = loss + cross_entropy(personal_head(features.detach()), target)
            loss.backward()
            optimizer.step()
            total_loss += global_loss.detach() * len(batch)
    return total_loss.item() / (epochs * len(labels))


@torch.inference_mode()
def evaluate(model: Net, data: Examples, *heads: nn.Linear) -> list[tuple[float, float]]:
    """Return (mean loss, accuracy) for each head, on features computed once."""
    model.eval()
    totals = torch.zeros(len(heads), 2, device=device())
    for images, labels in zip(
        data.images.split(EVALUATION_BATCH), data.labels.split(EVALUATION_BATCH), strict=True
    ):
        features, target = model.features(to_pixels(images)), labels.to(device())
        for i, head in enumerate(heads):
            logits = head(features)
            totals[i, 0] += cross_entropy(logits, target, reduction="sum")
            totals[i, 1] += (logits.argmax(1) == target).sum()
    return [(loss, accuracy) for loss, accuracy in (totals / len(data.labels)).tolist()]


@lru_cache
def load_digits() -> Dataset:
    """Return scikit-learn's 1,797 real handwritten digits in the form of Fashion-MNIST."""
    from sklearn.datasets import load_digits as load  # slow to import, seldom needed

    digits = load()
    enlarged = np.kron(digits.images * (255 / 16), np.ones((3, 3)))  # 8x8, 0..16 -> 24x24, 0..255
    images = np.pad(enlarged.astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=list("0123456789"))})
    return Dataset.from_dict({"image": list(images), "label": digits.target}, features=features)


def load_rows(dataset: str, split: str) -> Dataset:
    """Load a split of a local folder or of a Hub dataset.

    Raises:
        RuntimeError: it cannot be reached.
    """
    try:
        return datasets.load_dataset(dataset, split=split)
    except Exception as error:  # the Hub's client has no common base class for its errors
        raise RuntimeError(
            f"dataset = '{dataset}': cannot load its '{split}' split; no such folder, no such "
            "dataset on the Hub, or the Hub cannot be reached. Without a network use "
            "the dataset of offline.toml, or a local folder. "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None


def load_images(dataset: str, split: str) -> Dataset:
    """Load "train" or "test" of the embedded digits, a local folder or a Hub dataset.

    Returns:
        columns `image` and `label`; the images are not decoded yet.

    Raises:
        RuntimeError: the data cannot be reached, or is not images with class labels.
    """
    if dataset == "digits":
        return load_digits().train_test_split(test_size=0.2, seed=0)[split]
    data = load_rows(dataset, split)
    images = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
    if not isinstance(data.features.get("label"), ClassLabel) or len(images) != 1:
        raise RuntimeError(
            f"dataset = '{dataset}': needs one column of images and a column 'label' (class "
            f"labels), has {dict(data.features)}"
        )
    return data.select_columns([*images, "label"]).rename_columns({images[0]: "image"})


@lru_cache
def load_split(dataset: str, split: str) -> Dataset:
    """Return the split's columns `pixels`, uint8 (784,), and `label`."""
    return decode(load_images(dataset, split), dataset)


def decode(data: Dataset, name: str) -> Dataset:
    """Replace the column of images by one of pixels, uint8 (784,).

    This happens once for each machine: the result stays in the cache of `datasets`, from where
    every process maps it into memory. 60,000 images take 3 s the first time and none later.
    """

    def to_bytes(batch: dict[str, list]) -> dict[str, list]:
        images = [np.asarray(image.convert("L")) for image in batch["image"]]
        for image in images:
            if image.shape != (IMAGE_SIZE, IMAGE_SIZE):
                raise RuntimeError(
                    f"dataset = '{name}': an image is {image.shape[1]}x{image.shape[0]}, "
                    f"Net takes {IMAGE_SIZE}x{IMAGE_SIZE}"
                )
        return {"pixels": [image.reshape(-1) for image in images]}

    pixels = datasets.List(datasets.Value("uint8"), length=IMAGE_SIZE**2)
    features = Features({"pixels": pixels, "label": data.features["label"]})
    return data.map(
        to_bytes, batched=True, remove_columns="image", features=features, desc="Decoding"
    )


def num_classes(dataset: str) -> int:
    return load_split(dataset, "test").features["label"].num_classes


def to_examples(data: Dataset) -> Examples:
    """Copy decoded data into tensors."""
    table = data.with_format("arrow")[:]
    images = table["pixels"].combine_chunks().flatten().to_numpy()
    return Examples(
        torch.tensor(images).view(-1, 1, IMAGE_SIZE, IMAGE_SIZE),
        torch.tensor(table["label"].to_numpy()),
    )


@lru_cache
def load_test(dataset: str) -> Examples:
    """Load the central test set, once for each process."""
    return to_examples(load_split(dataset, "test"))


@lru_cache
def load_partitioner(
    dataset: str, num_partitions: int, alpha: float, min_partition_size: int, seed: int
) -> "DirichletPartitioner":
    """Split the training data so that class shares differ from client to client.

    Source: Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022
    """
    # Seconds to import (its plots bring seaborn and scipy), and the server never needs it.
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions, "label", alpha, min_partition_size=min_partition_size, seed=seed
    )
    partitioner.dataset = load_split(dataset, "train")
    return partitioner


@cache
def load_partition(
    dataset: str,
    partition_id: int,
    num_partitions: int,
    alpha: float,
    min_partition_size: int,
    test_fraction: float,
    seed: int,
) -> tuple[Examples, Examples]:
    """Load one client's training and held-out examples, once for each process."""
    partitioner = load_partitioner(dataset, num_partitions, alpha, min_partition_size, seed)
    try:
        with warnings.catch_warnings(action="ignore"):  # one paragraph for each retry
            partition = partitioner.load_partition(partition_id)
    except ValueError as error:
        raise RuntimeError(
            f"dirichlet-alpha = {alpha}, min-partition-size = {min_partition_size}: cannot split "
            f"{partitioner.dataset.num_rows} examples into {num_partitions} partitions ({error})"
        ) from None
    examples = to_examples(partition)
    order = torch.from_numpy(
        np.random.default_rng((seed, partition_id)).permutation(len(partition))
    )
    held_out, training = order.tensor_split([max(1, int(len(partition) * test_fraction))])
    return (
        Examples(examples.images[training], examples.labels[training]),
        Examples(examples.images[held_out], examples.labels[held_out]),
    )
