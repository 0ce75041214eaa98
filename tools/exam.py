"""Examine any Flower app: python tools/exam.py ../my-app [--only QUESTION …]; see kit/exam."""

import os
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # nothing in the app's folder changes
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
sys.path[0] = str(Path(__file__).resolve().parents[1])

from kit.exam.__main__ import main  # noqa: E402

if __name__ == "__main__":
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words.insert(0, "--app")
    sys.exit(main(words))
