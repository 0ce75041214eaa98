# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Which part of the data each client holds."""

import warnings
from functools import cached_property
from typing import TYPE_CHECKING

from datasets import Dataset

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


class Parts:
    """Data in as many parts as there are clients.

    Args:
        data: for "dirichlet", with a column `label`.
        num_partitions: number of clients.
        partitioning: "iid" splits evenly and at random; "dirichlet" so that class shares differ
            from client to client (Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022).
        seed: of the split.
        alpha, min_partition_size: of "dirichlet".
    """

    def __init__(
        self,
        data: Dataset,
        num_partitions: int,
        partitioning: str,
        seed: int,
        alpha: float = 1.0,
        min_partition_size: int = 1,
    ) -> None:
        self.data, self.num_partitions, self.partitioning = data, num_partitions, partitioning
        self.seed, self.alpha, self.min_partition_size = seed, alpha, min_partition_size

    @cached_property
    def partitioner(self) -> "Partitioner":
        # Seconds to import (its plots bring seaborn and scipy), and a server never needs it.
        from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

        if self.partitioning == "iid":
            partitioner = IidPartitioner(self.num_partitions)
            partitioner.dataset = self.data.shuffle(seed=self.seed)
            return partitioner
        partitioner = DirichletPartitioner(
            self.num_partitions,
            "label",
            self.alpha,
            min_partition_size=self.min_partition_size,
            seed=self.seed,
        )
        partitioner.dataset = self.data
        return partitioner

    def load(self, partition_id: int) -> Dataset:
        """Return one client's part.

        Raises:
            RuntimeError: the data cannot be split in this way.
        """
        try:
            with warnings.catch_warnings(action="ignore"):  # one paragraph for each retry
                return self.partitioner.load_partition(partition_id)
        except ValueError as error:
            raise RuntimeError(
                f"dirichlet-alpha = {self.alpha}, min-partition-size = {self.min_partition_size}: "
                f"cannot split {len(self.data)} examples into {self.num_partitions} partitions "
                f"({error})"
            ) from None
