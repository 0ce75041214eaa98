"""`python -m <package>.kit.federation`, as from a user: SuperLink, SuperNodes, TLS, keys."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from on_this_machine import BIN, CIFAR, posix_only, processes_of, results, wait
from repository import ROOT, example_names, flatten, load_toml, package_of

from kit.settings import as_run_config

TWO_ROUNDS = "num-server-rounds=2"

pytestmark = posix_only


def tool(app: Path) -> list[str]:
    return [sys.executable, "-m", f"{package_of(app)}.kit.federation"]


def form(value: Any) -> Any:
    """Return names and types without the values."""
    if isinstance(value, dict):
        return {name: form(one) for name, one in value.items()}
    if isinstance(value, list):
        return [form(one) for one in value]
    return type(value).__name__


def left_by_flower(app: Path) -> list[Path]:
    return sorted(path for path in app.rglob("*") if path.name in (".flwr", "superlink.db"))


@pytest.mark.thorough
@pytest.mark.parametrize("example", example_names())
def test_each_example_gives_what_one_process_gives(example, tmp_path):
    app, folder = ROOT / "examples" / example, tmp_path / "federation"
    before = left_by_flower(app)
    command = [*tool(app), "--offline", "--run-config", TWO_ROUNDS, "--warm", "--folder", folder]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^Run \d+: finished:completed$", done.stdout, re.MULTILINE)
    assert re.search(r"superlink.* --ssl-ca-certfile .* --enable-supernode-auth", done.stdout)
    assert processes_of(folder) == []
    assert left_by_flower(app) == before

    keys = [*folder.glob("certificates/*.key"), *folder.glob("keys/supernode-?")]
    assert len(keys) == 4
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700

    simulated = tmp_path / "simulated"
    simulated.mkdir()
    settings = flatten(load_toml(app / "offline.toml")) | {"num-server-rounds": 2}
    command = [sys.executable, "-m", f"{package_of(app)}.kit.in_process", "--num-supernodes", "2"]
    command += ["--run-config", as_run_config(settings)]
    done = subprocess.run(command, cwd=simulated, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert form(results(tmp_path)) == form(results(simulated))
    [one, other] = [
        results(folder)[-1]["evaluate_metrics_serverapp"] for folder in (tmp_path, simulated)
    ]
    assert one == {name: pytest.approx(value, rel=0.02) for name, value in other.items()}
    assert one["loss"] < results(tmp_path)[0]["evaluate_metrics_serverapp"]["loss"]
    assert one.get("accuracy", 1.0) > 0.9  # after two rounds of two clients


@pytest.mark.thorough
def test_two_at_once_and_nothing_left_after_ctrl_c_or_a_death(request, tmp_path):
    """One of two federations is interrupted, and the other loses its SuperLink."""
    started = []
    request.addfinalizer(lambda: [process.terminate() for process, _, _ in started])
    for name in ("interrupted", "bereft"):
        command = [*tool(CIFAR), CIFAR, "--offline", "--insecure", "--folder", tmp_path / name]
        log = (tmp_path / f"{name}.log").open("w+")
        process = subprocess.Popen(
            [str(word) for word in command], cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        )
        started.append((process, tmp_path / name, tmp_path / f"{name}.log"))
    for _, _, log in started:
        wait(lambda: "$ flwr log" in log.read_text(), 600, "the start")  # noqa: B023
    (interrupted, folder, log), (bereft, other_folder, other_log) = started
    assert processes_of(folder)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(200) == 130, log.read_text()
    assert processes_of(folder) == []
    [superlink] = [
        process
        for process in processes_of(other_folder)
        if re.search(r"superlink\.py|flower-superlink", " ".join(process.cmdline()))
    ]
    superlink.kill()
    assert bereft.wait(200) == 1
    assert "Error: the SuperLink ended" in other_log.read_text()
    # On the newest Flower the ServerApp then has no parent, and ends by itself.
    wait(lambda: processes_of(other_folder) == [], 60, "the end of the ServerApp")


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_interrupts_it_hears_what_is_safe(number, tmp_path):
    """The folder for temporary files has a path with a space that is too long for a socket."""
    temporary = tmp_path / "a folder" / ("x" * 100)
    temporary.mkdir(parents=True)
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*tool(CIFAR), CIFAR, "--offline", "--warm"],
            cwd=tmp_path,
            env=os.environ | {"TMPDIR": str(temporary)},
            stdout=file,
            stderr=file,
        )
    wait(lambda: "[ROUND 3/" in log.read_text() or process.poll() is not None, 600, "round 3")
    process.send_signal(number)
    assert process.wait(60) == 128 + number, log.read_text()
    [folder] = re.findall(r"Interrupted; round [2-4] is safe: resume-from='(.*)'", log.read_text())
    assert (Path(folder) / "results.json").is_file()
    assert list(temporary.glob("federation-*")) == processes_of(temporary) == []


@pytest.mark.thorough
def test_kept_federation_takes_more_runs(request, tmp_path):
    """The environment names a proxy that does not exist: its own connections avoid it."""
    environment = os.environ | dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    command = [*tool(CIFAR), CIFAR, "--offline", "--warm", "--keep"]
    command += ["--run-config", "num-server-rounds=1"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--folder", tmp_path / "kept"],
            cwd=tmp_path,
            env=environment,
            stdout=file,
            stderr=file,
        )
    request.addfinalizer(process.terminate)
    wait(lambda: "Still up" in log.read_text() or process.poll() is not None, 600, "the first run")
    [more] = re.findall(r"Still up.*\n\$ (.*)", log.read_text())
    command = f"{more} --run-config \"dataset='digits' num-server-rounds=1\" --stream"
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, shell=True, env=environment, capture_output=True, text=True, timeout=600
    )
    assert "Centralized accuracy" in done.stdout, done.stdout + done.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 0
    assert processes_of(tmp_path / "kept") == []


def test_what_the_tool_makes_stays_out_of_git():
    names = ["docs/certificates/ca.key", "keys/site-a"]
    done = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == names
