"""The messages in docs/troubleshooting.md are ones that this code, Flower's or Ray's can print."""

import re
from pathlib import Path

import flwr
import ray
from repository import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"


def printed_by(folder: Path) -> str:
    """Return the code of a folder, strings that go on in the next line put together."""
    files = [path for path in sorted(folder.rglob("*.py")) if "tests" not in path.parts]
    text = "\n".join(path.read_text() for path in files)
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)


def test_each_message_is_in_the_code():
    """In the tables' first column, in backticks; `…` and "nan" stand for what varies."""
    cells = re.findall(r"^\| (.*?) \| ", PAGE.read_text(), re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) >= 15
    sources = [printed_by(ROOT / "examples"), printed_by(ROOT / "tools")]
    sources += [(ROOT / "Makefile").read_text(), printed_by(Path(flwr.__file__).parent)]
    sources += [(Path(ray.__file__).parent / "_raylet.so").read_bytes().decode(errors="ignore")]
    for message in messages:
        parts = [part.strip(" '") for part in re.split(r"…|\bnan\b", message)]
        assert any(all(part in text for part in parts) for text in sources), message
