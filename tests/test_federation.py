"""Real federations on this machine: TLS and authentication on, parts refused, parts killed."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from certificates import make_certificates, make_node_key
from cryptography.hazmat.primitives import serialization
from federation import NAME, Federation, Part
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from repository import ROOT, example_names

BIN = Path(sys.executable).parent
CIFAR = ROOT / "examples" / "pytorch-from-centralized-to-federated"
TOOL = [sys.executable, ROOT / "tools" / "federation.py"]
TWO_ROUNDS = "num-server-rounds=2"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="stops processes by their POSIX group")

FAULTY_CLIENT = """
import os
import time
from pathlib import Path

import numpy as np
from centralized_to_federated import client_app
from flwr.app import Array, MessageType
from flwr.clientapp import ClientApp


class FaultyClient(ClientApp):
    def __call__(self, message, context):
        partition = context.node_config["partition-id"]
        fault = os.environ.get(f"FAULT_{partition}")
        if fault is None or message.metadata.message_type != MessageType.TRAIN:
            return client_app.app(message, context)
        if fault.startswith("sleep"):
            marker = Path(fault.removeprefix("sleep:"))
            if not marker.exists():
                marker.write_text("")
                time.sleep(3600)
            return client_app.app(message, context)
        reply = client_app.app(message, context)
        arrays = reply.content["arrays"]
        weight = arrays["0.weight"].numpy()
        bad = {"nan": weight * np.nan, "shape": weight[1:], "enormous": weight + np.float32(1e9)}
        arrays["0.weight"] = Array(bad[fault])
        return reply


