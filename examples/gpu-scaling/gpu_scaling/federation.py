"""A SuperLink and SuperNodes on this machine, without TLS, on loopback addresses."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from gpu_scaling.executors.orphans import end_with_parent

APP = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LOOPBACK = "127.0.0.1"
START_SECONDS = 300  # for a part to start while others do
STOP_SECONDS = 10  # for a part to stop by itself
LINUX = sys.platform == "linux"
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what ends a run in good order


class FederationError(RuntimeError):
    """A part did not start, or ended; the text says which, and where its log is."""


class Federation:
    """The parts, each with a log; a context in which they run.

    Args:
        folder: for logs, and for the apps that each part installs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control, self.fleet, self.serverappio = free_addresses(3)
        self.parts: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Take everything down; nothing interrupts that."""
        before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDINGS}
        try:
            groups = [process.pid for process in self.parts.values()]
            for number in (signal.SIGTERM, signal.SIGKILL):
                for group in groups:
                    with suppress(ProcessLookupError):
                        os.killpg(group, number)
                deadline = time.monotonic() + STOP_SECONDS
                while (groups := self.alive(groups)) and time.monotonic() < deadline:
                    time.sleep(0.1)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def alive(self, groups: Iterable[int]) -> list[int]:
        """Return those groups of processes that have not ended."""
        for process in self.parts.values():
            process.poll()  # else it would stay, as a zombie
        return [group for group in groups if exists(group)]

    def start_superlink(self) -> None:
        addresses = {"control": self.control, "fleet": self.fleet, "serverappio": self.serverappio}
        command = [sys.executable, "-P", str(APP / "gpu_scaling" / "superlink.py"), "--insecure"]
        for name, address in addresses.items():
            command += [f"--{name}-api-address", address]
        self.start("superlink", command)
        self.wait(["superlink"], lambda _: all(map(answers, addresses.values())))

    def start_supernodes(self, count: int, progress: Callable[[int], None]) -> None:
        """Start SuperNodes one after the other, no more at once than there are cores.

        Args:
            count: how many; each holds one of as many partitions.
            progress: called with the number of those that are connected.
        """
        starting: list[str] = []
        for partition, address in enumerate(free_addresses(count)):
            command = [str(BIN / "flower-supernode"), "--insecure", "--superlink", self.fleet]
            command += ["--clientappio-api-address", address]
            command += ["--node-config", f"partition-id={partition} num-partitions={count}"]
            self.start(f"supernode-{partition}", command)
            starting = self.wait([*starting, f"supernode-{partition}"], self.connected, cores() - 1)
            progress(partition + 1 - len(starting))
        self.wait(starting, self.connected)
        progress(count)

    def connected(self, name: str) -> bool:
        return "SuperNode ID" in self.log(name).read_text(errors="replace")

    def start(self, name: str, command: list[str]) -> None:
        """Start a part in a group of its own, to be stopped together with its children."""
        launcher = os.getpid()
        with self.log(name).open("w") as log:
            self.parts[name] = subprocess.Popen(
                command,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=(lambda: end_with_parent(launcher)) if LINUX else None,
            )

    def environment(self, name: str) -> dict[str, str]:
        """Give each part a folder of its own, and no proxy on the way to the others."""
        # In small letters: gRPC knows no others.
        direct = filter(None, [os.environ.get("no_grpc_proxy"), LOOPBACK])  # noqa: SIM112
        own = {"FLWR_HOME": str(self.folder / name), "no_grpc_proxy": ",".join(direct)}
        return os.environ | own | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait(self, names: list[str], ready: Callable[[str], bool], most: int = 0) -> list[str]:
        """Wait until no more than `most` of the parts are not ready; return those.

        Raises:
            FederationError: one has ended, or they take too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while len(names := [name for name in names if not ready(name)]) > most:
            for name in names:
                ended = self.parts[name].poll() is not None
                if ended or time.monotonic() > deadline:
                    what = "ended" if ended else f"was not ready in {START_SECONDS} s"
                    raise FederationError(f"{name} {what}; see {self.log(name)}")
            time.sleep(0.2)
        return names

    def run(self, run_config: dict[str, Any]) -> int:
        """Start a run of the app and return its id."""
        settings = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
        answer = self.ask("run", str(APP), run_config=settings)
        if not answer.get("success"):
            raise FederationError(f"the run could not be started: {answer.get('error-message')}")
        return int(answer["run-id"])

    def follow(self, run_id: int) -> str:
        """Print a run's log until it ends; return its status, "finished:completed" if all is well.

        Raises:
            FederationError: the SuperLink ended, or no SuperNode is left.
        """
        command = [*self.flwr("log", str(run_id), str(APP)), "--stream"]
        stream = subprocess.Popen(command, env=self.environment("cli"))
        try:
            while stream.poll() is None:
                self.check()
                time.sleep(0.5)
        finally:
            stream.kill()
            stream.wait()
        self.check()
        return self.ask("ls", str(APP), run_id=str(run_id))["runs"][0]["status"]

    def check(self) -> None:
        """Say which parts have ended since the last look; a run can do without some SuperNodes."""
        for name in [name for name, process in self.parts.items() if process.poll() is not None]:
            print(f"{name} ended, exit status {self.parts.pop(name).returncode}; {self.log(name)}")
        if "superlink" not in self.parts or len(self.parts) == 1:
            alive = "superlink" in self.parts
            raise FederationError("no SuperNode is left" if alive else "the SuperLink ended")

    def ask(self, command: str, *words: str, **options: str) -> dict[str, Any]:
        """Run one of Flower's commands and return its answer."""
        named = [word for n, v in options.items() for word in (f"--{n.replace('_', '-')}", v)]
        done = subprocess.run(
            [*self.flwr(command, *words), *named, "--format", "json"],
            env=self.environment("cli"),
            capture_output=True,
            text=True,
        )
        try:
            return json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            text = f"{done.stdout}{done.stderr}".strip()
            raise FederationError(f"`flwr {shlex.join([command, *words])}`: {text}") from None

    def flwr(self, *words: str) -> list[str]:
        address = f'address="{self.control}"'
        return [str(BIN / "flwr"), *words, "local-deployment", "--federation-config", address]


def exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_addresses(count: int) -> list[str]:
    """Return loopback addresses with ports that nobody uses, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((LOOPBACK, 0))
    addresses = [f"{LOOPBACK}:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
