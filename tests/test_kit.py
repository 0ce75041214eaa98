"""The kit stands in every example word for word, needs no reading, and imports no app."""

import ast
import subprocess
from pathlib import Path

import pytest
from repository import ROOT, example_folder, example_names, package_of

FIRST_LINE = (
    "# Part of the kit: the same in every example, word for word. "
    "You need not read it to change one."
)


def files(kit: Path) -> dict[str, bytes]:
    """Return the content of each file of a kit."""
    paths = [path for path in kit.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {str(path.relative_to(kit)): path.read_bytes() for path in paths}


def test_every_example_has_the_same_kit():
    original, copies = files(ROOT / "kit"), []
    for name in example_names():
        app = example_folder(name)
        copies.append(files(app / package_of(app) / "kit"))
    assert len(copies) == 5
    assert len(original) > 20
    assert all(copy == original for copy in copies), "run `make kit`"


@pytest.mark.parametrize("path", sorted((ROOT / "kit").rglob("*.py")), ids=lambda path: path.name)
def test_a_file_says_what_it_is_and_imports_no_app(path):
    text = path.read_text()
    assert text.startswith(FIRST_LINE + "\n")
    assert not [name for name in example_names() if name in text]
    apps = {package_of(example_folder(name)) for name in example_names()} | {"kit"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & apps
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] not in apps


def test_git_knows_the_copies():
    """An ignored kit would be missing from a clone."""
    command = ["git", "check-ignore", *(str(p) for p in ROOT.glob("examples/*/*/kit/loop.py"))]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == ""
