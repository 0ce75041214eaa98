"""The README's commands reach the promised accuracy; and runs in one process."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch
from centralized_to_federated import task
from centralized_to_federated.kit.testing import (
    APP,
    BIN,
    copy,
    environment,
    in_process,
    kill,
    offline,
    only_run,
    posix_only,
    results,
    run,
    run_as_the_readme_says,
    simulation,
    start,
)

# The numbers that the README promises: digits offline, and CIFAR-10.
OFFLINE_ACCURACY, OFFLINE_TOLERANCE = 0.98, 0.015
CIFAR_ACCURACY, CIFAR_TOLERANCE = 0.54, 0.04

pytestmark = posix_only


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder where the offline run was made as the README has it, uninterrupted."""
    folder = tmp_path_factory.mktemp("finished")
    run_as_the_readme_says(folder, "model.safetensors")
    return folder


def test_run_leaves_what_the_readme_says(finished):
    path, history = only_run(finished), results(finished)
    assert history[1].keys() == {
        *("round", "train_metrics", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"),
        "clients",
    }
    accuracy = history[5]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(OFFLINE_ACCURACY, abs=OFFLINE_TOLERANCE)
    model = task.build("compact", 10, 0)
    model.load_state_dict(safetensors.torch.load_file(path / "model.safetensors"))
    best = max(entry["evaluate_metrics_serverapp"]["accuracy"] for entry in history)
    assert task.evaluate(model, task.load("digits", "test"))[1] == pytest.approx(best, abs=1e-6)


@pytest.mark.thorough
def test_killed_and_resumed_gives_the_same_results(finished, tmp_path):
    """Killed in the middle of a round, then resumed in the same folder."""
    command = simulation(APP, APP / "offline.toml")
    kill(start(command, tmp_path, until=lambda log: "[ROUND 3/5]" in log))
    assert len(results(tmp_path)) in (3, 4)

    config = offline(resume_from=str(only_run(tmp_path)), num_server_rounds=5)
    done = run(simulation(APP, config), tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Resuming after round" in done.stdout
    assert results(tmp_path) == results(finished)[:6]


def commands_of_the_readme(section: str) -> list[list[str]]:
    """Return the commands of a section of the README, each split into words."""
    text = (APP / "README.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def four_terminals(app: Path, folder: Path) -> bool:
    """Run the commands of the README's Deploy section; False if Flower lost a message.

    Flower 1.25 loses a message that a SuperNode fetches during its upload, and the round then waits
    for a reply that never comes: see docs/troubleshooting.md.
    """
    *parts, start = commands_of_the_readme("Deploy")
    assert [words[0] for words in parts] == ["flower-superlink", *["flower-supernode"] * 2]
    started, logs = [], [folder / f"{name}.log" for name in ("superlink", "0", "1", "run")]
    try:
        for words, log in zip([*parts, start], logs, strict=True):
            with log.open("w") as file:
                process = subprocess.Popen(
                    [str(BIN / words[0]), *words[1:]],
                    cwd=app,
                    env=environment(folder) | {"OMP_NUM_THREADS": "1"},
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            started.append(process)
            time.sleep(5)  # the time to open the next terminal
        deadline = time.monotonic() + 600
        while started[-1].poll() is None:
            if any("recv cannot be zero" in log.read_text() for log in logs):
                return False
            assert time.monotonic() < deadline, logs[-1].read_text()
            time.sleep(0.5)
    finally:
        for process in reversed(started):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(200)
    assert "Centralized accuracy" in logs[-1].read_text()
    return True


@pytest.mark.thorough
def test_four_terminals_as_the_readme_has_them(tmp_path):
    """SuperLink, two SuperNodes and `flwr run`, word by word, in a copy of this folder."""
    for attempt in range(3):
        app = copy(tmp_path / str(attempt))
        if four_terminals(app, app.parent):
            break
    accuracy = results(app)[5]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(OFFLINE_ACCURACY, abs=OFFLINE_TOLERANCE)


def test_real_cifar_reaches_what_the_readme_promises(real_data, tmp_path):
    settings = {"dataset": str(real_data / "cifar10"), "partitioning": "iid"}
    history = in_process(tmp_path, 2, **settings, num_server_rounds=10)
    accuracy = history[10]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(CIFAR_ACCURACY, abs=CIFAR_TOLERANCE)
