"""The run config is complete and typed; wrong values are refused by name."""

import pytest
from flowertune_llm import task
from flowertune_llm.config import TRAINING_ARGUMENTS, Config


def test_defaults_are_complete(run_config):
    config = Config.from_run_config(run_config)
    assert config.model_name == "openlm-research/open_llama_3b_v2"
    assert (config.quantization, config.num_server_rounds, config.lora_r) == (4, 100, 32)
    assert run_config.keys() >= Config.may_change()
    arguments = [key for key in run_config if key.startswith(TRAINING_ARGUMENTS)]
    assert len(config.training_arguments) == len(arguments)
    assert len(config.__dataclass_fields__) == len(run_config) - len(arguments) + 1
    task.check_training_arguments(config)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("model.quantization", 3, "one of 0, 4, 8"),
        ("model.dtype", "int8", "one of auto, float32, bfloat16, float16"),
        ("strategy.fraction-train", 0.0, r"a number in \(0, 1\]"),
        ("strategy.transport-dtype", "float8", "one of float32, bfloat16, float16, int8, int4"),
        ("num-server-rounds", 1.5, r"a number of at least 1 \(whole number\)"),
    ],
)
def test_bad_value_is_refused_by_name(run_config, key, value, allowed):
    with pytest.raises(ValueError, match=rf"{key} = {value!r} is not valid; allowed: {allowed}"):
        Config.from_run_config(run_config | {key: value})


def test_missing_key_is_named(run_config):
    del run_config["model.quantization"]
    with pytest.raises(ValueError, match=r"key 'model\.quantization' is missing"):
        Config.from_run_config(run_config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max-step", 5, "is not an argument of .* close to it: max-steps"),
        ("learning-rate", 0.1, "set train.learning-rate-max and -min instead"),
        ("optim", "magic", "arguments.optim: magic is not a valid OptimizerNames"),
        ("max-steps", 1.5, "1.5 is not valid; allowed: a number of at least -1 .whole number"),
        ("weight-decay", float("nan"), "nan is not valid; allowed: a number of at least 0"),
    ],
)
def test_training_arguments_are_those_of_the_library(run_config, key, value, message):
    config = Config.from_run_config(run_config | {TRAINING_ARGUMENTS + key: value})
    with pytest.raises(ValueError, match=message):
        task.check_training_arguments(config)


def test_learning_rate_follows_a_cosine(run_config):
    settings = {"train.learning-rate-max": 1.0, "train.learning-rate-min": 0.2}
    config = Config.from_run_config(run_config | settings | {"num-server-rounds": 5})
    rates = [config.learning_rate(r) for r in range(1, 6)]
    assert rates == pytest.approx([1.0, 0.8828, 0.6, 0.3172, 0.2], abs=1e-4)
    with pytest.raises(ValueError, match=r"-min = 2.0 is above train.learning-rate-max = 1.0"):
        Config.from_run_config(run_config | settings | {"train.learning-rate-min": 2.0})


def test_what_is_averaged(run_config):
    """Adapters, if they are trained; else whole models."""

    assert not Config.from_run_config(run_config).whole_model
    for changes in ({TRAINING_ARGUMENTS + "max-steps": 0}, {"train.disable": True}):
        aggregated = Config.from_run_config(run_config | changes)
        assert aggregated.whole_model
        assert not aggregated.trains
    whole = {"model.lora.peft-lora-r": 0}
    assert Config.from_run_config(run_config | whole | {"model.quantization": 0}).trains
    with pytest.raises(ValueError, match=r"trains the whole model, which model.quantization = 4"):
        Config.from_run_config(run_config | whole)
    with pytest.raises(ValueError, match=r"dtype = 'float16' is too narrow .* use 'auto'"):
        Config.from_run_config(
            run_config | whole | {"model.quantization": 0, "model.dtype": "float16"}
        )
    with pytest.raises(ValueError, match="'discard' would lose what was trained"):
        Config.from_run_config(run_config | {"aggregation.output": "discard"})
