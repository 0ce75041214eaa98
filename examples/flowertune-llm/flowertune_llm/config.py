"""This example's own settings; those that every example has are in kit/settings.py."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Self

from flowertune_llm.kit.settings import (
    Settings,
    above,
    anything,
    at_least,
    fraction,
    one_of,
    positive,
    some_text,
    true_or_false,
)
from flowertune_llm.layerwise.settings import LayerwiseSettings  # layerwise
from flowertune_llm.prompts import TEMPLATES

TRAINING_ARGUMENTS = "train.training-arguments."
DTYPES = ("float32", "bfloat16", "float16")
WHOLE_NUMBERS = ("int8", "int4")


@dataclass(frozen=True)
class Config(
    LayerwiseSettings,  # layerwise
    Settings,
):
    """A field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    test_examples: int = at_least(1)
    model_name: str = some_text("model.name")
    quantization: int = one_of(0, 4, 8, name="model.quantization")
    dtype: str = one_of("auto", *DTYPES, name="model.dtype")
    device_map: str = some_text("model.device-map", may_change=True)
    gradient_checkpointing: bool = true_or_false("model.gradient-checkpointing")
    prompt_template: str = one_of(*TEMPLATES, "chat", name="model.prompt-template")
    lora_r: int = at_least(0, "model.lora.peft-lora-r")
    lora_alpha: int = at_least(1, "model.lora.peft-lora-alpha")
    lora_dropout: float = fraction("model.lora.peft-lora-dropout", zero=True, one=False)
    target_modules: str = anything("names and commas, or empty", "model.lora.target-modules")
    learning_rate_max: float = positive("train.learning-rate-max")
    learning_rate_min: float = at_least(0, "train.learning-rate-min")
    seq_length: int = at_least(8, "train.seq-length")
    evaluate_every_round: int = at_least(0, "train.evaluate-every-round")
    save_every_round: int = at_least(1, "train.save-every-round", may_change=True)
    training_arguments: tuple[tuple[str, Any], ...] = field()  # keys below TRAINING_ARGUMENTS
    fraction_train: float = fraction("strategy.fraction-train")
    min_replies: int = at_least(1, "strategy.min-replies", may_change=True)
    max_update_ratio: float = above(1, "strategy.max-update-ratio", may_change=True)
    round_timeout: float = positive("strategy.round-timeout", may_change=True)
    transport_dtype: str = one_of(*DTYPES, *WHOLE_NUMBERS, name="strategy.transport-dtype")
    outer_learning_rate: float = positive("strategy.outer-learning-rate")
    outer_momentum: float = fraction("strategy.outer-momentum", zero=True, one=False)
    client_dir: str = anything("a folder, or empty", "client-dir", may_change=True)
    profile_enabled: bool = true_or_false("profile.enabled", may_change=True)  # profiler
    wandb_mode: str = one_of("disabled", "offline", "online", name="wandb.mode", may_change=True)
    wandb_project: str = some_text("wandb.project", may_change=True)

    @classmethod
    def checked(cls, run_config: dict[str, Any]) -> dict[str, Any]:
        """Return the checked values, with all training arguments."""
        values = super().checked(run_config)
        values["training_arguments"] = tuple(
            (name.removeprefix(TRAINING_ARGUMENTS).replace("-", "_"), value)
            for name, value in sorted(run_config.items())
            if name.startswith(TRAINING_ARGUMENTS)
        )
        low, high = values["learning_rate_min"], values["learning_rate_max"]
        if low > high:
            raise ValueError(
                f"run config: {cls.key_of('learning_rate_min')} = {low} is above "
                f"{cls.key_of('learning_rate_max')} = {high}"
            )
        return values

    def at(self, partition: int) -> Self:
        """Return the settings of one client; the server uses those of client 0."""
        name = self.model_name.replace("{partition}", str(partition))
        return replace(self, model_name=name)

    @property
    def outer_step(self) -> bool:
        """Tell whether the server takes a step of its own after averaging."""
        return (self.outer_learning_rate, self.outer_momentum) != (1.0, 0.0)

    def learning_rate(self, server_round: int) -> float:
        """Return a round's learning rate, on a cosine from the largest to the smallest."""
        done = (server_round - 1) / max(self.num_server_rounds - 1, 1)
        span = self.learning_rate_max - self.learning_rate_min
        return self.learning_rate_min + span * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    def tests(self, server_round: int) -> bool:
        """Tell whether the server tests the model in this round."""
        return self.in_turn(server_round, self.evaluate_every_round)

    def saves(self, server_round: int) -> bool:
        """Tell whether this round's adapter is written."""
        return server_round > 0 and self.in_turn(server_round, self.save_every_round)

    def in_turn(self, server_round: int, every: int) -> bool:
        return every > 0 and (server_round % every == 0 or server_round == self.num_server_rounds)
