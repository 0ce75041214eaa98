"""Wrong values are refused by name, with what is allowed."""

import tomllib
from pathlib import Path

import pytest
from pytorch_example.config import Config

APP = Path(__file__).parents[1]


def run_config() -> dict:
    flower = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    wandb = flower.pop("wandb")
    return flower | {f"wandb.{key}": value for key, value in wandb.items()}


def test_defaults_are_valid():
    config = Config.from_run_config(run_config())
    assert config.num_server_rounds == 10
    assert config.wandb_mode == "auto"


def test_every_key_is_read():
    assert len(run_config()) == len(Config.__dataclass_fields__)


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
        ("wandb.mode", "sometimes"),
    ],
)
def test_wrong_values_are_named(key, value):
    with pytest.raises(ValueError, match=f"{key} = {value!r} is not valid; allowed: "):
        Config.from_run_config(run_config() | {key: value})


def test_missing_key_is_named():
    config = run_config()
    del config["seed"]
    with pytest.raises(ValueError, match="'seed' is missing"):
        Config.from_run_config(config)


def test_whole_numbers_serve_as_numbers():
    assert Config.from_run_config(run_config() | {"momentum": 0}).momentum == 0.0
