"""The run config as one typed, checked object."""

from dataclasses import dataclass
from typing import Any, Self

from gpu_scaling.dataset import Source
from gpu_scaling.executors import Options
from gpu_scaling.keys import anything, at_least, checked, fraction, key, one_of, positive, some_text
from gpu_scaling.steps import Training

# These may differ when a run is resumed; any other key would make it another run.
MAY_CHANGE = {
    *("executor", "workers", "memory-share", "recycle-after", "pool-idle", "step-timeout"),
    *("cache-dir", "num-server-rounds", "min-clients", "messages-at-once", "min-replies"),
    *("max-update-ratio", "round-timeout", "output-dir", "resume-from"),
}


@dataclass(frozen=True)
class Config:
    """One field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    executor: str = one_of("inline", "spawn", "pool")
    workers: int = at_least(0)
    memory_share: float = fraction()
    recycle_after: int = at_least(1)
    pool_idle: float = positive()
    step_timeout: float = positive()
    threads: int = at_least(1)
    dataset: str = some_text()
    partitioning: str = one_of("iid", "dirichlet")
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(1)
    cache_dir: str = anything("a folder, or empty")
    num_server_rounds: int = at_least(1)
    min_clients: int = at_least(1)
    clients_to_train: int = at_least(1)
    clients_to_evaluate: int = at_least(0)
    messages_at_once: int = at_least(0)
    min_replies: int = at_least(1)
    max_update_ratio: float = key(lambda v: v > 1, "a number above 1")
    round_timeout: float = positive()
    local_epochs: int = at_least(1)
    batch_size: int = at_least(1)
    learning_rate: float = positive()
    momentum: float = fraction(zero=True, one=False)
    server_momentum: float = fraction(zero=True, one=False)
    seed: int = at_least(0)
    output_dir: str = some_text()
    resume_from: str = anything("a folder of an earlier run, or empty")

    @classmethod
    def from_run_config(cls, run_config: dict[str, Any]) -> Self:
        """Read and check every key of Flower's flat run config.

        Raises:
            ValueError: names the key, its value and what is allowed.
        """
        return cls(**checked(cls, run_config))

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
        )

    @property
    def options(self) -> Options:
        return Options(
            self.workers,
            self.memory_share,
            self.recycle_after,
            self.pool_idle,
            self.step_timeout,
        )

    @property
    def training(self) -> Training:
        return Training(
            self.local_epochs, self.batch_size, self.learning_rate, self.momentum, self.threads
        )
