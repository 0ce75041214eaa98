"""Fixtures of several tests."""

from pathlib import Path
from typing import Any

import pytest
from pytorch_example.kit import testing


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    return testing.run_config()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real datasets, named by FLOWER_EXAMPLES_DATA."""
    return testing.named_folder("FLOWER_EXAMPLES_DATA", "fashion_mnist")
