"""The run config as one typed, checked object."""

from dataclasses import dataclass, field, fields
from typing import Any, Self


def key(check: Any, allowed: str, name: str = "") -> Any:
    """Declare a run-config key: a test of its value and, for the error, what is allowed."""
    return field(metadata={"check": check, "allowed": allowed, "name": name})


def at_least(low: float, name: str = "") -> Any:
    return key(lambda v: low <= v < float("inf"), f"a number of at least {low}", name)


def fraction(*, zero: bool = False, one: bool = True) -> Any:
    bounds = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    return key(
        lambda v: (v >= 0 if zero else v > 0) and (v <= 1 if one else v < 1),
        f"a number in {bounds}",
    )


def positive(name: str = "") -> Any:
    return key(lambda v: 0 < v < float("inf"), "a number above 0", name)


def some_text(name: str = "") -> Any:
    return key(lambda v: v.strip() != "", "a non-empty text", name)


PERSONAL_HEAD = "personal-head"  # the record's name in a client's state and in messages

WANDB_MODES = ("auto", "online", "offline", "disabled")


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
    min_partition_size: int = key(lambda v: v >= 2, "a whole number of at least 2")
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
    personal_head: bool = key(lambda v: True, "true or false")
    server_learning_rate: float = positive()
    server_momentum: float = fraction(zero=True, one=False)
    seed: int = at_least(0)
    dp_noise_multiplier: float = at_least(0, "dp.noise-multiplier")
    dp_clipping_norm: float = positive("dp.clipping-norm")
    dp_repeatable_noise: bool = key(lambda v: True, "true or false", "dp.repeatable-noise")
    output_dir: str = some_text()
    resume_from: str = key(lambda v: True, "a folder of an earlier run, or empty")
    checkpoint_personal_heads: bool = key(lambda v: True, "true or false")
    wandb_mode: str = key(WANDB_MODES.__contains__, f"one of {WANDB_MODES}", "wandb.mode")
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
        values = {}
        for f in fields(cls):
            name = f.metadata["name"] or f.name.replace("_", "-")
            if name not in run_config:
                raise ValueError(f"run config: key '{name}' is missing; pyproject.toml lists all")
            value = run_config[name]
            if f.type is float and type(value) is int:
                value = float(value)
            if type(value) is not f.type or not f.metadata["check"](value):
                kind = {int: "whole number", float: "number", bool: "truth value", str: "text"}
                raise ValueError(
                    f"run config: {name} = {run_config[name]!r} is not valid; "
                    f"allowed: {f.metadata['allowed']} ({kind[f.type]})"
                )
            values[f.name] = value
        return cls(**values)
