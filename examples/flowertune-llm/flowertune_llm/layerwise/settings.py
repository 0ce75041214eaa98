"""The keys of this wing, and those of the app that it uses."""

from dataclasses import dataclass
from typing import Any

from flowertune_llm.kit.settings import Settings, at_least, one_of, true_or_false


@dataclass(frozen=True)
class LayerwiseSettings(Settings):
    """Further keys of an app's settings; pyproject.toml explains them."""

    train_disable: bool = true_or_false("train.disable")
    aggregation_mode: str = one_of("layerwise", "all_at_once", name="aggregation.mode")
    slice_megabytes: int = at_least(1, "aggregation.slice-megabytes")
    shard_megabytes: int = at_least(1, "aggregation.shard-megabytes")
    in_flight: int = at_least(1, "aggregation.in-flight", may_change=True)
    on_failure: str = one_of("restart", "stop", name="aggregation.on-failure", may_change=True)
    aggregation_output: str = one_of("checkpoint", "discard", name="aggregation.output")

    # The app has these keys.
    client_dir: str
    model_name: str
    quantization: int
    dtype: str
    lora_r: int
    save_every_round: int
    training_arguments: tuple[tuple[str, Any], ...]
    transport_dtype: str

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            ValueError: names the keys.
        """
        if self.trains and not self.lora_r and self.quantization:
            raise ValueError(
                f"run config: {self.key_of('lora_r')} = 0 trains the whole model, which "
                f"{self.key_of('quantization')} = {self.quantization} cannot; set it to 0"
            )
        if self.trains and not self.lora_r and self.dtype == "float16":
            raise ValueError(
                f"run config: {self.key_of('dtype')} = 'float16' is too narrow for the gradients "
                f"of a whole model ({self.key_of('lora_r')} = 0); use 'auto', 'bfloat16' or "
                "'float32'"
            )
        if self.trains and self.aggregation_output == "discard":
            raise ValueError(
                "run config: aggregation.output = 'discard' would lose what was trained; it is "
                "for measurements with train.disable = true"
            )

    @property
    def trains(self) -> bool:
        """Tell whether clients train, or only serve their own models."""
        return not self.train_disable and dict(self.training_arguments).get("max_steps") != 0

    @property
    def whole_model(self) -> bool:
        """Tell whether whole models are averaged, instead of adapters."""
        return not self.trains or self.lora_r == 0

    @property
    def rounds(self) -> int:
        """Number of rounds: 1 without training, since averaging again would change nothing."""
        return self.num_server_rounds if self.trains else 1

    @property
    def slice_bytes(self) -> int:
        return self.slice_megabytes * 2**20
