"""The run config as one typed, checked object."""

from dataclasses import dataclass
from typing import Any, Self

from pytorch_example.keys import (
    anything,
    at_least,
    checked,
    fraction,
    key,
    one_of,
    positive,
    some_text,
)

PERSONAL_HEAD = "personal-head"  # the record's name in a client's state and in messages

# These may differ when a run is resumed; any other key would make it another run.
MAY_CHANGE = {
    "num-server-rounds",
    "min-replies",
    "max-update-ratio",
    "round-timeout",
    "output-dir",
    "resume-from",
    "wandb.mode",
    "wandb.project",
}


@dataclass(frozen=True)
class Config:
    """One field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    dataset: str = some_text()
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(2)
    test_fraction: float = fraction(one=False)
    num_server_rounds: int = at_least(1)
    fraction_train: float = fraction()
    fraction_evaluate: float = fraction(zero=True)
    min_replies: int = at_least(1)
    max_update_ratio: float = key(lambda v: v > 1, "a number above 1")
    round_timeout: float = positive()
    local_epochs: int = at_least(1)
    batch_size: int = at_least(1)
    learning_rate: float = positive()
    learning_rate_decay: float = fraction()
    momentum: float = fraction(zero=True, one=False)
    personal_head: bool = anything("true or false")
    server_learning_rate: float = positive()
    server_momentum: float = fraction(zero=True, one=False)
    seed: int = at_least(0)
    dp_noise_multiplier: float = at_least(0, "dp.noise-multiplier")
    dp_clipping_norm: float = positive("dp.clipping-norm")
    dp_repeatable_noise: bool = anything("true or false", "dp.repeatable-noise")
    output_dir: str = some_text()
    resume_from: str = anything("a folder of an earlier run, or empty")
    checkpoint_personal_heads: bool = anything("true or false")
    wandb_mode: str = one_of("auto", "online", "offline", "disabled", name="wandb.mode")
    wandb_project: str = some_text("wandb.project")

    @property
    def private(self) -> bool:
        """Whether clients clip their updates and the server adds noise to the average."""
        return self.dp_noise_multiplier > 0

    @classmethod
    def from_run_config(cls, run_config: dict[str, Any]) -> Self:
        """Read and check every key of Flower's flat run config.

        Raises:
            ValueError: names the key, its value and what is allowed.
        """
        return cls(**checked(cls, run_config))
