"""Run the examples on the newest Flower release, and check what they give.

Copies of them, with the pin loosened, are installed into an environment of their own, with the
versions in constraints.txt wherever that release allows them. Each is then run offline, as a user
runs it: `flwr run`, which starts a local SuperLink. What differs there: docs/newest-flwr.md.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from repository import ROOT, example_folder, example_names, flatten, flower_settings, load_toml

sys.path.append(str(ROOT))
from kit.federation import LEFT_OUT, exit_on_signals, free_addresses, uninterrupted

BIN = Path(sys.executable).parent
PIN = "flwr[simulation]=="
# Flower gives it 15 seconds, and a slow machine may need more the first time: tried once more.
SLOW_START = "Failed to start local SuperLink"
RUN_SECONDS = 1200  # for an example's run
STATUS_SECONDS = 60  # for the SuperLink to note that it has ended
STOP_SECONDS = 10  # for its processes to end by themselves


@dataclass(frozen=True)
class Promise:
    """What an example's README and tests promise of the offline run, on the pinned release."""

    metric: str  # of the global model after the last round
    value: float
    tolerance: float
    clients: int  # that train in each round


PROMISES = {
    "vit-finetune": Promise("accuracy", 0.94, 0.03, 10),
    "advanced-pytorch": Promise("accuracy", 0.95, 0.03, 12),
    "pytorch-from-centralized-to-federated": Promise("accuracy", 0.98, 0.015, 2),
    "flowertune-llm": Promise("loss", 3.06, 0.1, 2),
    "gpu-scaling": Promise("accuracy", 0.947, 0.015, 20),
}


class Failed(Exception):
    """An example did not do what it promises; the text says what."""


class NewestFlower:
    """An environment with the newest Flower release, and copies of examples installed in it.

    Args:
        folder: a new one, for all that is made and written.
        examples: their names.
    """

    def __init__(self, folder: Path, examples: list[str]) -> None:
        self.folder = folder.resolve()
        self.bin = self.folder / "venv" / "bin"
        self.resolved = self.folder / "constraints.txt"
        self.apps = {name: self.folder / "apps" / name for name in examples}

    def install(self) -> None:
        """Copy the examples, find out the versions, and install them."""
        for name, app in self.apps.items():
            shutil.copytree(example_folder(name), app, ignore=shutil.ignore_patterns(*LEFT_OUT))
            shutil.copy(example_folder(name) / ".gitignore", app)
            text = (app / "pyproject.toml").read_text()
            (app / "pyproject.toml").write_text(text.replace(PIN, PIN.replace("==", ">=")))
        # What lies in the output file is what uv keeps to, unless a requirement forbids it.
        shutil.copy(ROOT / "constraints.txt", self.resolved)
        projects = [app / "pyproject.toml" for app in self.apps.values()]
        uv("pip", "compile", "--upgrade-package", "flwr", "-o", self.resolved, *projects)
        uv("venv", "--python", sys.executable, self.bin.parent)
        editable = [word for app in self.apps.values() for word in ("--editable", app)]
        constraints = [
            "--constraint",
            self.resolved,
            "--build-constraint",
            ROOT / "constraints.txt",
        ]
        options = ["--compile-bytecode", "--python", self.bin / "python", *constraints]
        uv("pip", "install", *options, *editable)

    def moved(self) -> dict[str, tuple[str, str]]:
        """Return the versions, pinned and here, of the packages in which they differ."""
        pinned, here = versions(ROOT / "constraints.txt"), versions(self.resolved)
        return {
            name: (pinned[name], version)
            for name, version in here.items()
            if name in pinned and pinned[name] != version
        }

    def check(self, name: str) -> str:
        """Run an example offline; return its outcome in words.

        Raises:
            Failed: it did not end well, or gave something else than it promises.
        """
        home, began = self.folder / "home" / name, time.monotonic()
        try:
            status = self.run(name, self.environment(home))
        finally:
            with uninterrupted():
                stop(home)
        seconds = time.monotonic() - began
        if status != "finished:completed":
            raise Failed(f"{status or 'not finished'} after {seconds:.0f} s")
        history = results(self.apps[name])
        promise = PROMISES[name]
        wrong = problems(history, self.log(name).read_text(), promise, rounds(name))
        if wrong:
            raise Failed(f"{status}, but {'; '.join(wrong)}")
        reached = history[-1]["evaluate_metrics_serverapp"][promise.metric]
        return (
            f"{status}, {rounds(name)} rounds of {promise.clients} clients, "
            f"{promise.metric} {reached:.3f}, {seconds:.0f} s"
        )

    def run(self, name: str, environment: dict[str, str]) -> str:
        """Run an example, write its log, and return its status when it has ended."""
        within = {"cwd": self.apps[name], "env": environment}

        def flwr(*words: str) -> dict[str, Any]:
            command = [self.bin / "flwr", *words, "--format", "json"]
            done = subprocess.run(command, **within, capture_output=True, text=True)
            answer = json.loads(done.stdout) if done.stdout.startswith("{") else {}
            if not answer.get("success"):
                raise Failed(f"`flwr {' '.join(words)}`: {done.stdout}{done.stderr}".strip())
            return answer

        command = ("run", ".", "--run-config", "offline.toml")
        try:
            run_id = flwr(*command)["run-id"]
        except Failed as error:
            if SLOW_START not in str(error):
                raise
            run_id = flwr(*command)["run-id"]
        follow = [self.bin / "flwr", "log", run_id, "--stream"]
        with self.log(name).open("w") as file:
            try:
                subprocess.run(follow, **within, stdout=file, stderr=file, timeout=RUN_SECONDS)
            except subprocess.TimeoutExpired:
                raise Failed(f"not finished after {RUN_SECONDS} s") from None
        status, deadline = "", time.monotonic() + STATUS_SECONDS
        while not status.startswith("finished") and time.monotonic() < deadline:
            status = flwr("ls", "--run-id", run_id)["runs"][0]["status"]
        return status

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def environment(self, home: Path) -> dict[str, str]:
        """Return what gives a run a SuperLink of its own, and no other packages than these."""
        http, control = (address.split(":")[1] for address in free_addresses(2))
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return kept | {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http,
            "FLWR_LOCAL_CONTROL_API_PORT": control,
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_ADDRESS": "local",  # else Ray joins a cluster that it finds on the machine
        }


