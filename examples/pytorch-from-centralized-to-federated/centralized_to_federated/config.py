"""The run config as one typed, checked object."""

from dataclasses import dataclass
from typing import Any, Self

from centralized_to_federated.keys import (
    anything,
    at_least,
    checked,
    fraction,
    key,
    one_of,
    positive,
    some_text,
)
from centralized_to_federated.task import NETWORKS

# These may differ when a run is resumed; any other key would make it another run.
MAY_CHANGE = {
    *("num-server-rounds", "min-replies", "max-update-ratio", "round-timeout"),
    *("output-dir", "resume-from"),
}


@dataclass(frozen=True)
class Config:
    """One field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    dataset: str = some_text()
    partitioning: str = one_of("same", "iid", "dirichlet")
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(2)
    network: str = one_of(*NETWORKS)
    num_server_rounds: int = at_least(1)
    fraction_train: float = fraction()
    fraction_evaluate: float = fraction(zero=True)
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
