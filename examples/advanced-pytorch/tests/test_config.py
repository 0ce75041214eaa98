"""The run config: complete, typed, refused by name where it is wrong."""

import pytest
from pytorch_example.config import MAY_CHANGE, Config


def test_defaults_are_complete(run_config):
    config = Config.from_run_config(run_config)
    assert config.num_server_rounds == 10
    assert config.wandb_mode == "auto"
    assert run_config.keys() >= MAY_CHANGE
    assert len(config.__dataclass_fields__) == len(run_config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset", " "),
        ("dirichlet-alpha", 0),
        ("min-partition-size", 1),
        ("test-fraction", 1.0),
        ("num-server-rounds", 0),
        ("num-server-rounds", 2.5),
        ("num-server-rounds", True),
        ("fraction-train", 0.0),
        ("fraction-evaluate", 1.1),
        ("min-replies", 0),
        ("round-timeout", float("inf")),
        ("batch-size", "16"),
        ("learning-rate", float("nan")),
        ("learning-rate-decay", 1.01),
        ("momentum", 1.0),
        ("personal-head", "yes"),
        ("server-momentum", -0.1),
        ("seed", -1),
        ("dp.noise-multiplier", -0.1),
        ("dp.noise-multiplier", float("inf")),
        ("dp.clipping-norm", 0.0),
        ("dp.repeatable-noise", "yes"),
        ("wandb.mode", "sometimes"),
    ],
)
def test_bad_value_is_refused_by_name(run_config, key, value):
    with pytest.raises(ValueError, match=f"{key} = {value!r} is not valid; allowed: "):
        Config.from_run_config(run_config | {key: value})


def test_missing_key_is_named(run_config):
    del run_config["seed"]
    with pytest.raises(ValueError, match="key 'seed' is missing"):
        Config.from_run_config(run_config)


def test_whole_numbers_serve_as_numbers(run_config):
    assert Config.from_run_config(run_config | {"momentum": 0}).momentum == 0.0
