"""A copied folder is a whole app: alone, in its own environment, it installs and runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
EXAMPLES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flower-examples"][
    "examples"
]


def call(command: list, folder: Path) -> str:
    """Run a command with nothing of this repository or its environment in sight."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=env | {"FLWR_TELEMETRY_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES)
def test_copied_app_installs_alone_and_runs(example, tmp_path):
    app = tmp_path / "my-app"
    shutil.copytree(
        ROOT / "examples" / example,
        app,
        ignore=shutil.ignore_patterns("outputs", "__pycache__", ".venv", "*.egg-info"),
    )
    venv, uv = tmp_path / "venv", BIN / "uv"
    call([uv, "venv", "--quiet", "--python", sys.executable, venv], app)
    constraints = ROOT / "constraints.txt"
    python = ["--python", venv / "bin" / "python"]
    call([uv, "pip", "install", "--quiet", *python, "-c", constraints, "-e", "."], app)

    federations = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["federations"]
    nodes = federations[federations["default"]]["options"]["num-supernodes"]
    command = [venv / "bin" / "flower-simulation", "--app", ".", "--num-supernodes", nodes]
    text = (app / "offline.toml").read_text()
    settings = dict(re.findall(r"^([\w.-]+) = (\S+)", text, re.MULTILINE))
    settings["num-server-rounds"] = "1"  # its own tests run it to the end
    run_config = " ".join(f"{key}={value}" for key, value in settings.items())
    log = call([*command, "--run-config", run_config], app)
    [results] = app.glob("outputs/*/*/results.json")
    assert json.loads(results.read_text())[-1]["evaluate_metrics_serverapp"]
    assert str(ROOT) not in re.sub(r"(?m)^.*constraints.*$", "", log)
