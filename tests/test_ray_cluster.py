"""A simulation attaches to a Ray cluster that is running, and spreads over its nodes."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

import psutil
import pytest
from on_this_machine import BIN, CIFAR, posix_only

from kit.federation import free_addresses

pytestmark = [posix_only, pytest.mark.thorough]


@pytest.fixture
def cluster(tmp_path):
    """The address and the processes of a cluster of two nodes, one CPU each, on this machine.

    In a folder of its own, with a path short enough for sockets: where Ray notes a running cluster
    in its usual folder, every later simulation on the machine would attach to that.
    """
    [address] = free_addresses(1)
    port = address.split(":")[1]
    common = [BIN / "ray", "start", "--num-cpus", "1", "--block", "--disable-usage-stats"]
    folder = tempfile.mkdtemp(prefix="ray-")
    head = ["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", folder]
    started = []
    try:
        for name, words in (("head", head), ("other", ["--address", address])):
            log = (tmp_path / f"{name}.log").open("w+")
            command = [str(word) for word in [*common, *words]]
            started.append(
                subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            )
            deadline = time.monotonic() + 600
            while "Ray runtime started" not in (text := (tmp_path / f"{name}.log").read_text()):
                assert started[-1].poll() is None, text
                assert time.monotonic() < deadline, text
                time.sleep(0.5)
        yield address, started
    finally:
        for process in started:
            children = children_of(process)
            os.killpg(process.pid, signal.SIGTERM)
            _, alive = psutil.wait_procs(children, 10)
            for child in alive:
                child.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def children_of(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_simulation_spreads_over_two_nodes(cluster, tmp_path):
    address, nodes = cluster
    backend = {"init_args": {"address": address}, "client_resources": {"num_cpus": 1}}
    command = [BIN / "flower-simulation", "--app", CIFAR, "--num-supernodes", "4"]
    command += ["--backend-config", json.dumps(backend)]
    command += ["--run-config", "dataset='digits' partitioning='iid' num-server-rounds=3"]
    log = (tmp_path / "simulation.log").open("w+")
    run = subprocess.Popen(
        [str(word) for word in command], cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
    )
    used = set()  # the Ray nodes on which a client has run
    while run.poll() is None:
        for node in nodes:
            if any("ClientAppActor" in command_of(p) for p in children_of(node)):
                used.add(node.pid)
        time.sleep(0.1)
    assert run.returncode == 0, (tmp_path / "simulation.log").read_text()
    assert len(used) == 2
    [results] = tmp_path.glob("outputs/*/*/results.json")
    assert len(json.loads(results.read_text())) == 4
