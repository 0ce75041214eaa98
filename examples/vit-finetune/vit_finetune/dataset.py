"""The images: loading, partitioning, decoding. Files stay encoded on disk until they are used."""

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from PIL import Image, ImageOps
from torch import Tensor

from vit_finetune.kit import images
from vit_finetune.kit.partitions import Parts

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
def load_split(dataset: str, split: str) -> Dataset:
    """Return the split's columns `image`, as encoded, and `label`."""
    data = images.load_images(dataset, split, DIGITS_SIZE, channels=3)
    return data.cast_column("image", datasets.Image(decode=False))


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
def split(
    dataset: str,
    num_partitions: int,
    partitioning: str,
    alpha: float,
    min_partition_size: int,
    seed: int,
) -> Parts:
    """Split the training images evenly at random, or so that classes differ between clients."""
    training = load_split(dataset, "train")
    return Parts(training, num_partitions, partitioning, seed, alpha, min_partition_size)


@lru_cache
def load_partition(dataset: str, partition_id: int, num_partitions: int, *how: Any) -> Images:
    """Load one client's images, once for each process; `how` they are split as for `split`."""
    return to_images(split(dataset, num_partitions, *how).load(partition_id), dataset)
