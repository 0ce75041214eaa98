"""An app made from an example is whole: alone, in its own environment, it passes its own tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from on_this_machine import BIN
from repository import ROOT, example_names


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
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.flaky(reruns=0)  # its own tests are run once more where they fail
@pytest.mark.parametrize("example", example_names())
def test_new_app_passes_its_tests_alone(example, request, tmp_path):
    """Among them is the offline run, with the figure that the README promises.

    This is where `make test` runs the examples' tests, and `make test-all` the thorough ones, too:
    here they also show that an example needs nothing but what its own pyproject.toml names.
    """
    app, venv, uv = tmp_path / "my-own-app", tmp_path / "venv", BIN / "uv"
    call([sys.executable, ROOT / "tools" / "new_app.py", example, app], tmp_path)
    call([uv, "venv", "--quiet", "--seed", "--python", sys.executable, venv], app)
    python = ["--python", venv / "bin" / "python", "-c", ROOT / "constraints.txt"]
    install = [uv, "pip", "install", "--quiet", "--compile-bytecode", *python]
    call([*install, "-e", ".[test]", "pytest-rerunfailures"], app)

    changes = {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # as empty as its user's
    if data := os.environ.get("FLOWER_EXAMPLES_DATA"):
        changes["MY_OWN_APP_DATA"] = str(Path(data).resolve())
    command = [venv / "bin" / "python", "-m", "pytest", "-ra", "--reruns", "1"]
    told = call([*command, "-m", request.config.option.markexpr], app, **changes)
    print(told)
    assert " passed" in told.splitlines()[-1]
    assert str(ROOT) not in told
