"""The project itself: networks, data, training and testing. Plain PyTorch, as it was before."""

import logging
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

IMAGE_SIZE = 32
EVALUATION_BATCH = 500

if not sys.stderr.isatty():
    datasets.disable_progress_bars()
# Its retries against an unreachable Hub would bury the one line that says what to do.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


class Examples(NamedTuple):
    """Images as uint8 (N, 3, 32, 32) and labels as int64 (N,)."""

    images: Tensor
    labels: Tensor


def tutorial_network(num_classes: int) -> nn.Module:
    """The network of PyTorch's 60-minute tutorial: 62 thousand parameters.

    Source: https://pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
    """
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(16 * 5 * 5, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, num_classes),
    )


def compact_network(num_classes: int) -> nn.Module:
    """Three convolutions and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.ReLU()),
        *(nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.GroupNorm(8, 128), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, num_classes),
    )


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "compact": compact_network,
    "tutorial": tutorial_network,
}


def build(network: str, num_classes: int, seed: int) -> nn.Module:
    """Return a new network; the same seed gives the same weights."""
    torch.manual_seed(seed)
    # On the CPU this layout of memory makes training and testing faster.
    return NETWORKS[network](num_classes).to(device(), memory_format=torch.channels_last)


def device() -> torch.device:
    """Return the GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_pixels(images: Tensor) -> Tensor:
    """Scale uint8 images (N, 3, 32, 32) to float32 in [-1, 1]."""
    pixels = images.to(device(), torch.float32).div_(127.5).sub_(1)
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
    images, labels = data.images.to(device()), data.labels.to(device())
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=momentum, fused=True)
    total_loss = torch.zeros((), device=device())
    hidden = None if progress else True  # None: hidden where there is no terminal
    with tqdm(total=epochs * len(labels), unit=" images", disable=hidden) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(labels)).to(device()).split(batch_size):
                optimizer.zero_grad()
                pixels = to_pixels(images[batch])
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
    for images, labels in zip(
        data.images.split(EVALUATION_BATCH), data.labels.split(EVALUATION_BATCH), strict=True
    ):
        logits, target = network(to_pixels(images)), labels.to(device())
        totals[0] += cross_entropy(logits, target, reduction="sum")
        totals[1] += (logits.argmax(1) == target).sum()
    loss, accuracy = (totals / len(data.labels)).tolist()
    return loss, accuracy


@lru_cache
def load(dataset: str, split: str) -> Examples:
    """Load the training or test data into tensors, once for each process."""
    return to_examples(load_split(dataset, split))


@lru_cache
def load_digits() -> Dataset:
    """Return scikit-learn's 1,797 real handwritten digits in the form of CIFAR-10."""
    from sklearn.datasets import load_digits as load  # slow to import, seldom needed

    digits = load()
    enlarged = np.kron(digits.images * (255 / 16), np.ones((4, 4)))  # 8x8, 0..16 -> 32x32, 0..255
    images = [np.stack([image] * 3, axis=-1) for image in enlarged.astype(np.uint8)]
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=list("0123456789"))})
    return Dataset.from_dict({"image": images, "label": digits.target}, features=features)


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
    """Return the split's columns `pixels`, uint8 (3 * 32 * 32,), and `label`."""
    return decode(load_images(dataset, split), dataset)


def decode(data: Dataset, name: str) -> Dataset:
    """Replace the column of images by one of pixels.

    This happens once for each machine: the result stays in the cache of `datasets`, from where
    every process maps it into memory.
    """

    def to_bytes(batch: dict[str, list]) -> dict[str, list]:
        images = [np.asarray(image.convert("RGB")) for image in batch["image"]]
        for image in images:
            if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
                raise RuntimeError(
                    f"dataset = '{name}': an image is {image.shape[1]}x{image.shape[0]}, "
                    f"the networks take {IMAGE_SIZE}x{IMAGE_SIZE}"
                )
        return {"pixels": [image.transpose(2, 0, 1).reshape(-1) for image in images]}

    pixels = datasets.List(datasets.Value("uint8"), length=3 * IMAGE_SIZE**2)
    features = Features({"pixels": pixels, "label": data.features["label"]})
    return data.map(
        to_bytes, batched=True, remove_columns="image", features=features, desc="Decoding"
    )


def to_examples(data: Dataset) -> Examples:
    """Copy decoded data into tensors."""
    table = data.with_format("arrow")[:]
    images = table["pixels"].combine_chunks().flatten().to_numpy()
    return Examples(
        torch.tensor(images).view(-1, 3, IMAGE_SIZE, IMAGE_SIZE),
        torch.tensor(table["label"].to_numpy()),
    )


def num_classes(dataset: str) -> int:
    return load_split(dataset, "test").features["label"].num_classes


def derive_seed(seed: int, server_round: int = 1, partition_id: int = 0) -> int:
    """Return an independent seed for each round and client; by default, the centralised one."""
    return int(np.random.SeedSequence((seed, server_round, partition_id)).generate_state(1)[0])
