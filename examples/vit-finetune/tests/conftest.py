"""What several tests need."""

import dataclasses
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vit_finetune.config import Config


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    return flatten(tomllib.loads(text)["tool"]["flwr"]["app"]["config"])


@pytest.fixture
def offline(run_config, tmp_path) -> Callable[..., Config]:
    """Make the config of offline.toml, in float32, with a cache of its own, and changes."""
    text = (Path(__file__).parents[1] / "offline.toml").read_text()
    changed = flatten(tomllib.loads(text))
    changed |= {"precision": "float32", "cache-dir": str(tmp_path / "cache")}
    config = Config.from_run_config(run_config | changed)
    return lambda **changes: dataclasses.replace(config, **changes)


@pytest.fixture
def real_data() -> Path:
    """The folder of real datasets and weights."""
    if not os.environ.get("FLOWER_EXAMPLES_DATA"):
        pytest.skip("FLOWER_EXAMPLES_DATA is not set: no folder of real datasets")
    return Path(os.environ["FLOWER_EXAMPLES_DATA"])
