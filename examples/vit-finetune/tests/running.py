"""How the tests run the app: by the commands that a user types, each in a folder of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import flatten_dict

APP = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
DECLARED = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]
NODES = DECLARED["federations"]["local-simulation"]["options"]["num-supernodes"]
# One worker of Ray, not one a core: each imports PyTorch, the larger part of a short run.
ONE_WORKER = '{"init_args": {"num_cpus": 1}, "client_resources": {"num_cpus": 1}}'
RUN_SECONDS, START_SECONDS = 1200, 600

posix_only = pytest.mark.skipif(os.name == "nt", reason="stops processes by their POSIX group")


def as_run_config(settings: dict[str, Any]) -> str:
    """Return settings in the form key=value."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())


def offline(**changes: object) -> str:
    """Return offline.toml's settings, changed, in the form key=value."""
    settings = flatten_dict(tomllib.loads((APP / "offline.toml").read_text()))
    return as_run_config(settings | {k.replace("_", "-"): v for k, v in changes.items()})


def simulation(app: Path, run_config: str, nodes: int = NODES) -> list[str]:
    command = [BIN / "flower-simulation", "--app", app, "--num-supernodes", nodes]
    command += ["--backend-config", ONE_WORKER, "--run-config", run_config]
    return [str(word) for word in command]


def environment(folder: Path) -> dict[str, str]:
    """Mark all processes that come of a command by the folder in which it was given."""
    own = {"FLWR_TELEMETRY_ENABLED": "0", "TEST_FOLDER": str(folder)}
    # Threads that spin while they wait slow each other down a hundredfold on few cores.
    own |= {"OMP_WAIT_POLICY": "PASSIVE"}
    return os.environ | own | {"PATH": f"{BIN}:{os.environ['PATH']}"}


def run(command: list, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with more in the environment."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment(folder) | more,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=RUN_SECONDS,
    )


def start(command: list, folder: Path, until: Callable[[str], object]) -> subprocess.Popen:
    """Start a command in a group of its own, and wait until something holds of its log."""
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=environment(folder),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not until(log.read_text()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    return process


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def only_run(folder: Path) -> Path:
    [path] = folder.glob("outputs/????-??-??/??-??-??")
    return path


def results(folder: Path) -> list[dict]:
    return json.loads((only_run(folder) / "results.json").read_text())


def faulty_copy(folder: Path) -> Path:
    """Return a copy of the app whose clients do what FAULT_<partition> says: faulty_client.py."""
    app, module = folder / "app", DECLARED["app"]["components"]["clientapp"].split(":")[0]
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("outputs", "__pycache__", ".*"))
    shutil.copy(APP / "tests" / "faulty_client.py", app / module.split(".")[0])
    declared = (app / "pyproject.toml").read_text()
    changed = declared.replace(module, module.replace("client_app", "faulty_client"))
    (app / "pyproject.toml").write_text(changed)
    return app
