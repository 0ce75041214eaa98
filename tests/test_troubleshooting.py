"""The messages in the troubleshooting tables can be printed, by this code or its packages."""

import re
from functools import cache
from itertools import combinations
from pathlib import Path

import flwr
import pytest
import ray
from repository import ROOT, example_folder, example_names

# What a message may have a value in place of: `…`, a quoted word, "nan".
VALUE = r"…|'[^']*'|\bnan\b"
# PyTorch's, which a build without CUDA does not hold.
OF_PYTORCH = "CUDA out of memory"
PAGE = ROOT / "docs" / "troubleshooting.md"


@cache
def printed_by(folder: Path) -> str:
    """Return the code of a folder, with the parts of a string put together.

    That is, strings that go on in the next line, and the attributes in a message of rounds.py.
    """
    files = [path for path in sorted(folder.rglob("*.py")) if "tests" not in path.parts]
    text = "\n".join(path.read_text() for path in files)
    text = text.replace("{self.silence}", "no reply").replace("{self.section}", "")
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)


@cache
def printed_by_ray() -> str:
    return (Path(ray.__file__).parent / "_raylet.so").read_bytes().decode(errors="ignore")


def causes(page: Path) -> list[str]:
    """Return the first column of a page's troubleshooting tables."""
    text = page.read_text().split("## Troubleshooting\n")[-1].split("\n## What to change")[0]
    return re.findall(r"^\| (?!message |---)(.*?) \| ", text, re.MULTILINE)


def unknown(page: Path, *sources: str) -> list[str]:
    """Return the messages of a page, in backticks, that no source can print."""
    messages = [found for cause in causes(page) for found in re.findall(r"`([^`]+)`", cause)]
    assert len(messages) >= 9
    sources += (printed_by(Path(flwr.__file__).parent), printed_by_ray(), OF_PYTORCH)

    def known(message: str) -> bool:
        parts = re.split(VALUE, message.replace("strategy.", ""))
        return any(all(part.strip() in text for part in parts) for text in sources)

    return [message for message in messages if not known(message)]


def test_each_message_of_the_page_is_in_the_code():
    makefile = (ROOT / "Makefile").read_text()
    own = (printed_by(ROOT / "examples"), printed_by(ROOT / "tools"))
    assert not unknown(PAGE, *own, makefile)


@pytest.mark.parametrize("example", example_names())
def test_each_message_of_an_example_is_in_its_code(example):
    folder = example_folder(example)
    assert not unknown(folder / "README.md", printed_by(folder))


def test_rows_of_several_examples_come_in_one_order():
    tables = [causes(example_folder(name) / "README.md") for name in example_names()]
    for one, other in combinations(tables, 2):
        assert [row for row in one if row in other] == [row for row in other if row in one]
