"""The run config as one typed, checked object."""

from dataclasses import dataclass
from typing import Any, Self

from vit_finetune.keys import (
    anything,
    at_least,
    checked,
    fraction,
    key,
    one_of,
    positive,
    some_text,
)

# These may differ when a run is resumed; any other key would make it another run.
MAY_CHANGE = {
    *(
        "num-server-rounds",
        "min-replies",
        "max-update-ratio",
        "round-timeout",
        "output-dir",
        "resume-from",
    ),
    *("cache-dir", "feature-batch-size"),
}


@dataclass(frozen=True)
class Config:
    """One field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    dataset: str = some_text()
    partitioning: str = one_of("iid", "dirichlet")
    dirichlet_alpha: float = positive()
    min_partition_size: int = at_least(2)
    test_fraction: float = fraction(zero=True, one=False)
    model_name: str = some_text("model.name")
    model_weights: str = some_text("model.weights")
    model_normalization: str = one_of("imagenet", "half", name="model.normalization")
    image_size: int = key(lambda v: 16 <= v <= 1024, "a whole number from 16 to 1024")
    precision: str = one_of("auto", "float32", "bfloat16")
    feature_cache: bool = anything("true or false")
    cache_dir: str = anything("a folder, or empty for the default")
    feature_batch_size: int = at_least(1)
    random_crop_min_area: float = fraction()
    num_server_rounds: int = at_least(1)
    fraction_train: float = fraction()
    fraction_evaluate: float = fraction(zero=True)
    min_replies: int = at_least(1)
    max_update_ratio: float = key(lambda v: v > 1, "a number above 1")
    round_timeout: float = positive()
    head_start: str = one_of("zero", "closed-form")
    head_start_shrinkage: float = fraction()
    local_epochs: int = at_least(1)
    batch_size: int = at_least(1)
    learning_rate: float = positive()
    momentum: float = fraction(zero=True, one=False)
    label_smoothing: float = fraction(zero=True, one=False)
    server_learning_rate: float = positive()
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
