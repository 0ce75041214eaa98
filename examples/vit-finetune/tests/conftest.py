"""What several tests need."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vit_finetune.config import Config
from vit_finetune.kit import testing


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    return testing.run_config()


@pytest.fixture
def offline(run_config, tmp_path) -> Callable[..., Config]:
    """Make the config of offline.toml, in float32, with a cache of its own, and changes."""
    changed = testing.offline() | {"precision": "float32", "cache-dir": str(tmp_path / "cache")}
    config = Config.from_run_config(run_config | changed)
    return lambda **changes: dataclasses.replace(config, **changes)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real datasets, named by FLOWER_EXAMPLES_DATA."""
    return testing.named_folder("FLOWER_EXAMPLES_DATA", "oxford-flowers")
