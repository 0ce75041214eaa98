"""The order of tests: the longest files come first."""

import gc

import pytest

# Else one worker would be left with one of them at the end.
FIRST = ("test_engines.py", "test_copied_app.py", "test_federation_failures.py", "test_run.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections, of which training starts many."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
