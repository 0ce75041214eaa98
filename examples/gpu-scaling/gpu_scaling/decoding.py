"""Reads a dataset with `datasets`, decodes its images, and splits them with flwr-datasets."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from gpu_scaling.dataset import SPLITS, Source
from gpu_scaling.kit.images import load_images, to_pixels
from gpu_scaling.kit.partitions import Parts

IMAGE_SIZE, CHANNELS = 32, 3


def decode(source: Source, folder: Path) -> None:
    """Write pixels uint8 (N, 3, 32, 32), labels int64 (N,), and the number of classes."""
    for split in SPLITS:
        data = load_images(source.dataset, split, IMAGE_SIZE, CHANNELS)
        shape = (len(data), CHANNELS, IMAGE_SIZE, IMAGE_SIZE)
        path = folder / f"{split}-images.npy"
        pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        progress = tqdm(data["image"], f"Decoding {split}", disable=None)  # None: on terminals only
        for row, image in enumerate(progress):
            pixels[row] = to_pixels(image, source.dataset, IMAGE_SIZE, CHANNELS)
        pixels.flush()
        np.save(folder / f"{split}-labels.npy", np.array(data["label"], np.int64))
    (folder / "classes.json").write_text(json.dumps(data.features["label"].num_classes))


def split(source: Source, folder: Path) -> None:
    """Write, for each split, all rows in the order of partitions, and where each partition ends.

    The test data is split evenly and at random, the training data too or, with "dirichlet", so
    that class shares differ from client to client.

    Source: Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022

    Raises:
        RuntimeError: a client would get nothing, or too little.
    """
    for name in SPLITS:
        labels = np.load(source.images / f"{name}-labels.npy")
        if len(labels) < source.num_partitions:
            raise RuntimeError(
                f"dataset = '{source.dataset}': {len(labels)} {name} images are too few for "
                f"{source.num_partitions} clients; use fewer clients or more images"
            )
        data = Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
        parts = Parts(
            data,
            source.num_partitions,
            source.partitioning if name == "train" else "iid",
            source.seed,
            source.dirichlet_alpha,
            source.min_partition_size,
        )
        clients = [rows(parts.load(partition)) for partition in range(source.num_partitions)]
        np.save(folder / f"{name}-rows.npy", np.concatenate(clients))
        np.save(folder / f"{name}-ends.npy", np.cumsum([len(client) for client in clients]))


def rows(partition: Dataset) -> np.ndarray:
    return partition.with_format("numpy")[:]["row"]
