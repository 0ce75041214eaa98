"""A simulation attaches to a Ray cluster that is running, and spreads over its nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from on_this_machine import BIN, CIFAR, PINNED, posix_only
from repository import ROOT

from kit.federation import free_addresses
from kit.testing import run

pytestmark = [posix_only, pytest.mark.thorough]


@pytest.fixture
def cluster(tmp_path):
    """The address and the processes of a cluster of two nodes, one CPU each, on this machine.

    It has a folder of its own, with a path short enough for sockets: with a note of the cluster in
    Ray's usual folder, every later simulation on the machine would attach to it.
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


@pytest.mark.parametrize("way", ["init_args", "RAY_ADDRESS"])
def test_simulation_spreads_over_two_nodes(way, cluster, tmp_path):
    """It attaches in the pinned release's own way, and in the way of both releases."""
    address, nodes = cluster
    settings = [
        "--app",
        CIFAR,
        "--run-config",
        "dataset='digits' partitioning='iid' num-server-rounds=3",
    ]
    command, environment = [sys.executable, "-m", "kit.simulation", *settings], dict(os.environ)
    if way == "RAY_ADDRESS":
        environment |= {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    elif PINNED:
        backend = {"init_args": {"address": address}, "client_resources": {"num_cpus": 1}}
        command = [BIN / "flower-simulation", *settings, "--num-supernodes", "2"]
        command += ["--backend-config", json.dumps(backend)]
    else:
        pytest.skip("newer Flower takes no address")
    log = (tmp_path / "simulation.log").open("w+")
    simulated = subprocess.Popen(
        [str(word) for word in command],
        cwd=tmp_path,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    used = set()  # the Ray nodes on which a client has run
    while simulated.poll() is None:
        for node in nodes:
            if any("ClientAppActor" in command_of(p) for p in children_of(node)):
                used.add(node.pid)
        time.sleep(0.1)
    assert simulated.returncode == 0, (tmp_path / "simulation.log").read_text()
    assert len(used) == 2
    [results] = tmp_path.glob("outputs/*/*/results.json")
    assert len(json.loads(results.read_text())) == 4


LOST_NODE = """
import time
import ray
from flwr.simulation.ray_transport.ray_actor import BasicActorPool, ClientAppActor
from ray.cluster_utils import Cluster
from kit.workers import replace_dead_workers

def submit(seconds):
    def app(message, context):
        time.sleep(seconds)
        return message
    run = lambda actor, *job: actor.run.remote(*job)
    return pool.submit(run, (lambda: app, "answer", "0", None))

def answers(futures):
    for future in futures:
        try:
            yield pool.fetch_result_and_return_actor_to_pool(future)[0]
        except Exception as error:
            pool.add_actor_back_to_pool(future)
            yield type(error).__name__

replace_dead_workers()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
ray.init(address=cluster.address)  # attached to the head, which stays
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
pool = BasicActorPool(ClientAppActor, {"num_cpus": 1}, {})
pool.add_actors_to_pool(2)
assert list(answers([submit(0), submit(0)])) == ["answer", "answer"]
futures = [submit(5), submit(5)]
time.sleep(1)
cluster.remove_node(other, allow_graceful=False)
found = sorted(answers(futures))
assert found[0].startswith("Actor") and found[1] == "answer", found
assert list(answers([submit(0), submit(0)])) == ["answer", "answer"]
"""


def test_those_left_take_a_lost_node_s_place(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    (folder / "ray").mkdir()
    try:
        done = run([sys.executable, "-c", LOST_NODE], ROOT, RAY_TMPDIR=str(folder))
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stdout
