"""What several tests need."""

import dataclasses
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import flatten_dict
from vit_finetune.config import Config

from .running import APP, DECLARED


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    return flatten_dict(DECLARED["app"]["config"])


@pytest.fixture
def offline(run_config, tmp_path) -> Callable[..., Config]:
    """Make the config of offline.toml, in float32, with a cache of its own, and changes."""
    changed = flatten_dict(tomllib.loads((APP / "offline.toml").read_text()))
    changed |= {"precision": "float32", "cache-dir": str(tmp_path / "cache")}
    config = Config.from_run_config(run_config | changed)
    return lambda **changes: dataclasses.replace(config, **changes)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real datasets, named by FLOWER_EXAMPLES_DATA."""
    name = os.environ.get("FLOWER_EXAMPLES_DATA", "")
    if not (name and Path(name, "oxford-flowers").is_dir()):
        pytest.skip("FLOWER_EXAMPLES_DATA names no folder with oxford-flowers/")
    return Path(name)
