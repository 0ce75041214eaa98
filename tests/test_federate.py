"""`make federate`: scripts as people write them become apps that train as the scripts do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from on_this_machine import BIN
from repository import ROOT, flatten, flower_settings
from test_kit import files

SCRIPTS = ROOT / "tests" / "scripts"
SAME = "The same weights, bit for bit"
LIGHTNING = ("lightning", "pytorch-lightning", "lightning-utilities", "torchmetrics")


def call(command: list, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=env | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def federate(script: Path, folder: Path, *words: str, **more: str) -> str:
    command = [sys.executable, ROOT / "tools" / "federate.py", script, folder / "my-app", *words]
    return call(command, folder, **more).stdout


@pytest.mark.parametrize(
    ("name", "steps"), [("cifar_tutorial", 50), ("mnist_main", 48), ("trainer_text", 32)]
)
def test_one_client_trains_as_the_script_does_and_two_run(name, steps, tmp_path):
    told = federate(SCRIPTS / f"{name}.py", tmp_path)
    assert SAME in told, told
    assert f"{steps} steps" in told
    app = tmp_path / "my-app"
    assert files(app / "my_app" / "kit") == files(ROOT / "kit")
    own = (app / "my_app" / "own" / f"{name}.py").read_bytes()
    assert own == (SCRIPTS / f"{name}.py").read_bytes()
    done = call([sys.executable, "-m", "pytest", "-q", "tests"], app)
    assert "5 passed" in done.stdout, done.stdout
    readme = (app / "README.md").read_text()
    keys = flatten(flower_settings(app)["app"]["config"])
    assert not [key for key in keys if f"\n| `{key}` | `" not in readme]
    assert not [word for word in ("federated_app", "federated-app", "the-script") if word in readme]


def test_app_runs_by_flower(tmp_path):
    federate(SCRIPTS / "mnist_main.py", tmp_path)
    app = tmp_path / "my-app"
    config = "num-server-rounds=2 arguments='--lr 0.5 --batch-size 32'"
    done = call([BIN / "flwr", "run", ".", "--run-config", config], app)
    [path] = app.glob("outputs/*/*/results.json")
    assert path.read_text().count('"round"') == 3, done.stdout


@pytest.mark.thorough
def test_lightning_module(tmp_path):
    """With lightning from the registry, beside what is installed."""
    site = tmp_path / "site"
    versions = ["--no-deps", "--constraint", ROOT / "constraints.txt"]
    done = call([BIN / "uv", "pip", "install", "--target", site, *versions, *LIGHTNING], tmp_path)
    assert done.returncode == 0, done.stdout
    told = federate(SCRIPTS / "lightning_module.py", tmp_path, PYTHONPATH=str(site))
    assert SAME in told, told
    app = tmp_path / "my-app"
    done = call([sys.executable, "-m", "pytest", "-q", "tests"], app, PYTHONPATH=str(site))
    assert "5 passed" in done.stdout, done.stdout
