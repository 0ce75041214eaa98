"""This example's own settings; those that every example has are in kit/settings.py."""

from dataclasses import dataclass

from gpu_scaling.dataset import Source
from gpu_scaling.kit.settings import (
    Settings,
    anything,
    at_least,
    fraction,
    one_of,
    positive,
    split_or_share,
)
from gpu_scaling.steps import Training


@dataclass(frozen=True)
class Config(Settings):
    """A field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    executor: str = one_of("inline", "spawn", "pool", may_change=True)  # executors
    workers: int = at_least(0, may_change=True)  # executors
    memory_share: float = fraction(may_change=True)  # executors
    recycle_after: int = at_least(1, may_change=True)  # executors
    pool_idle: float = positive(may_change=True)  # executors
    step_timeout: float = positive(may_change=True)  # executors
    threads: int = at_least(1)
    test_split: str = split_or_share()
    partitioning: str = one_of("iid", "dirichlet")
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(1)
    cache_dir: str = anything("a folder, or empty", may_change=True)
    min_clients: int = at_least(1, may_change=True)
    clients_to_train: int = at_least(1)
    clients_to_evaluate: int = at_least(0)
    messages_at_once: int = at_least(0, may_change=True)
    local_epochs: int = at_least(1)
    batch_size: int = at_least(1)
    learning_rate: float = positive()
    momentum: float = fraction(zero=True, one=False)
    server_momentum: float = fraction(zero=True, one=False)

    def source(self, num_partitions: int = 0) -> Source:
        """Return the data that the settings name, in as many parts as there are clients."""
        return Source(
            self.dataset,
            num_partitions,
            self.partitioning,
            self.dirichlet_alpha,
            self.min_partition_size,
            self.seed,
            self.cache_dir,
            self.test_split,
        )

    @property
    def training(self) -> Training:
        """How a client trains."""
        return Training(
            self.local_epochs, self.batch_size, self.learning_rate, self.momentum, self.threads
        )
