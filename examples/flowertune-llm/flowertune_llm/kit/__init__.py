# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""What every example carries, whatever is trained; an app imports it, and it imports no app."""

from pathlib import Path


def app_folder() -> Path:
    """Return the folder of the app that has this kit; the current one if it is installed apart."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "pyproject.toml").is_file() else Path.cwd()
