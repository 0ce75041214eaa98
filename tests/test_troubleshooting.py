"""The messages in the troubleshooting tables can be printed, by this code or its packages."""

import re
from functools import cache
from pathlib import Path

import flwr
import pytest
from repository import ROOT, example_folder, example_names

# Parts of a message that stand for a value: `…`, a quoted word, "nan".
VALUE = r"…|'[^']*'|\bnan\b"
# Messages of PyTorch and Ray, most of which are not in Python files.
COMPILED = """CUDA out of memory
Failed to connect to GCS at address
Failed to establish connection to the metrics exporter agent
AF_UNIX path length cannot exceed 107 bytes"""
PAGE = ROOT / "docs" / "troubleshooting.md"


@cache
def printed_by(folder: Path) -> str:
    """Return the code of a folder, with strings joined that continue in the next line.

    A key whose name differs between the examples has the name that most of them use.
    """
    files = [path for path in sorted(folder.rglob("*.py")) if "tests" not in path.parts]
    text = re.sub(r"[\"']\s*\n\s*f?[\"']", "", "\n".join(path.read_text() for path in files))
    return re.sub(r"\{[\w.]+\.key_of\([\"'](\w+)[\"']\)\}", lambda m: m[1].replace("_", "-"), text)


def unknown(page: Path, *sources: str) -> list[str]:
    """Return the messages in backticks in a page's tables that no source can print."""
    tables = re.findall(r"^\| message \|.*\n.*\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE)
    causes = re.findall(r"^\| (.*?) \| ", "".join(tables), re.MULTILINE)
    messages = [found for cause in causes for found in re.findall(r"`([^`]+)`", cause)]
    sources += (printed_by(Path(flwr.__file__).parent), COMPILED)

    def known(message: str) -> bool:
        parts = re.split(VALUE, message.replace("strategy.", ""))
        return any(all(part.strip() in text for part in parts) for text in sources)

    return [message for message in messages if not known(message)]


def test_each_message_of_the_page_is_in_the_code():
    folders = [ROOT / name for name in ("kit", "examples", "tools")]
    assert "| message |" in PAGE.read_text()
    assert not unknown(PAGE, *map(printed_by, folders), (ROOT / "Makefile").read_text())


@pytest.mark.parametrize("example", example_names())
def test_each_message_of_an_example_is_in_its_code(example):
    folder = example_folder(example)
    assert "| message |" in (folder / "README.md").read_text()
    for page in folder.rglob("*.md"):
        assert not unknown(page, printed_by(folder)), page
