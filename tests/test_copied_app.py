"""An app made from an example passes its own tests alone, in an environment of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from on_this_machine import BIN
from repository import ROOT, example_names

SMALLEST = "pytorch-from-centralized-to-federated"
# Tests that show in a minute that the app runs alone: the README's command on Ray, and those of the
# kit on settings, the loop, and states of strategies. `make test` runs all others in this
# environment.
QUICK = [
    "tests/test_run.py",
    *(f"my_own_app/kit/tests/test_{name}.py" for name in ("settings", "loop", "strategies")),
]
QUICK += ["-k", "kit or readme_says"]


def call(command: list, folder: Path, **changes: str) -> str:
    """Run a command without this repository and its environment."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=env | {"FLWR_TELEMETRY_ENABLED": "0"} | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def passes_alone(example: str, selected: list[str], folder: Path) -> None:
    """Make an app, install it with its own dependencies, and run tests of it."""
    app, venv, uv = folder / "my-own-app", folder / "venv", BIN / "uv"
    call([sys.executable, ROOT / "tools" / "new_app.py", example, app], folder)
    call([uv, "venv", "--quiet", "--seed", "--python", sys.executable, venv], app)
    python = ["--python", venv / "bin" / "python", "-c", ROOT / "constraints.txt"]
    call([uv, "pip", "install", "--quiet", *python, "-e", ".[test]"], app)

    changes = {"XDG_CACHE_HOME": str(folder / "cache")}  # empty, as a new user's
    changes["PYTHONDONTWRITEBYTECODE"] = ""  # else each process compiles what it imports
    if data := os.environ.get("FLOWER_EXAMPLES_DATA"):
        changes["MY_OWN_APP_DATA"] = str(Path(data).resolve())
    told = call([venv / "bin" / "python", "-m", "pytest", "-ra", *selected], app, **changes)
    print(told)
    assert " passed" in told.splitlines()[-1]
    assert str(ROOT) not in told


def test_new_app_runs_alone(tmp_path):
    passes_alone(SMALLEST, QUICK, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("example", example_names())
def test_new_app_passes_all_its_tests_alone(example, tmp_path):
    passes_alone(example, [], tmp_path)
