"""Which part of the data each client holds."""

import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

from centralized_to_federated import task

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


@lru_cache
def load_partition(
    dataset: str,
    partition_id: int,
    num_partitions: int,
    partitioning: str,
    alpha: float,
    min_partition_size: int,
    seed: int,
) -> tuple[task.Examples, task.Examples]:
    """Load one client's training and test examples, once for each process.

    "same" gives each client all data; "iid" an equal share of both, at random; "dirichlet" a share
    of the training data in which classes differ from client to client, and an equal share of the
    test data.
    """
    if partitioning == "same":
        return task.load(dataset, "train"), task.load(dataset, "test")
    test_part = iid_partitioner(dataset, "test", num_partitions, seed).load_partition(partition_id)
    test = task.to_examples(test_part)
    if partitioning == "iid":
        partitioner = iid_partitioner(dataset, "train", num_partitions, seed)
    else:
        partitioner = dirichlet_partitioner(
            dataset, num_partitions, alpha, min_partition_size, seed
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # one paragraph for each retry
            return task.to_examples(partitioner.load_partition(partition_id)), test
    except ValueError as error:
        raise RuntimeError(
            f"dirichlet-alpha = {alpha}, min-partition-size = {min_partition_size}: cannot split "
            f"{partitioner.dataset.num_rows} examples into {num_partitions} partitions ({error})"
        ) from None


# flwr_datasets takes seconds to import (its plots bring seaborn and scipy), and the server and
# partitioning = "same" never need it: hence the late imports.


@lru_cache
def iid_partitioner(dataset: str, split: str, num_partitions: int, seed: int) -> "Partitioner":
    """Split "train" or "test" evenly and at random."""
    from flwr_datasets.partitioner import IidPartitioner

    partitioner = IidPartitioner(num_partitions)
    partitioner.dataset = task.load_split(dataset, split).shuffle(seed=seed)
    return partitioner


@lru_cache
def dirichlet_partitioner(
    dataset: str, num_partitions: int, alpha: float, min_partition_size: int, seed: int
) -> "Partitioner":
    """Split the training data so that class shares differ from client to client.

    Source: Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022
    """
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions, "label", alpha, min_partition_size=min_partition_size, seed=seed
    )
    partitioner.dataset = task.load_split(dataset, "train")
    return partitioner
