"""The order of tests: the files that take longest come first."""

import pytest

# So that no worker is left with one of them at the end.
FIRST = ("test_engines.py", "test_copied_app.py", "test_federation_failures.py", "test_run.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)
