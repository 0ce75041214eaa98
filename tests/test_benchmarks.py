"""Each measurement can be started: what it imports is there, and its arguments are read."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from repository import ROOT


def start(script: Path) -> str:
    """Return what goes wrong when a script is asked for its help."""
    command = [sys.executable, script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return f"{script.name}: {done.stderr}" if done.returncode else ""


def test_every_script_starts():
    scripts = [path for path in (ROOT / "benchmarks").glob("*.py") if "main()" in path.read_text()]
    assert len(scripts) > 10
    with ThreadPoolExecutor(2) as two:  # each imports PyTorch
        assert not list(filter(None, two.map(start, scripts)))
