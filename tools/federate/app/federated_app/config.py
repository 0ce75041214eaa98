"""This app's own settings; those that every app has are in kit/settings.py."""

from dataclasses import dataclass

from federated_app.kit.settings import Settings, anything, at_least, fraction, one_of, positive


@dataclass(frozen=True)
class Config(Settings):
    """A field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    dataset: str = one_of("own")
    partitioning: str = one_of("same", "iid", "dirichlet")
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(2)
    fraction_train: float = fraction()
    fraction_evaluate: float = fraction(zero=True)
    local_epochs: int = at_least(0)
    arguments: str = anything("words as on the script's command line, or none")
