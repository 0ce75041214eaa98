"""Run the tests of the pinned Flower release on the newest one: examples, kit, deployment.

Copies of the examples, with the pin loosened, are installed into an environment of their own, with
the versions in constraints.txt as far as that release allows them. Each is then run offline as by a
user: `flwr run`, which starts a local SuperLink. After that come the kit's tests, and those of
federations over TLS with their faults. When all pass, results/newest-flower.json says so
(newest-flower-avx2.json on a processor with AVX2 alone).

With names of examples, only those are run. What differs there: docs/newest-flwr.md.
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

sys.path += [str(ROOT), str(ROOT / "benchmarks")]
from common import PACKAGES, SEED, instructions, measurement

from kit.federation import LEFT_OUT, exit_on_signals, free_addresses, uninterrupted

BIN = Path(sys.executable).parent
PIN = "flwr[simulation]=="
# Flower allows 15 seconds; a slow machine may need more the first time, so it is tried again.
SLOW_START = "Failed to start local SuperLink"
RUN_SECONDS = 1200  # for an example's run
DEFAULT = "local-simulation"  # the federation that examples are run in
# Packages that the tests need beside the examples' dependencies.
TEST_PACKAGES = ("psutil", "pytest", "torchvision")
TESTS = {
    "the kit's tests": ["kit"],
    "deployment of two over TLS": [
        f"tests/test_federation.py::test_each_example_gives_what_one_process_gives[{name}]"
        for name in ("pytorch-from-centralized-to-federated", "advanced-pytorch")
    ],
    "its faults": [
        f"tests/test_federation_failures.py::{name}"
        for name in (
            "test_strangers_are_refused_and_bad_updates_left_out",
            "test_killed_clientapp_is_asked_again[cold]",
            "test_killed_parts_cost_what_the_guide_says",
        )
    ],
}
STATUS_SECONDS = 60  # for the SuperLink to note that it has ended
STOP_SECONDS = 10  # for its processes to end by themselves


@dataclass(frozen=True)
class Promise:
    """The outcome of an offline run that an example's README and tests promise."""

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
    """A broken promise of an example; the text names it."""


class NewestFlower:
    """An environment with the newest Flower release, and copies of examples installed in it.

    Args:
        folder: a new one, for all files.
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
        # uv keeps to the versions in the output file, unless a requirement forbids one.
        shutil.copy(ROOT / "constraints.txt", self.resolved)
        projects = [app / "pyproject.toml" for app in self.apps.values()]
        for_tests = self.folder / "tests.in"
        for_tests.write_text("\n".join(TEST_PACKAGES))
        upgraded = ["--upgrade-package", "flwr", "--all-extras", "-o", self.resolved]
        uv("pip", "compile", *upgraded, for_tests, *projects)
        uv("venv", "--python", sys.executable, self.bin.parent)
        editable = [word for app in self.apps.values() for word in ("--editable", f"{app}[test]")]
        constraints = [
            "--constraint",
            self.resolved,
            "--build-constraint",
            ROOT / "constraints.txt",
        ]
        options = ["--compile-bytecode", "--python", self.bin / "python", *constraints]
        uv("pip", "install", *options, "--requirement", for_tests, *editable)

    def moved(self) -> dict[str, tuple[str, str]]:
        """Return the pinned and the installed version of each package in which they differ."""
        pinned, here = versions(ROOT / "constraints.txt"), versions(self.resolved)
        return {
            name: (pinned[name], version)
            for name, version in here.items()
            if name in pinned and pinned[name] != version
        }

    def check(self, name: str) -> str:
        """Run an example offline; return its outcome in words.

        Raises:
            Failed: it did not complete, or broke a promise.
        """
        home, began = self.folder / "home" / name, time.monotonic()
        environment = self.environment(home)
        try:
            status = self.run(name, environment)
            seconds = time.monotonic() - began
            for path in (self.apps[name] / "federations").glob("*.toml"):
                if path.stem != DEFAULT:
                    self.accepts(name, path.stem, environment)
        finally:
            with uninterrupted():
                stop(home)
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
        run_id = self.start(name, DEFAULT, environment)
        follow = [self.bin / "flwr", "log", run_id, "--stream"]
        with self.log(name).open("w") as file:
            try:
                subprocess.run(
                    follow,
                    cwd=self.apps[name],
                    env=environment,
                    stdout=file,
                    stderr=file,
                    timeout=RUN_SECONDS,
                )
            except subprocess.TimeoutExpired:
                raise Failed(f"not finished after {RUN_SECONDS} s") from None
        status, deadline = "", time.monotonic() + STATUS_SECONDS
        while not status.startswith("finished") and time.monotonic() < deadline:
            answer = self.flwr(name, environment, "ls", "--run-id", run_id)
            status = answer["runs"][0]["status"]
        return status

    def accepts(self, name: str, federation: str, environment: dict[str, str]) -> None:
        """Start a run in a federation, and stop it, since this machine may have no GPU.

        Raises:
            Failed: Flower refuses the federation's file.
        """
        run_id = self.start(name, federation, environment)
        self.flwr(name, environment, "stop", run_id)

    def start(self, name: str, federation: str, environment: dict[str, str]) -> str:
        """Start an offline run in one of an example's federations, and return its id."""
        command = ("run", ".", "--run-config", "offline.toml")
        command += ("--federation-config", f"federations/{federation}.toml")
        try:
            return self.flwr(name, environment, *command)["run-id"]
        except Failed as error:
            if SLOW_START not in str(error):
                raise
            # Flower has killed it; its database may be half-made.
            shutil.rmtree(Path(environment["FLWR_HOME"], "local-superlink"))
            return self.flwr(name, environment, *command)["run-id"]

    def flwr(self, name: str, environment: dict[str, str], *words: str) -> dict[str, Any]:
        """Return the answer of one of Flower's commands, run in an example's folder.

        Raises:
            Failed: it did not succeed; the text has its output.
        """
        command = [self.bin / "flwr", *words, "--format", "json"]
        done = subprocess.run(
            command, cwd=self.apps[name], env=environment, capture_output=True, text=True
        )
        answer = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        if not answer.get("success"):
            raise Failed(f"`flwr {' '.join(words)}`: {done.stdout}{done.stderr}".strip())
        return answer

    def test(self, what: str) -> str:
        """Run tests of this repository by this environment; return their outcome in words.

        Raises:
            Failed: not all of them passed; skipped ones count as passed.
        """
        log = self.log(what.replace(" ", "-"))
        command = [self.bin / "python", "-m", "pytest", "-p", "no:cacheprovider", *TESTS[what]]
        with log.open("w") as file:
            environment = self.environment(self.folder / "home" / "tests")
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        ending = log.read_text().strip().splitlines()[-1].strip("= ")
        if done.returncode != 0:
            raise Failed(f"{ending}: {log}")
        return ending

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def environment(self, home: Path) -> dict[str, str]:
        """Return an environment with a SuperLink of its own, and with these packages only."""
        [address] = free_addresses(1)
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return kept | {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": address.split(":")[1],
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_ADDRESS": "local",  # else Ray joins a cluster on this machine
        }


