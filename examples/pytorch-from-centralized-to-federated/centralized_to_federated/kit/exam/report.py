# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""An exam's result: a table in the terminal, and exam.json."""

import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path

from ..files import write_json
from .verdict import FAIL, Verdict


def table(verdicts: dict[str, tuple[str, Verdict]]) -> str:
    """Return a line or more for each question, by its name: its text, and the verdict."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = []
    for name, (text, verdict) in verdicts.items():
        rows = [f"{verdict.verdict:<10}{name:<14}{text}"]
        rows += wrapped(verdict.evidence, width)
        if verdict.verdict == FAIL:
            rows += wrapped(f"Way out: {verdict.way_out}", width)
        lines += rows
    return "\n".join(lines)


def wrapped(text: str, width: int) -> list[str]:
    margin = " " * 24
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )


def write(path: Path, app: Path, verdicts: dict[str, tuple[str, Verdict]]) -> None:
    """Write exam.json, whole."""
    questions = [
        {"name": name, "question": text} | asdict(verdict)
        for name, (text, verdict) in verdicts.items()
    ]
    write_json(path, {"app": app.name, "questions": questions})