app = FaultyClient()
"""


@pytest.fixture
def faulty_app(tmp_path) -> Path:
    """The app, whose clients do what FAULT_<partition> in the environment says."""
    app = tmp_path / "faulty" / CIFAR.name
    shutil.copytree(CIFAR, app, ignore=shutil.ignore_patterns("outputs", "__pycache__", ".venv"))
    (app / "centralized_to_federated" / "faulty_client.py").write_text(FAULTY_CLIENT)
    declared = (app / "pyproject.toml").read_text()
    changed = declared.replace("federated.client_app:app", "federated.faulty_client:app")
    (app / "pyproject.toml").write_text(changed)
    return app


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that belong to a federation's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.environ().get("FLWR_HOME", ""):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds} s"
        time.sleep(0.2)


def log_of(federation: Federation, run_id: int) -> str:
    return federation.call(["flwr", "log", str(run_id), str(federation.app), NAME, "--show"])


def results(folder: Path) -> list[dict[str, Any]]:
    newest = max(folder.glob("outputs/*/*/results.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())


def form(value: Any) -> Any:
    """Return names and types without the values."""
    if isinstance(value, dict):
        return {name: form(one) for name, one in value.items()}
    if isinstance(value, list):
        return [form(one) for one in value]
    return type(value).__name__


@pytest.mark.parametrize("example", example_names())
def test_each_example_gives_what_the_simulation_gives(example, tmp_path):
    app, folder = ROOT / "examples" / example, tmp_path / "federation"
    command = [*TOOL, app, "--offline", "--run-config", TWO_ROUNDS, "--warm", "--folder", folder]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^Run \d+: finished:completed$", done.stdout, re.MULTILINE)
    assert "$ flower-superlink --ssl-ca-certfile" in done.stdout
    assert "--enable-supernode-auth" in done.stdout
    assert processes_of(folder) == []
    assert not [path for path in app.rglob("*") if path.name in (".flwr", "superlink.db")]

    keys = [*folder.glob("certificates/*.key"), *folder.glob("keys/supernode-?")]
    assert len(keys) == 4
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700

    simulated = tmp_path / "simulated"
    simulated.mkdir()
    text = (app / "offline.toml").read_text()
    settings = " ".join([*re.findall(r"^[\w.-]+ = \S+$", text, re.MULTILINE), TWO_ROUNDS])
    command = [BIN / "flower-simulation", "--app", app, "--num-supernodes", "2"]
    command += ["--run-config", settings.replace(" = ", "=")]
    done = subprocess.run(command, cwd=simulated, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert form(results(tmp_path)) == form(results(simulated))
    [one, other] = [
        results(folder)[-1]["evaluate_metrics_serverapp"] for folder in (tmp_path, simulated)
    ]
    assert one["accuracy"] == pytest.approx(other["accuracy"], abs=0.02)


def test_strangers_are_refused_and_bad_updates_left_out(faulty_app, tmp_path, monkeypatch):
    """Two good SuperNodes, three that send nonsense, and four kinds that must not get in."""
    for partition, fault in {2: "nan", 3: "shape", 4: "enormous"}.items():
        monkeypatch.setenv(f"FAULT_{partition}", fault)
    monkeypatch.chdir(tmp_path)
    make_certificates(tmp_path / "other")
    with Federation(faulty_app, tmp_path / "federation", warm=True, verbose=False) as federation:
        for partition in range(5):
            federation.start_supernode(partition, 8)
        unregistered = federation.start_supernode(5, 8, register=False, wait=False)
        other_ca = federation.start_supernode(6, 8, ca=tmp_path / "other" / "ca.crt", wait=False)
        plain = federation.start_supernode(7, 8, secure=False, wait=False)
        assert impostor_is_refused_with(federation) == grpc.StatusCode.UNAUTHENTICATED

        config = "dataset='digits' partitioning='iid' num-server-rounds=1"
        run_id = federation.run(config)
        assert federation.follow(run_id) == "finished:completed"

        log = log_of(federation, run_id)
        assert "train: sampled 5 of 5 clients" in log
        for partition, problem in {
            2: r"0\.weight holds NaN or infinity",
            3: r"0\.weight has shape \(31, 3, 3, 3\), not \(32, 3, 3, 3\)",
            4: r"its update is .* times as long as the median",
        }.items():
            assert re.search(f"Partition {partition} left out of training: {problem}", log)
        assert results(tmp_path)[1]["evaluate_metrics_serverapp"]["loss"] < 10

        assert unregistered.process.wait(30) == 1
        assert unregistered.says("No SuperNode found with the given public key.")
        for part in (other_ca, plain):
            assert part.says("Connection attempt failed, retrying")
            assert not part.says("SuperNode ID")
        assert sorted(federation.nodes().values()) == ["online"] * 5 + ["registered"]
    assert processes_of(tmp_path / "federation") == []


def impostor_is_refused_with(federation: Federation) -> grpc.StatusCode:
    """Show a registered public key, but sign with another private key."""
    mine, registered = federation.folder / "impostor", federation.folder / "keys" / "supernode-0"
    make_node_key(mine)
    private = serialization.load_ssh_private_key(mine.read_bytes(), None)
    public = serialization.load_ssh_public_key(registered.with_suffix(".pub").read_bytes())
    trusted = grpc.ssl_channel_credentials((federation.certificates / "ca.crt").read_bytes())
    with grpc.secure_channel(federation.fleet, trusted) as channel:
        stub = FleetStub(
            grpc.intercept_channel(channel, NodeAuthClientInterceptor(private, public))
        )
        public_key = registered.with_suffix(".pub").read_bytes()
        with pytest.raises(grpc.RpcError) as error:
            stub.ActivateNode(ActivateNodeRequest(public_key=public_key, heartbeat_interval=30))
    return error.value.code()


def kill(part: Part) -> None:
    os.killpg(part.process.pid, signal.SIGKILL)
    part.process.wait()


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
        wait(asleep.exists, 120, "the third SuperNode's training")
        kill(federation.parts["supernode-2"])
        kill(federation.parts["clientapp-2"])
        wait(lambda: "[ROUND 2/4]" in log_of(federation, first), 120, "the round without it")
        federation.start_supernode(2, 3)
        assert federation.follow(first) == "finished:completed"
        log = log_of(federation, first)
        assert re.search(r"Partition 2 left out of training: .*Node Unavailable", log)
        clients = [[c["partition"] for c in entry["clients"]] for entry in results(tmp_path)]
        assert clients[1] == [0, 1]
        assert clients[4] == [0, 1, 2]

        second = federation.run(f"{config} num-server-rounds=50")
        wait(lambda: "[ROUND 2/50]" in log_of(federation, second), 120, "the second run's round")
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
            lambda: "train: sampled 3" in log_of(federation, fourth), 120, "the fourth run's round"
        )
        for partition in (1, 2):
            kill(federation.parts[f"supernode-{partition}"])
            kill(federation.parts[f"clientapp-{partition}"])
        began = time.monotonic()
        assert federation.follow(fourth) == "finished:failed"
        assert time.monotonic() - began < 120  # two missed heartbeats, and then some
        assert re.search(
            r"1 of \d \w+ replies can be used, min-replies = 2", log_of(federation, fourth)
        )
        assert re.search(r"round \d+ is safe: resume-from=", log_of(federation, fourth))
        assert federation.status(second) == "finished:failed"


def test_two_at_once_and_nothing_left_after_ctrl_c_or_a_death(tmp_path):
    """Of two federations one is interrupted, the other loses its SuperLink."""
    started = []
    for name in ("interrupted", "bereft"):
        command = [*TOOL, CIFAR, "--offline", "--insecure", "--folder", tmp_path / name]
        log = (tmp_path / f"{name}.log").open("w+")
        process = subprocess.Popen(
            [str(word) for word in command], cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        )
        started.append((process, tmp_path / name, tmp_path / f"{name}.log"))
    for _, _, log in started:
        wait(lambda: "$ flwr log" in log.read_text(), 120, "the start")  # noqa: B023
    (interrupted, folder, log), (bereft, other_folder, other_log) = started
    assert processes_of(folder)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(60) == 130, log.read_text()
    assert processes_of(folder) == []
    [superlink] = [p for p in processes_of(other_folder) if "flower-superlink" in p.cmdline()[1]]
    superlink.kill()
    assert bereft.wait(60) == 1
    assert "Error: the SuperLink ended" in other_log.read_text()
    assert processes_of(other_folder) == []


def test_kept_federation_takes_more_runs(tmp_path):
    command = [*TOOL, CIFAR, "--offline", "--warm", "--keep", "--run-config", "num-server-rounds=1"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--folder", tmp_path / "kept"], cwd=tmp_path, stdout=file, stderr=file
        )
    wait(lambda: "Still up" in log.read_text() or process.poll() is not None, 180, "the first run")
    [more] = re.findall(r"Still up.*\n\$ (.*)", log.read_text())
    words = [*shlex.split(more), "--run-config", "dataset='digits' num-server-rounds=1", "--stream"]
    done = subprocess.run([BIN / words[0], *words[1:]], capture_output=True, text=True, timeout=120)
    assert "Centralized accuracy" in done.stdout, done.stdout + done.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert processes_of(tmp_path / "kept") == []


def test_what_the_tool_makes_stays_out_of_git():
    names = [".federations/a/superlink.db", "docs/certificates/ca.key", "keys/site-a"]
    done = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == names


def test_bad_arguments_are_named():
    for words, message in [
        (["nowhere"], "nowhere holds no pyproject.toml"),
        ([str(CIFAR), "--num-supernodes", "0"], "--num-supernodes 0: at least 1 is needed"),
    ]:
        done = subprocess.run([*TOOL, *words], capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr
