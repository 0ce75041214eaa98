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
    partitioning: str = one_of("iid", "dirichlet", "natural")
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(1)
    client_column: str = anything("a column of the training data, or empty")
    population: int = at_least(0)
    examples_per_client: int = at_least(0)
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

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            ValueError: names the keys.
        """
        for key in ("clients_to_train", "clients_to_evaluate", "min_replies"):
            if 0 < self.population < (count := getattr(self, key)):
                raise ValueError(
                    f"run config: {self.key_of(key)} = {count} is more than population = "
                    f"{self.population}; draw fewer, or set population = 0: a client for each node"
                )
        if (self.partitioning == "natural") != bool(self.client_column):
            raise ValueError(
                f"run config: partitioning = '{self.partitioning}' and client-column = "
                f"'{self.client_column}': 'natural' needs the column that says whose each row is, "
                "and only that"
            )
        if self.examples_per_client and self.partitioning == "natural":
            raise ValueError(
                f"run config: examples-per-client = {self.examples_per_client}: with partitioning "
                "= 'natural' clients have the examples that are theirs; set it to 0"
            )

    def source(self, num_partitions: int = 0) -> Source:
        """Return the dataset of the settings, in a part for each client."""
        return Source(
            self.dataset,
            num_partitions,
            self.partitioning,
            self.dirichlet_alpha,
            self.min_partition_size,
            self.seed,
            self.cache_dir,
            self.test_split,
            self.client_column,
            self.examples_per_client,
        )

    @property
    def training(self) -> Training:
        """Settings of a client's training."""
        return Training(
            self.local_epochs, self.batch_size, self.learning_rate, self.momentum, self.threads
        )
