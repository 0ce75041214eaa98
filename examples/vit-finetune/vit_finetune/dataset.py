"""The images: loading, partitioning, decoding. Files stay encoded on disk until they are used."""

import hashlib
import io
import logging
import sys
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from PIL import Image, ImageOps
from torch import Tensor

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

if not sys.stderr.isatty():
    datasets.disable_progress_bars()
# Its retries against an unreachable Hub would bury the one line that says what to do.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Images:
    """Encoded images and their labels, int64 (N,)."""

    data: Dataset
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """Name the data as `datasets` does: by the files it came from and what was done to it."""
        return self.data._fingerprint

    def encoded(self, row: int) -> bytes:
        """Return an image file's bytes."""
        image = self.data[row]["image"]
        return image["bytes"] or Path(image["path"]).read_bytes()

    def digest(self, row: int) -> bytes:
        """Return 16 bytes that stand for the image's content, for its name if it has none."""
        try:
            content = self.encoded(row)
        except (OSError, TypeError):  # a missing file, an empty cell: `decode` will say so
            content = self.name(row).encode()
        return hashlib.sha256(content).digest()[:16]

    def name(self, row: int) -> str:
        """Return what tells the user which image it is: its row, and its file if there is one."""
        image = self.data[row]["image"]
        path = image["path"] if image else None
        return f"row {row} ({Path(path).name})" if path else f"row {row}"

    def decode(self, row: int) -> Image.Image:
        """Return an RGB image.

        Raises:
            UnreadableImage: names the image and the reason.
        """
        try:
            image = Image.open(io.BytesIO(self.encoded(row)))
            return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # Pillow's decoders raise all kinds
            raise UnreadableImage(f"{self.name(row)}: {reason(error)}") from None


class UnreadableImage(ValueError):
    """An image file that cannot be decoded."""


def reason(error: Exception) -> str:
    text = " ".join(str(error).split()).split(" <_io")[0]  # not the address of a buffer
    return text or type(error).__name__


@lru_cache
def load_digits() -> Dataset:
    """Return scikit-learn's 1,797 real handwritten digits as RGB images of 64x64 pixels."""
    from sklearn.datasets import load_digits as load  # slow to import, seldom needed

    digits = load()
    enlarged = np.kron(digits.images * (255 / 16), np.ones((8, 8))).astype(np.uint8)
    images = [np.stack([image] * 3, axis=-1) for image in enlarged]
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
    """Return the split's columns `image`, as encoded, and `label`."""
    return load_images(dataset, split).cast_column("image", datasets.Image(decode=False))


def to_images(data: Dataset, dataset: str) -> Images:
    """Read the labels and check them; the image files stay where they are."""
    classes = data.features["label"].num_classes
    labels = torch.tensor(data.select_columns("label").with_format("numpy")[:]["label"])
    if bad := sorted(set(labels[(labels < 0) | (labels >= classes)].tolist())):
        raise RuntimeError(
            f"dataset = '{dataset}': labels {bad[:5]} are outside 0 to {classes - 1}"
        )
    return Images(data, labels, classes)


@lru_cache
def load_test(dataset: str) -> Images:
    """Load the central test set, once for each process."""
    return to_images(load_split(dataset, "test"), dataset)


@lru_cache
def load_partitioner(
    dataset: str,
    num_partitions: int,
    partitioning: str,
    alpha: float,
    min_partition_size: int,
    seed: int,
) -> "Partitioner":
    """Split the training data evenly at random, or so that classes differ between clients.

    Source of the latter: Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022
    """
    # Seconds to import (its plots bring seaborn and scipy), and the server never needs it.
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

    if partitioning == "iid":
        partitioner = IidPartitioner(num_partitions)
        partitioner.dataset = load_split(dataset, "train").shuffle(seed=seed)
        return partitioner
    partitioner = DirichletPartitioner(
        num_partitions, "label", alpha, min_partition_size=min_partition_size, seed=seed
    )
    partitioner.dataset = load_split(dataset, "train")
    return partitioner


@lru_cache
def load_partition(
    dataset: str,
    partition_id: int,
    num_partitions: int,
    partitioning: str,
    alpha: float,
    min_partition_size: int,
    seed: int,
) -> Images:
    """Load one client's images, once for each process."""
    partitioner = load_partitioner(
        dataset, num_partitions, partitioning, alpha, min_partition_size, seed
    )
    try:
        with warnings.catch_warnings(action="ignore"):  # one paragraph for each retry
            partition = partitioner.load_partition(partition_id)
    except ValueError as error:
        raise RuntimeError(
            f"dirichlet-alpha = {alpha}, min-partition-size = {min_partition_size}: cannot split "
            f"{partitioner.dataset.num_rows} examples into {num_partitions} partitions ({error})"
        ) from None
    return to_images(partition, dataset)
