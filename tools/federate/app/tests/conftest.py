"""What several tests need."""

from typing import Any

import pytest
from federated_app.kit import testing


@pytest.fixture
def run_config() -> dict[str, Any]:
    """The run config of pyproject.toml, flat, as an app receives it."""
    return testing.run_config()
