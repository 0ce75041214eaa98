"""Reads a dataset with `datasets`, decodes its images, and splits them with flwr-datasets."""

import json
import logging
import sys
import warnings
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features
from PIL.Image import Image
from tqdm import tqdm

from gpu_scaling.dataset import SPLITS, Source

IMAGE_SIZE = 32

if not sys.stderr.isatty():
    datasets.disable_progress_bars()
# Its retries against an unreachable Hub would bury the one line that says what to do.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def decode(source: Source, folder: Path) -> None:
    """Write pixels uint8 (N, 3, 32, 32), labels int64 (N,), and the number of classes."""
    for split in SPLITS:
        data = load_images(source.dataset, split)
        shape = (len(data), 3, IMAGE_SIZE, IMAGE_SIZE)
        path = folder / f"{split}-images.npy"
        pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        progress = tqdm(data["image"], f"Decoding {split}", disable=None)  # None: on terminals only
        for row, image in enumerate(progress):
            pixels[row] = to_pixels(image, source.dataset)
        pixels.flush()
        np.save(folder / f"{split}-labels.npy", np.array(data["label"], np.int64))
    (folder / "classes.json").write_text(json.dumps(data.features["label"].num_classes))


def to_pixels(image: Image, name: str) -> np.ndarray:
    """Return a PIL image as uint8 (3, 32, 32)."""
    pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise RuntimeError(
            f"dataset = '{name}': an image is {pixels.shape[1]}x{pixels.shape[0]}, "
            f"the network takes {IMAGE_SIZE}x{IMAGE_SIZE}"
        )
    return pixels.transpose(2, 0, 1)


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


def split(source: Source, folder: Path) -> None:
    """Write, for each split, all rows in the order of partitions, and where each partition ends.

    The test data is split evenly and at random, the training data too or, with "dirichlet", so
    that class shares differ from client to client.

    Source: Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022

    Raises:
        RuntimeError: a client would get nothing, or too little.
    """
    from flwr_datasets.partitioner import IidPartitioner  # slow to import: seaborn, scipy

    for name in SPLITS:
        labels = np.load(source.images / f"{name}-labels.npy")
        if len(labels) < source.num_partitions:
            raise RuntimeError(
                f"dataset = '{source.dataset}': {len(labels)} {name} images are too few for "
                f"{source.num_partitions} clients; use fewer clients or more images"
            )
        data = Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
        if name == "train" and source.partitioning == "dirichlet":
            parts = dirichlet(data, source)
        else:
            partitioner = IidPartitioner(source.num_partitions)
            partitioner.dataset = data.shuffle(seed=source.seed)
            parts = [rows(partitioner.load_partition(i)) for i in range(source.num_partitions)]
        np.save(folder / f"{name}-rows.npy", np.concatenate(parts))
        np.save(folder / f"{name}-ends.npy", np.cumsum([len(part) for part in parts]))


def dirichlet(data: Dataset, source: Source) -> list[np.ndarray]:
    """Return the rows of each partition."""
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        source.num_partitions,
        "label",
        source.dirichlet_alpha,
        min_partition_size=source.min_partition_size,
        seed=source.seed,
    )
    partitioner.dataset = data
    try:
        with warnings.catch_warnings(action="ignore"):  # one paragraph for each retry
            return [rows(partitioner.load_partition(i)) for i in range(source.num_partitions)]
    except ValueError as error:
        raise RuntimeError(
            f"dirichlet-alpha = {source.dirichlet_alpha}, min-partition-size = "
            f"{source.min_partition_size}: cannot split {len(data)} examples into "
            f"{source.num_partitions} partitions ({error})"
        ) from None


def rows(partition: Dataset) -> np.ndarray:
    return partition.with_format("numpy")[:]["row"]
