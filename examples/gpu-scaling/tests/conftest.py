"""What several tests need."""

from pathlib import Path
from typing import Any

import pytest
from gpu_scaling.dataset import Source
from gpu_scaling.kit import testing


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    return testing.run_config()


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Source:
    """The embedded digits for 10 clients, in a cache of their own."""
    folder = tmp_path_factory.mktemp("cache")
    return Source("digits", 10, "iid", 0.5, 2, 42, str(folder)).prepare()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real datasets, named by FLOWER_EXAMPLES_DATA."""
    return testing.named_folder("FLOWER_EXAMPLES_DATA", "cifar10")
