"""The order of tests: the longest files come first."""

import gc

import pytest

# Else one worker would be left with one of them at the end.
FIRST = ("exam", "run", "federate", "copied_app", "engines", "interrupts", "federation_failures")
RANKS = {f"test_{name}.py": rank for rank, name in enumerate(FIRST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: RANKS.get(item.path.name, len(FIRST)))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections, of which training starts many."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
