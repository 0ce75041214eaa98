"""Reads a dataset with `datasets`, decodes its images, and splits them with flwr-datasets."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset

from gpu_scaling.dataset import CHANNELS, IMAGE_SIZE, SPLITS, Source
from gpu_scaling.kit import images
from gpu_scaling.kit.partitions import Parts

AT_ONCE = 10_000  # images that are copied in one go


def decode(source: Source, folder: Path) -> None:
    """Write pixels uint8 (N, CHANNELS, IMAGE_SIZE, IMAGE_SIZE), labels int64 (N,), and remarks.

    Raises:
        RuntimeError: the data cannot be reached, or is not images with one class each.
    """
    how = (IMAGE_SIZE, CHANNELS, source.test_split)
    for split in SPLITS:
        data = images.load_pixels(source.dataset, split, *how)
        shape = (len(data), CHANNELS, IMAGE_SIZE, IMAGE_SIZE)
        path = folder / f"{split}-images.npy"
        pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        labels = np.empty(len(data), np.int64)
        for start in range(0, len(data), AT_ONCE):
            rows = range(start, min(start + AT_ONCE, len(data)))
            part = data.select(rows)
            pixels[rows], labels[rows] = images.to_arrays(part, IMAGE_SIZE, CHANNELS)
        pixels.flush()
        np.save(folder / f"{split}-labels.npy", labels)
    (folder / "classes.json").write_text(json.dumps(data.features["label"].num_classes))
    (folder / "remarks.json").write_text(json.dumps(images.remarks(source.dataset, *how)))


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
        data = Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
        parts = Parts(
            data,
            source.num_partitions,
            source.partitioning if name == "train" else "iid",
            source.seed,
            source.dirichlet_alpha,
            source.min_partition_size,
            name,
        )
        clients = [rows(parts.load(partition)) for partition in range(source.num_partitions)]
        np.save(folder / f"{name}-rows.npy", np.concatenate(clients))
        np.save(folder / f"{name}-ends.npy", np.cumsum([len(client) for client in clients]))


def rows(partition: Dataset) -> np.ndarray:
    return partition.with_format("numpy")[:]["row"]
