"""Real federations in trouble: parts that are refused, send nonsense, or are killed."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from on_this_machine import CIFAR, PINNED, posix_only, processes_of, results, wait

from kit.federation import Federation, Part
from kit.federation.certificates import make_certificates, make_node_key, public_key_path

pytestmark = posix_only

FAULTY_CLIENT = CIFAR / "tests" / "faulty_client.py"


@pytest.fixture
def faulty_app(tmp_path) -> Path:
    """The app with clients whose faults are in the environment, as FAULT_<partition>."""
    app = tmp_path / "faulty" / CIFAR.name
    shutil.copytree(CIFAR, app, ignore=shutil.ignore_patterns("outputs", "__pycache__", ".venv"))
    shutil.copy(FAULTY_CLIENT, app / "centralized_to_federated")
    declared = (app / "pyproject.toml").read_text()
    changed = declared.replace("federated.client_app:app", "federated.faulty_client:app")
    (app / "pyproject.toml").write_text(changed)
    return app


def log_of(federation: Federation, run_id: int) -> str:
    return federation.call(["flwr", "log", str(run_id), *federation.named, "--show"])


def test_strangers_are_refused_and_bad_updates_left_out(faulty_app, tmp_path, monkeypatch):
    """Two SuperNodes are good, one sends NaN, and strangers of four kinds are refused."""
    monkeypatch.setenv("FAULT_2", "nan")
    monkeypatch.chdir(tmp_path)
    make_certificates(tmp_path / "other")
    with Federation(faulty_app, tmp_path / "federation", warm=True, verbose=False) as federation:
        for partition in range(3):
            federation.start_supernode(partition, 6)
        federation.preload = []  # strangers answer no message
        unregistered = federation.start_supernode(3, 6, register=False, wait=False)
        other_ca = federation.start_supernode(4, 6, ca=tmp_path / "other" / "ca.crt", wait=False)
        plain = federation.start_supernode(5, 6, secure=False, wait=False)
        assert impostor_is_refused_with(federation) in ("UNAUTHENTICATED", "401 Unauthorized")

        config = "dataset='digits' partitioning='iid' num-server-rounds=1"
        run_id = federation.run(config)
        assert federation.follow(run_id) == "finished:completed"

        log = log_of(federation, run_id)
        assert "train: sampled 3 of 3 clients" in log
        assert "Partition 2 left out of training: 0.weight holds NaN or infinity" in log
        assert results(tmp_path)[1]["evaluate_metrics_serverapp"]["loss"] < 10

        for part, refusal in {
            unregistered: "No SuperNode found" if PINNED else "Failed to activate SuperNode",
            other_ca: "attempt failed, retrying" if PINNED else "certificate verify failed",
            plain: "attempt failed, retrying",
        }.items():
            wait(lambda: part.says(refusal), 200, f"{part.name}: {refusal}")  # noqa: B023
            assert not part.connected()
        assert unregistered.process.wait(200) == 1
        assert sorted(federation.nodes().values()) == ["online"] * 3 + ["registered"]
    assert processes_of(tmp_path / "federation") == []


def impostor_is_refused_with(federation: Federation) -> str:
    """Show a registered public key, but sign with another private key; return the status."""
    mine, registered = federation.folder / "impostor", federation.folder / "keys" / "supernode-0"
    make_node_key(mine)
    private = serialization.load_ssh_private_key(mine.read_bytes(), None)
    public_key = public_key_path(registered).read_bytes()
    keys = private, serialization.load_ssh_public_key(public_key)
    request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=30)
    ca, fleet = (federation.certificates / "ca.crt").read_bytes(), federation.apis["fleet"]
    if PINNED:
        import grpc
        from flwr.client.grpc_rere_client.node_auth_client_interceptor import (
            NodeAuthClientInterceptor,
        )
        from flwr.proto.fleet_pb2_grpc import FleetStub

        with grpc.secure_channel(fleet, grpc.ssl_channel_credentials(ca)) as channel:
            stub = FleetStub(grpc.intercept_channel(channel, NodeAuthClientInterceptor(*keys)))
            with pytest.raises(grpc.RpcError) as error:
                stub.ActivateNode(request)
        return error.value.code().name
    import httpx
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    signing = [NodeAuthHttpInterceptor(*keys)]
    with (
        FleetHttpClient.from_server_address(fleet, False, ca, signing) as client,
        pytest.raises(httpx.HTTPStatusError) as error,
    ):
        client.ActivateNode(request)
    response = error.value.response
    return f"{response.status_code} {response.reason_phrase}"


def kill(part: Part) -> None:
    os.killpg(part.process.pid, signal.SIGKILL)
    part.process.wait()


@pytest.mark.thorough
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_killed_clientapp_is_asked_again(warm, faulty_app, tmp_path, monkeypatch):
    """Killed while it trains: Flower gives it up after a minute, then its client is asked again."""
    asleep = tmp_path / "asleep"
    monkeypatch.setenv("FAULT_1", f"sleep:{asleep}")
    monkeypatch.chdir(tmp_path)
    config = "dataset='digits' partitioning='iid' num-server-rounds=1"
    with Federation(faulty_app, tmp_path / "federation", warm=warm, verbose=False) as federation:
        for partition in range(2):
            federation.start_supernode(partition, 2)
        run_id = federation.run(config)
        wait(lambda: asleep.exists() and asleep.read_text(), 600, "the second client's training")
        os.kill(int(asleep.read_text()), signal.SIGKILL)
        began = time.monotonic()
        assert federation.follow(run_id) == "finished:completed"
        assert time.monotonic() - began < 200  # a minute, and the rest of the round
        log = log_of(federation, run_id)
        assert len(re.findall("its worker died .* it is asked again", log)) == 1
        assert "left out" not in log
        with_kill = results(tmp_path)
        assert [client["partition"] for client in with_kill[1]["clients"]] == [0, 1]
        assert federation.follow(federation.run(config)) == "finished:completed"
        assert results(tmp_path) == with_kill


@pytest.mark.thorough
def test_killed_parts_cost_what_the_guide_says(faulty_app, tmp_path, monkeypatch):
    """A SuperNode killed while it trains comes back; the SuperLink is killed and restarted; then
    so many SuperNodes are killed that too few are left.
    """
    asleep = tmp_path / "asleep"
    monkeypatch.setenv("FAULT_2", f"sleep:{asleep}")
    monkeypatch.chdir(tmp_path)
    config = "dataset='digits' partitioning='iid'"
    with Federation(faulty_app, tmp_path / "federation", warm=True, verbose=False) as federation:
        for partition in range(3):
            federation.start_supernode(partition, 3)
        first = federation.run(f"{config} num-server-rounds=4")
        wait(asleep.exists, 600, "the third SuperNode's training")
        kill(federation.parts["supernode-2"])
        wait(lambda: "[ROUND 2/4]" in log_of(federation, first), 600, "the round without it")
        federation.start_supernode(2, 3)
        assert federation.follow(first) == "finished:completed"
        log = log_of(federation, first)
        assert re.search(r"Partition 2 left out of training: .*Node Unavailable", log)
        clients = [[c["partition"] for c in entry["clients"]] for entry in results(tmp_path)]
        assert clients[1] == [0, 1]
        assert clients[4] == [0, 1, 2]

        second = federation.run(f"{config} num-server-rounds=50")
        wait(lambda: "[ROUND 2/50]" in log_of(federation, second), 600, "the second run's round")
        folder = re.search(r"Outputs: (.*)", log_of(federation, second))[1]
        kill(federation.parts["superlink"])
        federation.start_superlink()
        assert federation.status(first) == "finished:completed"
        assert log_of(federation, first) == log
        done = len(json.loads(Path(folder, "results.json").read_text())) - 1
        third = federation.run(f"{config} num-server-rounds={done + 1} resume-from='{folder}'")
        assert federation.follow(third) == "finished:completed"
        assert f"Resuming after round {done}" in log_of(federation, third)
        assert len(json.loads(Path(folder, "results.json").read_text())) == done + 2

        fourth = federation.run(f"{config} num-server-rounds=50")
        wait(
            lambda: "train: sampled 3" in log_of(federation, fourth), 600, "the fourth run's round"
        )
        for partition in (1, 2):
            kill(federation.parts[f"supernode-{partition}"])
        began = time.monotonic()
        assert federation.follow(fourth) == "finished:failed"
        assert time.monotonic() - began < 300  # two missed heartbeats, and more
        assert re.search(
            r"1 of \d \w+ replies can be used, min-replies = 2", log_of(federation, fourth)
        )
        assert re.search(r"round \d+ is safe: resume-from=", log_of(federation, fourth))
        assert federation.status(second) == "finished:failed"
