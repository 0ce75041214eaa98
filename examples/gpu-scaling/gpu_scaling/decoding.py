"""Reads a dataset with `datasets`, decodes its images, and splits them with flwr-datasets."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset

from gpu_scaling import shares
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
        owner = source.client_column if split == "train" else ""
        data = images.load_pixels(source.dataset, split, *how, owner)
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
        if owner:
            values = data.with_format("arrow")[:]["owner"].to_pylist()
            np.save(folder / f"{split}-owners.npy", np.unique(values, return_inverse=True)[1])
    (folder / "classes.json").write_text(json.dumps(data.features["label"].num_classes))
    (folder / "remarks.json").write_text(json.dumps(images.remarks(source.dataset, *how)))


def split(source: Source, folder: Path) -> None:
    """Write, for each split, all rows in the order of clients, and where each client's end.

    The test data is split evenly and at random; the training data too, or so that class shares
    differ from client to client ("dirichlet"), or by a column ("natural"). Where clients draw their
    own examples, the rows are in the order of classes.

    Source: Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022

    Raises:
        RuntimeError: a client would get nothing, or too little.
    """
    for name in SPLITS:
        rows, ends = shares_of(source, name)
        np.save(folder / f"{name}-rows.npy", rows)
        np.save(folder / f"{name}-ends.npy", ends)


def shares_of(source: Source, name: str) -> shares.Shares:
    labels = np.load(source.images / f"{name}-labels.npy")
    clients = source.num_partitions
    partitioning = source.partitioning if name == "train" else "iid"
    if source.drawn:
        return shares.by_value(labels, len(np.unique(labels)))
    if partitioning == "natural":
        owners = np.load(source.images / f"{name}-owners.npy")
        if (known := len(np.unique(owners))) < clients:
            raise RuntimeError(
                f"client-column = '{source.client_column}': {known} values are too few for "
                f"{clients} clients; have {known} at most"
            )
        return shares.by_value(owners, clients)
    data = Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
    how = (source.seed, source.dirichlet_alpha, source.min_partition_size, name)
    parts = Parts(data, clients, partitioning, *how)
    parts.check()
    if partitioning == "iid":
        return shares.evenly(rows(data.shuffle(seed=source.seed)), clients)
    each_clients = [rows(parts.load(partition)) for partition in range(clients)]
    return np.concatenate(each_clients), np.cumsum([len(own) for own in each_clients])


def rows(partition: Dataset) -> np.ndarray:
    return partition.with_format("numpy")[:]["row"]
