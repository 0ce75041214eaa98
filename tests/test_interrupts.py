"""Ctrl-C and SIGTERM end a run at once: the safe round is logged, no process left, resume exact."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from on_this_machine import BIN, CIFAR, offline, posix_only, results, run_here, wait
from repository import ROOT, example_folder, example_names, package_of

from kit.testing import declared, marked, run, simulation, start

SECONDS = 5  # for a run to end
ROUNDS = 3
TO_GROUP = {signal.SIGINT: True, signal.SIGTERM: False}  # as from a terminal and from Slurm

pytestmark = posix_only


def settings_of(app: Path) -> dict:
    return offline(app, num_server_rounds=ROUNDS)


def end(process: subprocess.Popen, number: int, folder: Path, to_group: bool) -> str:
    """Send a signal, check that all processes end in time, and return the log."""
    began = time.monotonic()
    (os.killpg if to_group else os.kill)(process.pid, number)
    status = process.wait(SECONDS)
    wait(lambda: not marked(folder), SECONDS, f"the end of {marked(folder)}")
    assert time.monotonic() - began < SECONDS
    assert status in (128 + number, -number)
    return (folder / "log").read_text()


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(name, marks=[pytest.mark.thorough] if name != CIFAR.name else [])
        for name in example_names()
    ],
)
def test_interrupted_simulation_resumes_exactly(example, tmp_path, monkeypatch):
    """SIGINT ends it in the second round, SIGTERM in the third; then it runs to the end."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    app, folders = example_folder(example), [tmp_path / "whole", tmp_path / "interrupted"]
    for folder in folders:
        folder.mkdir()
    nodes = declared(app)["federations"]["local-simulation"]["options"]["num-supernodes"]
    run_here(app, nodes, settings_of(app), folders[0])

    settings, folder = settings_of(app), folders[1]
    for number, server_round in ((signal.SIGINT, 2), (signal.SIGTERM, 3)):
        head = f"[ROUND {server_round}/"
        process = start(simulation(app, settings), folder, lambda log, head=head: head in log)
        log = end(process, number, folder, TO_GROUP[number])
        said = re.search(r"Interrupted; round (\d) is safe: resume-from='(.*)'", log)
        assert int(said[1]) == server_round - 1
        settings |= {"resume-from": said[2]}
    run_here(app, nodes, settings, folder)
    assert results(folder) == results(folders[0])


@pytest.mark.parametrize("number", TO_GROUP)
@pytest.mark.parametrize(
    "moment",
    [
        "Outputs:",  # Ray starts up meanwhile, and the model is tested before round 1
        pytest.param("for their partition", marks=pytest.mark.thorough),
        pytest.param("configure_evaluate", marks=pytest.mark.thorough),  # and the central test
        pytest.param("Results:", marks=pytest.mark.thorough),  # Ray ends
    ],
)
def test_signals_at_other_moments(moment, number, tmp_path):
    process = start(simulation(CIFAR, settings_of(CIFAR)), tmp_path, lambda log: moment in log)
    log = end(process, number, tmp_path, TO_GROUP[number])
    assert re.search(r"Interrupted; (no round is saved yet|round \d is safe: resume-from=)", log)


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [0.5, 1, 1.5, 2, 3, 4])
@pytest.mark.parametrize("number", TO_GROUP)
def test_signals_while_a_simulation_starts(number, seconds, tmp_path):
    process = start(simulation(CIFAR, settings_of(CIFAR)), tmp_path, lambda log: True)
    time.sleep(seconds)
    end(process, number, tmp_path, TO_GROUP[number])


@pytest.mark.parametrize("number", TO_GROUP)
@pytest.mark.parametrize("how", ["in_process", pytest.param("flwr", marks=pytest.mark.thorough)])
def test_other_commands_end_as_well(how, number, tmp_path):
    command = [BIN / "flwr", "run", CIFAR, "--run-config", CIFAR / "offline.toml"]
    if how == "in_process":
        command = [sys.executable, "-m", f"{package_of(CIFAR)}.kit.in_process", *command[3:]]
        command += ["--num-supernodes", "2"]
    process = start(command, tmp_path, lambda log: "[ROUND 2/" in log)
    end(process, number, tmp_path, TO_GROUP[number])
    wait(lambda: "round 1 is safe" in (tmp_path / "log").read_text(), SECONDS, "the last line")


@pytest.mark.thorough
@pytest.mark.parametrize("number", TO_GROUP)
def test_make_run_ends_in_good_order(number, tmp_path):
    command = ["make", "-C", ROOT, "run", f"EXAMPLE={CIFAR.name}"]
    command += [f"CONFIG=output-dir='{tmp_path}/outputs'"]
    process = start(command, tmp_path, lambda log: "[ROUND 2/" in log)
    log = end(process, number, tmp_path, TO_GROUP[number])
    assert "Interrupted; round 1 is safe" in log
    assert re.search(rf"{CIFAR.name}: interrupted after \d+ s", log)


def test_a_simulation_that_cannot_start_ends_at_once(tmp_path):
    """Flower alone would wait for its ServerApp, and the ServerApp for replies."""
    command = simulation(CIFAR, settings_of(CIFAR))
    command[command.index("--backend-config") + 1] = '{"client_resources": {"num_cpus": 9999}}'
    done = run(command, tmp_path)
    assert done.returncode == 1
    assert "does not meet the criteria" in done.stdout
    assert not marked(tmp_path)