def uv(*words: object) -> None:
    """Run uv, quietly.

    Raises:
        SystemExit: it failed; says what uv says.
    """
    beside = BIN / "uv"
    program = str(beside) if beside.is_file() else "uv"
    done = subprocess.run([program, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"`{shlex.join(done.args)}` failed:\n{done.stderr}")


def versions(constraints: Path) -> dict[str, str]:
    """Return the versions in a constraints file, of the packages that have one everywhere."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", constraints.read_text(), re.MULTILINE)
    names = [name for name, _ in found]
    return {name: version for name, version in found if names.count(name) == 1}


def rounds(example: str) -> int:
    """Return how many rounds the offline run has."""
    folder = example_folder(example)
    declared = flatten(flower_settings(folder)["app"]["config"])
    return (declared | flatten(load_toml(folder / "offline.toml")))["num-server-rounds"]


def results(app: Path) -> list[dict[str, Any]]:
    """Return what the only run of an app has written.

    Raises:
        Failed: there is nothing.
    """
    for path in app.glob("outputs/*/*/results.json"):
        return json.loads(path.read_text())
    raise Failed(f"no results.json in {app / 'outputs'}")


def problems(
    history: list[dict[str, Any]], log: str, promise: Promise, num_rounds: int
) -> list[str]:
    """Return what differs from the promise, each in words.

    Args:
        history: the run's results.json.
        log: what the run has logged; Flower says there how many replies were aggregated.
        promise: what is expected of them.
        num_rounds: how many rounds the run was to have.
    """
    found = []
    if [entry["round"] for entry in history] != list(range(num_rounds + 1)):
        found.append(f"{len(history) - 1} of {num_rounds} rounds")
    replies = re.findall(r"aggregate_train: Received (\d+) results and 0 failures", log)
    if [int(count) for count in replies] != [promise.clients] * num_rounds:
        expected = f"{promise.clients} in each of {num_rounds} rounds"
        found.append(f"replies {', '.join(replies)}; expected {expected}")
    reached = history[-1]["evaluate_metrics_serverapp"].get(promise.metric, float("nan"))
    if not abs(reached - promise.value) <= promise.tolerance:
        found.append(f"{promise.metric} {reached:.3f}, not {promise.value} ± {promise.tolerance}")
    return found


def processes(home: Path) -> list[psutil.Process]:
    """Return the processes that have this FLWR_HOME, and those that they started."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == str(home):
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return list(found)


def stop(home: Path) -> None:
    """End the SuperLink of this FLWR_HOME, which runs detached, and all that it started."""
    for act in (psutil.Process.terminate, psutil.Process.kill):
        left = processes(home)
        for process in left:
            try:
                act(process)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, STOP_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("examples", nargs="*", help="folders in examples/; all by default")
    examples = parser.parse_args().examples or example_names()
    for name in examples:
        example_folder(name)  # says which there are, if this is none
    exit_on_signals()
    folder, failed = ROOT / ".newest-flower" / str(os.getpid()), False
    try:
        newest = NewestFlower(folder, examples)
        newest.install()
        moved = newest.moved()
        if "flwr" not in moved:
            print("The newest flwr is the pinned one: nothing to test")
            return 0
        listed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in moved.items())
        print(f"Not as in constraints.txt: {listed}", flush=True)
        for name in examples:
            try:
                print(f"{name}: ok, {newest.check(name)}", flush=True)
            except Failed as error:
                failed = True
                print(f"{name}: FAILED, {error}", flush=True)
    except KeyboardInterrupt:
        print("Interrupted: taken down")
        return 130
    finally:
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)
    if failed:
        print(f"Logs: {folder}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
