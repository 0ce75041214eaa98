"""The run config as one typed, checked object."""

import math
from dataclasses import dataclass, field
from typing import Any, Self

from flowertune_llm.keys import (
    anything,
    at_least,
    checked,
    fraction,
    key,
    one_of,
    positive,
    some_text,
)

TRAINING_ARGUMENTS = "train.training-arguments."
# These may differ when a run is resumed; any other key would make it another run.
MAY_CHANGE = {
    *("num-server-rounds", "output-dir", "resume-from", "wandb.mode", "wandb.project"),
    *("strategy.min-replies", "strategy.max-update-ratio", "strategy.round-timeout"),
    *("train.save-every-round", "model.device-map", "aggregation.in-flight"),
    *("aggregation.on-failure", "aggregation.client-dir", "profile.enabled"),
}


@dataclass(frozen=True)
class Config:
    """One field for each key of `[tool.flwr.app.config]`; pyproject.toml explains them."""

    dataset: str = some_text()
    test_examples: int = at_least(1)
    model_name: str = some_text("model.name")
    quantization: int = one_of(0, 4, 8, name="model.quantization")
    dtype: str = one_of("float32", "bfloat16", "float16", name="model.dtype")
    device_map: str = some_text("model.device-map")
    gradient_checkpointing: bool = anything("true or false", "model.gradient-checkpointing")
    prompt_template: str = one_of("vicuna", "alpaca", "chat", name="model.prompt-template")
    lora_r: int = at_least(0, "model.lora.peft-lora-r")
    lora_alpha: int = at_least(1, "model.lora.peft-lora-alpha")
    lora_dropout: float = fraction("model.lora.peft-lora-dropout", zero=True, one=False)
    target_modules: str = anything("names and commas, or empty", "model.lora.target-modules")
    learning_rate_max: float = positive("train.learning-rate-max")
    learning_rate_min: float = at_least(0, "train.learning-rate-min")
    seq_length: int = at_least(8, "train.seq-length")
    evaluate_every_round: int = at_least(0, "train.evaluate-every-round")
    save_every_round: int = at_least(1, "train.save-every-round")
    train_disable: bool = anything("true or false", "train.disable")
    training_arguments: tuple[tuple[str, Any], ...] = field()  # all below TRAINING_ARGUMENTS
    num_server_rounds: int = at_least(1)
    fraction_train: float = fraction("strategy.fraction-train")
    min_replies: int = at_least(1, "strategy.min-replies")
    max_update_ratio: float = key(lambda v: v > 1, "a number above 1", "strategy.max-update-ratio")
    round_timeout: float = positive("strategy.round-timeout")
    transport_dtype: str = one_of(
        *("float32", "bfloat16", "float16"), name="strategy.transport-dtype"
    )
    aggregation_mode: str = one_of("layerwise", "all_at_once", name="aggregation.mode")
    slice_megabytes: int = at_least(1, "aggregation.slice-megabytes")
    shard_megabytes: int = at_least(1, "aggregation.shard-megabytes")
    in_flight: int = at_least(1, "aggregation.in-flight")
    on_failure: str = one_of("restart", "stop", name="aggregation.on-failure")
    aggregation_output: str = one_of("checkpoint", "discard", name="aggregation.output")
    client_dir: str = anything("a folder, or empty", "aggregation.client-dir")
    seed: int = at_least(0)
    output_dir: str = some_text()
    resume_from: str = anything("a folder of an earlier run, or empty")
    profile_enabled: bool = anything("true or false", "profile.enabled")
    wandb_mode: str = one_of("disabled", "offline", "online", name="wandb.mode")
    wandb_project: str = some_text("wandb.project")

    @classmethod
    def from_run_config(cls, run_config: dict[str, Any]) -> Self:
        """Read and check every key of Flower's flat run config.

        Raises:
            ValueError: names the key, its value and what is allowed.
        """
        values = checked(cls, run_config)
        values["training_arguments"] = tuple(
            (k.removeprefix(TRAINING_ARGUMENTS).replace("-", "_"), v)
            for k, v in sorted(run_config.items())
            if k.startswith(TRAINING_ARGUMENTS)
        )
        if values["learning_rate_min"] > values["learning_rate_max"]:
            raise ValueError(
                f"run config: train.learning-rate-min = {values['learning_rate_min']} is above "
                f"train.learning-rate-max = {values['learning_rate_max']}"
            )
        config = cls(**values)
        if config.trains and not config.lora_r and config.quantization:
            raise ValueError(
                "run config: model.lora.peft-lora-r = 0 trains the whole model, which "
                f"model.quantization = {config.quantization} cannot; set it to 0"
            )
        if config.trains and config.aggregation_output == "discard":
            raise ValueError(
                "run config: aggregation.output = 'discard' would lose what was trained; it is "
                "for measurements with train.disable = true"
            )
        return config

    @property
    def trains(self) -> bool:
        """Tell whether clients train, or only serve the model that they have."""
        return not self.train_disable and dict(self.training_arguments).get("max_steps") != 0

    @property
    def whole_model(self) -> bool:
        """Tell whether whole models are averaged, not adapters."""
        return not self.trains or self.lora_r == 0

    def learning_rate(self, server_round: int) -> float:
        """Return the rate of a round: the cosine from the largest to the smallest."""
        done = (server_round - 1) / max(self.num_server_rounds - 1, 1)
        span = self.learning_rate_max - self.learning_rate_min
        return self.learning_rate_min + span * (1 + math.cos(math.pi * min(done, 1.0))) / 2