def uv(*words: object) -> None:
    """Run uv, quietly.

    Raises:
        SystemExit: it failed; the text has uv's output.
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
    """Return the number of rounds of the offline run."""
    folder = example_folder(example)
    declared = flatten(flower_settings(folder)["app"]["config"])
    return (declared | flatten(load_toml(folder / "offline.toml")))["num-server-rounds"]


def results(app: Path) -> list[dict[str, Any]]:
    """Return results.json of an app's only run.

    Raises:
        Failed: there is none.
    """
    for path in app.glob("outputs/*/*/results.json"):
        return json.loads(path.read_text())
    raise Failed(f"no results.json in {app / 'outputs'}")


def problems(
    history: list[dict[str, Any]], log: str, promise: Promise, num_rounds: int
) -> list[str]:
    """Return a text for each difference from the promise.

    Args:
        history: the run's results.json.
        log: of the run; it has the number of aggregated replies.
        promise: the expected outcome.
        num_rounds: the expected number of rounds.
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
    """Return the processes with this FLWR_HOME, and their descendants."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == str(home):
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return list(found)


def stop(home: Path) -> None:
    """End the detached SuperLink of this FLWR_HOME, and all that it started."""
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
    chosen = parser.parse_args().examples
    for name in chosen:
        example_folder(name)  # raises an error for an unknown name
    exit_on_signals()
    folder, failed = ROOT / ".newest-flower" / str(os.getpid()), False
    try:
        name = "newest-flower-avx2" if instructions() == "AVX2" else "newest-flower"
        with measurement(name, [SEED], trial=bool(chosen)) as result:
            run_all(NewestFlower(folder, chosen or example_names()), bool(chosen), result)
    except KeyboardInterrupt:
        print("Interrupted: taken down")
        return 130
    except Failed:
        failed = True
        print(f"Logs: {folder}", file=sys.stderr)
    finally:
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)
    return int(failed)


def run_all(newest: NewestFlower, only_examples: bool, result: dict[str, Any]) -> None:
    """Run everything, one after the other, and note each outcome in the result.

    Raises:
        Failed: something failed; the rest was run all the same.
    """
    newest.install()
    here = versions(newest.resolved)
    moved = ", ".join(f"{n} {old} -> {new}" for n, (old, new) in newest.moved().items())
    print(f"flwr {here['flwr']}; not as in constraints.txt: {moved or 'nothing'}", flush=True)
    result["packages"] = {name: here[name] for name in PACKAGES if name in here}
    steps = dict.fromkeys(newest.apps, newest.check)
    steps |= {} if only_examples else dict.fromkeys(TESTS, newest.test)
    result["passed"], failed = {}, False
    for name, step in steps.items():
        began = time.monotonic()
        try:
            outcome = step(name)
        except Failed as error:
            failed = True
            print(f"{name}: FAILED, {error}", flush=True)
        else:
            seconds = round(time.monotonic() - began, 1)
            result["passed"][name] = {"outcome": outcome, "seconds": seconds}
            print(f"{name}: ok, {outcome}", flush=True)
    if failed:
        raise Failed("not all passed")


if __name__ == "__main__":
    sys.exit(main())
