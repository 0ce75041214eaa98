"""The images: loading, partitioning, decoding. Files stay encoded on disk until they are used."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from vit_finetune.kit import images, pixels
from vit_finetune.kit.partitions import Parts
from vit_finetune.kit.pixels import UnreadableImage as UnreadableImage

DIGITS_SIZE = 64  # of the embedded digits, in pixels


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
        """Name of the data by `datasets`: it depends on the files and on each step since."""
        return self.data._fingerprint

    def encoded(self, row: int) -> bytes:
        """Return an image file's bytes."""
        image = self.data[row]["image"]
        return image["bytes"] or Path(image["path"]).read_bytes()

    def digest(self, row: int) -> bytes:
        """Return a digest of the image's content in 16 bytes; of its name if it has no content."""
        try:
            content = self.encoded(row)
        except (OSError, TypeError):  # missing file or empty cell: `decode` raises the error
            content = self.name(row).encode()
        return hashlib.sha256(content).digest()[:16]

    def name(self, row: int) -> str:
        """Return an image's name for the user: its row, and its file if there is one."""
        return pixels.name_of(self.data[row]["image"], row)

    def decode(self, row: int) -> Image.Image:
        """Return an RGB image, upright.

        Raises:
            UnreadableImage: the text names the image and the reason.
        """
        return pixels.open_image(self.data[row]["image"], row, "RGB")


def load_split(dataset: str, split: str, test_split: str = "test") -> Dataset:
    """Return the columns `image`, still encoded, and `label`.

    Args:
        dataset: "digits", a local folder, or a Hub name.
        split: "train" or "test".
        test_split: name of the split for tests, or the share of "train" held out for them, "20%".
    """
    return images.load_images(dataset, split, DIGITS_SIZE, 3, test_split)


def to_images(data: Dataset) -> Images:
    """Read the labels; the image files stay where they are."""
    labels = torch.tensor(data.select_columns("label").with_format("numpy")[:]["label"])
    return Images(data, labels, data.features["label"].num_classes)


@lru_cache
def load_test(dataset: str, test_split: str = "test") -> Images:
    """Load the central test set, once for each process."""
    return to_images(load_split(dataset, "test", test_split))


@lru_cache
def split(
    dataset: str,
    num_partitions: int,
    partitioning: str,
    alpha: float,
    min_partition_size: int,
    seed: int,
    test_split: str = "test",
) -> Parts:
    """Split the training images evenly at random, or with other classes for each client."""
    training = load_split(dataset, "train", test_split)
    return Parts(training, num_partitions, partitioning, seed, alpha, min_partition_size)


@lru_cache
def load_partition(dataset: str, partition_id: int, num_partitions: int, *how: Any) -> Images:
    """Load one client's images, once for each process; `how` as in `split`."""
    return to_images(split(dataset, num_partitions, *how).load(partition_id))
