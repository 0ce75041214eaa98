"""Which tests one worker runs: those of a file, which share what is slow, but new apps apart."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        apart = item.path.name == "test_copied_app.py"
        item.add_marker(pytest.mark.xdist_group(item.name if apart else item.path.name))
