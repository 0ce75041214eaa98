"""What several tests need."""

import os
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import flatten_dict
from gpu_scaling.dataset import Source

from .running import DECLARED


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    return flatten_dict(DECLARED["app"]["config"])


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Source:
    """The embedded digits for 10 clients, in a cache of their own."""
    folder = tmp_path_factory.mktemp("cache")
    return Source("digits", 10, "iid", 0.5, 2, 42, str(folder)).prepare()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real datasets, named by FLOWER_EXAMPLES_DATA."""
    name = os.environ.get("FLOWER_EXAMPLES_DATA", "")
    if not (name and Path(name, "cifar10").is_dir()):
        pytest.skip("FLOWER_EXAMPLES_DATA names no folder with cifar10/")
    return Path(name)
