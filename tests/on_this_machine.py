"""Common parts of the tests of federations on this machine."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from repository import ROOT, flatten, load_toml

from kit.federation.releases import RELEASE, Pinned
from kit.in_process import pytorch_threads, run_app

BIN = Path(sys.executable).parent
posix_only = pytest.mark.skipif(os.name == "nt", reason="stops processes by their POSIX group")
PINNED = type(RELEASE) is Pinned  # else these tests run on the newest Flower
CIFAR = ROOT / "examples" / "pytorch-from-centralized-to-federated"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that belong to a federation's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.environ().get("FLWR_HOME", ""):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds} s"
        time.sleep(0.2)


def offline(app: Path, **changes: Any) -> dict[str, Any]:
    """Return offline.toml's settings with changes; write a key's - as _."""
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    return flatten(load_toml(app / "offline.toml")) | named


def run_here(app: Path, nodes: int, settings: dict[str, Any], folder: Path) -> None:
    """Run an app in this process, which has imported PyTorch, on one thread like Ray's workers."""
    with pytorch_threads(1):
        run_app(app, nodes, settings | {"output-dir": str(folder / "outputs")})


def results(folder: Path) -> list[dict[str, Any]]:
    newest = max(folder.glob("outputs/*/*/results.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())
