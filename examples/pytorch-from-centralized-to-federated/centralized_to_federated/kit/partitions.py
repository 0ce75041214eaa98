# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Partitions: the split of the data between clients."""

import warnings
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

ATTEMPTS = 11  # of flwr-datasets, to split by a Dirichlet distribution


class Parts:
    """Data in as many parts as there are clients.

    Args:
        data: for "dirichlet", with a column `label`.
        num_partitions: number of clients.
        partitioning: "same" gives each client all data; "iid" splits evenly and at random;
            "dirichlet" gives clients different shares of the classes (Yurochkin et al. 2019,
            https://arxiv.org/abs/1905.12022).
        seed: of the split.
        alpha, min_partition_size: of "dirichlet".
        name: of the data, for errors.
    """

    def __init__(
        self,
        data: Dataset,
        num_partitions: int,
        partitioning: str,
        seed: int,
        alpha: float = 1.0,
        min_partition_size: int = 1,
        name: str = "train",
    ) -> None:
        self.data, self.num_partitions, self.partitioning = data, num_partitions, partitioning
        self.seed, self.alpha, self.min_partition_size = seed, alpha, min_partition_size
        self.name = name

    def check(self, at_least: int = 1) -> None:
        """Check, in milliseconds, that the data can be split in this way.

        Args:
            at_least: number of examples that each client needs.

        Raises:
            RuntimeError: there are too few examples.
        """
        clients, rows = self.num_partitions, len(self.data)
        if self.partitioning == "same":
            return
        if rows < clients * at_least:
            each = f" of {at_least} each" if at_least > 1 else ""
            raise RuntimeError(
                f"{rows} {self.name} images are too few for {clients} clients{each}; "
                "use fewer clients or more images"
            )
        if self.partitioning == "dirichlet":
            smallest = self.smallest_part()
            if smallest < self.min_partition_size:
                raise RuntimeError(
                    f"dirichlet-alpha = {self.alpha}, min-partition-size = "
                    f"{self.min_partition_size}: cannot split {rows} {self.name} images into "
                    f"{clients} partitions, the smallest would have {smallest}; use fewer "
                    "clients, a larger dirichlet-alpha, or a smaller min-partition-size"
                )

    def smallest_part(self) -> int:
        """Return the size of the smallest part in the best of flwr-datasets' attempts.

        Its draws are repeated here, for the sizes only: importing it takes seconds.
        """
        if self.num_partitions * self.min_partition_size > len(self.data):
            return len(self.data) // self.num_partitions
        labels = self.data.select_columns("label").with_format("numpy")[:]["label"]
        counts = np.unique(labels, return_counts=True)[1][:, None]
        rng, alpha = np.random.default_rng(self.seed), np.full(self.num_partitions, self.alpha)
        best = 0
        for _ in range(ATTEMPTS):
            ends = np.cumsum([rng.dirichlet(alpha) for _ in counts], axis=1) * counts
            ends = ends.astype(int)
            ends[:, -1:] = counts
            best = max(best, int(np.diff(ends, axis=1, prepend=0).sum(axis=0).min()))
            if best >= self.min_partition_size:
                break
        return best

    @cached_property
    def partitioner(self) -> "Partitioner":
        """Partitioner of flwr-datasets."""
        self.check()
        # Imported here, because it takes seconds and a server never needs it.
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
        """Return one client's part; raises as `check` does."""
        if self.partitioning == "same":
            return self.data
        with warnings.catch_warnings(action="ignore"):  # it warns at each attempt
            return self.partitioner.load_partition(partition_id)
