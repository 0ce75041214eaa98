"""What several tests need."""

import os
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import flatten_dict

from .running import DECLARED


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    return flatten_dict(DECLARED["app"]["config"])


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real datasets, named by FLOWER_EXAMPLES_DATA."""
    name = os.environ.get("FLOWER_EXAMPLES_DATA", "")
    if not (name and Path(name, "fashion_mnist").is_dir()):
        pytest.skip("FLOWER_EXAMPLES_DATA names no folder with fashion_mnist/")
    return Path(name)
