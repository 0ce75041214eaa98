"""Which part of the data each client holds."""

import warnings
from functools import lru_cache

from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner

from centralized_to_federated import task


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
    even = IidPartitioner(num_partitions)
    even.dataset = task.load_split(dataset, "test").shuffle(seed=seed)
    test = task.to_examples(even.load_partition(partition_id))
    partitioner = load_partitioner(
        dataset, num_partitions, partitioning, alpha, min_partition_size, seed
    )
    try:
        with warnings.catch_warnings(action="ignore"):  # one paragraph for each retry
            return task.to_examples(partitioner.load_partition(partition_id)), test
    except ValueError as error:
        raise RuntimeError(
            f"dirichlet-alpha = {alpha}, min-partition-size = {min_partition_size}: cannot split "
            f"{partitioner.dataset.num_rows} examples into {num_partitions} partitions ({error})"
        ) from None


@lru_cache
def load_partitioner(
    dataset: str,
    num_partitions: int,
    partitioning: str,
    alpha: float,
    min_partition_size: int,
    seed: int,
) -> Partitioner:
    """Split the training data evenly at random, or so that classes differ between clients.

    Source of the latter: Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022
    """
    if partitioning == "iid":
        partitioner = IidPartitioner(num_partitions)
        partitioner.dataset = task.load_split(dataset, "train").shuffle(seed=seed)
        return partitioner
    partitioner = DirichletPartitioner(
        num_partitions, "label", alpha, min_partition_size=min_partition_size, seed=seed
    )
    partitioner.dataset = task.load_split(dataset, "train")
    return partitioner
