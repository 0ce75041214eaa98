"""Which tests one worker runs, and which come first."""

import pytest

# Fixtures that take long and serve several tests of a file, and files that keep what they asked.
SHARED = {"finished", "profiled", "pool", "cache", "digits", "small_model"}
TOGETHER = {"test_readme_commands.py"}
# What takes longest comes first, so that no worker is left with it at the end.
LONG = ("test_copied_app.py", "test_engines.py", "test_federation_failures.py", "test_run.py")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in TOGETHER or SHARED & set(item.fixturenames):
            group = f"{item.path.parents[1].name} {item.path.stem}"
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.name not in LONG)
