"""An app made from an example is whole: alone, in its own environment, it runs to the end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from on_this_machine import BIN
from repository import ROOT, example_names, flower_settings


def call(command: list, folder: Path, **changes: str) -> str:
    """Run a command with nothing of this repository or its environment in sight."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=env | {"FLWR_TELEMETRY_ENABLED": "0"} | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("example", example_names())
def test_new_app_installs_alone_and_runs(example, tmp_path):
    """Of its own tests all are imported, and those of its configuration run.

    The others take minutes, run in the example, and differ from those there by names only.
    """
    app, venv, uv = tmp_path / "my-own-app", tmp_path / "venv", BIN / "uv"
    call([sys.executable, ROOT / "tools" / "new_app.py", example, app], tmp_path)
    call([uv, "venv", "--quiet", "--seed", "--python", sys.executable, venv], app)
    python = ["--python", venv / "bin" / "python", "-c", ROOT / "constraints.txt"]
    call([uv, "pip", "install", "--quiet", *python, "-e", ".[test]"], app)

    cache = str(tmp_path / "cache")  # the app's own, as empty as its user's
    federations = flower_settings(app)["federations"]
    nodes = federations[federations["default"]]["options"]["num-supernodes"]
    command = [venv / "bin" / "flower-simulation", "--app", ".", "--num-supernodes", nodes]
    log = call([*command, "--run-config", "offline.toml"], app, XDG_CACHE_HOME=cache)
    [results] = app.glob("outputs/*/*/results.json")
    assert json.loads(results.read_text())[-1]["evaluate_metrics_serverapp"]
    assert str(ROOT) not in re.sub(r"(?m)^.*constraints.*$", "", log)

    tests = [venv / "bin" / "python", "-m", "pytest", "-q", "-k", "test_config"]
    call(tests, app, XDG_CACHE_HOME=cache)
