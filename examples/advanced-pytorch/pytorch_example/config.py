"""This example's own settings; those that every example has are in kit/settings.py."""

from dataclasses import dataclass

from pytorch_example.kit.settings import (
    Settings,
    at_least,
    fraction,
    one_of,
    positive,
    some_text,
    split_or_share,
    true_or_false,
)


@dataclass(frozen=True)
class Config(Settings):
    """A field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    test_split: str = split_or_share()
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(2)
    test_fraction: float = fraction(one=False)
    fraction_train: float = fraction()
    fraction_evaluate: float = fraction(zero=True)
    local_epochs: int = at_least(1)
    batch_size: int = at_least(1)
    learning_rate: float = positive()
    learning_rate_decay: float = fraction()
    momentum: float = fraction(zero=True, one=False)
    personal_head: bool = true_or_false()
    server_learning_rate: float = positive()
    server_momentum: float = fraction(zero=True, one=False)
    dp_noise_multiplier: float = at_least(0, "dp.noise-multiplier")
    dp_clipping_norm: float = positive("dp.clipping-norm")
    dp_delta: float = fraction("dp.delta", one=False, may_change=True)
    dp_repeatable_noise: bool = true_or_false("dp.repeatable-noise")
    checkpoint_personal_heads: bool = true_or_false()
    wandb_mode: str = one_of(
        *("auto", "online", "offline", "disabled"), name="wandb.mode", may_change=True
    )
    wandb_project: str = some_text("wandb.project", may_change=True)

    @property
    def private(self) -> bool:
        """Whether clients clip their updates and the server adds noise to the average."""
        return self.dp_noise_multiplier > 0
