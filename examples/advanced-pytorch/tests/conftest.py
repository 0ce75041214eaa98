"""What several tests need."""

import tomllib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    config = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    nested = {group: config.pop(group) for group in ("dp", "wandb")}
    return config | {f"{g}.{key}": value for g in nested for key, value in nested[g].items()}
