"""This example's own settings; those that every example has are in kit/settings.py."""

from dataclasses import dataclass

from centralized_to_federated.kit.settings import (
    Settings,
    at_least,
    fraction,
    one_of,
    positive,
    split_or_share,
)
from centralized_to_federated.task import NETWORKS


@dataclass(frozen=True)
class Config(Settings):
    """A field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    test_split: str = split_or_share()
    partitioning: str = one_of("same", "iid", "dirichlet")
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(2)
    network: str = one_of(*NETWORKS)
    fraction_train: float = fraction()
    fraction_evaluate: float = fraction(zero=True)
    local_epochs: int = at_least(1)
    batch_size: int = at_least(1)
    learning_rate: float = positive()
    momentum: float = fraction(zero=True, one=False)
    server_momentum: float = fraction(zero=True, one=False)

    @property
    def how(self) -> tuple[str, float, int, int, str]:
        """The settings of the split between clients: the last arguments of `task.split`."""
        sizes = (self.dirichlet_alpha, self.min_partition_size)
        return self.partitioning, *sizes, self.seed, self.test_split
