"""A killed Ray worker, as by a lack of memory, costs nothing but time."""

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from on_this_machine import offline, posix_only, results, run_here
from repository import example_folder

from kit.testing import marked, simulation, start

APP = example_folder("advanced-pytorch")
CLIENTS = 50
SETTINGS = offline(APP, num_server_rounds=4)

pytestmark = posix_only


def command(workers: int) -> list[str]:
    words = simulation(APP, SETTINGS, CLIENTS)
    return [word.replace('"num_cpus": 1}, "cl', f'"num_cpus": {workers}}}, "cl') for word in words]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_here(APP, CLIENTS, SETTINGS, folder)
    return results(folder)


def workers_of(folder: Path) -> list[int]:
    return [pid for pid in marked(folder) if "ClientAppActor" in psutil.Process(pid).name()]


@pytest.mark.parametrize(
    ("workers", "killed"),
    [(2, 1), *(pytest.param(*case, marks=pytest.mark.thorough) for case in ((1, 1), (2, 2)))],
)
def test_killed_workers_are_replaced_and_their_clients_asked_again(
    workers, killed, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    process = start(command(workers), tmp_path, lambda log: "[ROUND 3/" in log)
    time.sleep(0.1)
    for pid in workers_of(tmp_path)[:killed]:
        os.kill(pid, signal.SIGKILL)
    assert process.wait(300) == 0
    log = (tmp_path / "log").read_text()
    asked = re.findall(r"Node \d+: its worker died \(out of memory\?\); it is asked again", log)
    assert len(asked) == killed
    assert "left out" not in log
    assert results(tmp_path) == undisturbed
