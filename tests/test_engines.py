"""Three engines give the same result: one process, Ray, and two SuperNodes over TLS."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from on_this_machine import BIN, posix_only
from repository import as_run_config, example_folder, flatten, load_toml, package_of

ROUNDS = {"num-server-rounds": 2, "min-replies": 2}
# Each client has its own part of the data, so that a wrong partition would show.
EXAMPLES = {
    "pytorch-from-centralized-to-federated": {"partitioning": "dirichlet", "server-momentum": 0.5},
    "advanced-pytorch": {"dp.noise-multiplier": 0.01, "dp.repeatable-noise": True},
}

pytestmark = posix_only


def results(command: list, folder: Path) -> bytes:
    """Run a command in a folder of its own and return results.json as it was written."""
    folder.mkdir()
    # The last bits of sums depend on the number of threads; each client has one.
    env = os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    [path] = folder.glob("outputs/*/*/results.json")
    return path.read_bytes()


@pytest.mark.parametrize("example", EXAMPLES)
def test_engines_give_the_same_results(example, tmp_path):
    app = example_folder(example)
    kit = f"{package_of(app)}.kit"
    settings = flatten(load_toml(app / "offline.toml")) | ROUNDS | EXAMPLES[example]
    run_config = ["--run-config", as_run_config(settings)]
    nodes = ["--num-supernodes", 2]

    in_process = [sys.executable, "-m", f"{kit}.in_process", *nodes, *run_config]
    one_core = '{"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1}}'
    ray = [BIN / "flower-simulation", "--app", app, *nodes, "--backend-config", one_core]
    federation = [sys.executable, "-m", f"{kit}.federation", app, *nodes, "--warm"]

    expected = results(in_process, tmp_path / "in-process")
    assert expected.count(b'"round"') == 3
    assert results([*ray, *run_config], tmp_path / "ray") == expected
    assert results([*federation, *run_config], tmp_path / "federation") == expected
