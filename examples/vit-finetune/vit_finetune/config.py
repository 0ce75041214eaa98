"""This example's own settings; those that every example has are in kit/settings.py."""

from dataclasses import dataclass

from vit_finetune.kit.settings import (
    Settings,
    anything,
    at_least,
    fraction,
    key,
    one_of,
    positive,
    some_text,
    split_or_share,
    true_or_false,
)
from vit_finetune.models import NORMALIZATIONS


@dataclass(frozen=True)
class Config(Settings):
    """A field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    test_split: str = split_or_share()
    partitioning: str = one_of("iid", "dirichlet")
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(2)
    test_fraction: float = fraction(zero=True, one=False)
    model_name: str = some_text("model.name")
    model_weights: str = some_text("model.weights")
    model_normalization: str = one_of(*NORMALIZATIONS, name="model.normalization")
    image_size: int = key(lambda v: 16 <= v <= 1024, "a whole number from 16 to 1024")
    precision: str = one_of("auto", "float32", "bfloat16")
    feature_cache: bool = true_or_false()
    cache_dir: str = anything("a folder, or empty for the default", may_change=True)
    feature_batch_size: int = at_least(1, may_change=True)
    random_crop_min_area: float = fraction()
    fraction_train: float = fraction()
    fraction_evaluate: float = fraction(zero=True)
    head_start: str = one_of("zero", "closed-form")
    head_start_shrinkage: float = fraction()
    local_epochs: int = at_least(1)
    batch_size: int = at_least(1)
    learning_rate: float = positive()
    momentum: float = fraction(zero=True, one=False)
    label_smoothing: float = fraction(zero=True, one=False)
    server_learning_rate: float = positive()
    server_momentum: float = fraction(zero=True, one=False)

    @property
    def closed_form(self) -> bool:
        """Whether the head is solved from sums of all clients before the first round."""
        return self.head_start == "closed-form"
