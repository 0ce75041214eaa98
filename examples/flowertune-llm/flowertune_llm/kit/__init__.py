# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""The part that every example has, whatever it trains; it imports nothing of the app."""

from pathlib import Path


def app_folder() -> Path:
    """Return the folder of the app around this kit; the current one if the kit is not in an app."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "pyproject.toml").is_file() else Path.cwd()
