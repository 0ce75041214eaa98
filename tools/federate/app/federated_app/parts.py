"""Each client's part of the script's data, in loaders with the script's own settings."""

from functools import cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset

from federated_app import task
from federated_app.config import Config
from federated_app.kit.partitions import Parts

Both = tuple[Any, Any]  # training data and test data, each a DataLoader or a Dataset

# What a loader for a part has as the script's own has it, beside the order.
KEPT = ("batch_size", "num_workers", "collate_fn", "pin_memory", "drop_last", "timeout")
KEPT += ("worker_init_fn", "multiprocessing_context", "prefetch_factor", "persistent_workers")


def load(config: Config, partition_id: int, num_partitions: int) -> Both:
    """Return one client's training and test data."""
    rows = indices(config, partition_id, num_partitions)
    training, test = (part(*each) for each in zip(task.data(config), rows, strict=True))
    return training, test


def size(data: Any) -> int:
    """Return the number of examples."""
    return len(examples(data))


@cache
def split(config: Config, num_partitions: int) -> tuple[Parts, Parts]:
    """Split both between clients; of the training data, classes may differ from one to another."""
    training, test = map(examples, task.data(config))
    tests = "same" if config.partitioning == "same" else "iid"
    sizes = (config.dirichlet_alpha, config.min_partition_size)
    table = {"index": np.arange(len(training))}
    if config.partitioning == "dirichlet":
        table["label"] = labels(training)
    return (
        Parts(Dataset.from_dict(table), num_partitions, config.partitioning, config.seed, *sizes),
        Parts(
            Dataset.from_dict({"index": np.arange(len(test))}),
            num_partitions,
            tests,
            config.seed,
            name="test",
        ),
    )


@cache
def indices(config: Config, partition_id: int, num_partitions: int) -> tuple[list[int], ...]:
    """Return which examples a client holds, in the script's own order."""
    both = split(config, num_partitions)
    return tuple(sorted(each.load(partition_id)["index"]) for each in both)


def examples(data: Any) -> Any:
    """Return the Dataset of what the script trains or tests on.

    Raises:
        TypeError: it has no parts.
    """
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(dataset, dict) or not all(
        hasattr(dataset, name) for name in ("__len__", "__getitem__")
    ):
        raise TypeError(
            f"data() of task.py gives a {type(data).__name__}, of which a client cannot get a "
            "part; have it give a DataLoader or a Dataset that has a length"
        )
    return dataset


def labels(dataset: Any) -> list[int]:
    """Return each example's class: of a column or attribute of that name, else read one by one."""
    if isinstance(dataset, Subset):
        own = labels(dataset.dataset)
        return [own[row] for row in dataset.indices]
    for name in ("label", "labels"):
        if name in getattr(dataset, "column_names", ()):
            return [int(value) for value in dataset[name]]
    for name in ("targets", "labels"):
        if len(getattr(dataset, name, ())) == len(dataset):
            return [int(value) for value in getattr(dataset, name)]
    try:
        return [label_of(dataset[row]) for row in range(len(dataset))]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "partitioning = 'dirichlet' needs each example's class, and it is not the last of its "
            f"values, nor named label or labels ({error}); use partitioning='iid'"
        ) from None


def label_of(example: Any) -> int:
    if isinstance(example, dict):
        return int(example["labels" if "labels" in example else "label"])
    return int(example[-1])


def part(data: Any, rows: list[int]) -> Any:
    """Return the data with these examples only."""
    dataset = examples(data)
    chosen = dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, rows)
    return loader_like(data, chosen) if isinstance(data, DataLoader) else chosen


def loader_like(loader: DataLoader, dataset: Any) -> DataLoader:
    """Return a loader with another's settings.

    Raises:
        TypeError: its examples come in an order of its own.
        RuntimeError: the examples do not fill one batch, and it drops what does not.
    """
    sampler = loader.sampler
    plain = type(sampler) in (RandomSampler, SequentialSampler)
    if not plain or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        own = sampler if not plain else loader.batch_sampler
        raise TypeError(
            f"a loader's {type(own).__name__} is made for all of the data: have data() of task.py "
            "give a loader with shuffle=True or shuffle=False"
        )
    settings = {name: getattr(loader, name) for name in KEPT}
    if loader.drop_last and len(dataset) < (loader.batch_size or 0):
        raise RuntimeError(
            f"{len(dataset)} examples do not fill a batch of {loader.batch_size}, and drop_last "
            "leaves out what does not; use fewer clients, or smaller batches"
        )
    generator = None
    if loader.generator is not None:  # as it was when the script made it
        generator = torch.Generator().set_state(loader.generator.get_state())
    shuffle = type(sampler) is RandomSampler
    return DataLoader(dataset, shuffle=shuffle, generator=generator, **settings)
