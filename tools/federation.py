"""Run an example on a real federation on this machine: a SuperLink and SuperNodes, over TLS.

Makes a certificate authority, certificates and keys, starts every part, registers the SuperNodes'
keys, runs the app, follows its log, and takes everything down again. It prints each command, so
that the same can be done by hand on machines apart: docs/deployment.md.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Self

import psutil
import typer
from certificates import make_certificates, make_node_key, public_key_path
from flwr.common.config import parse_config_args
from orphans import end_with_parent
from packaging.requirements import Requirement
from repository import ROOT, as_run_config, flatten, flower_settings, load_toml

BIN = Path(sys.executable).parent
LOOPBACK = "127.0.0.1"
NAME = "this-machine"  # of the federation, in the copied app's pyproject.toml
START_SECONDS = 120  # for a part to start: two busy cores need half a minute
STOP_SECONDS = 10  # for a part to stop by itself
LINUX = sys.platform == "linux"
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what ends the tool in good order
LEFT_OUT = ("outputs", "__pycache__", ".*", "*.egg-info", "wandb")


class FederationError(RuntimeError):
    """A part of the federation did not start, or ended."""


@dataclass
class Part:
    """One process of the federation, with those that it starts, and its log."""

    name: str
    process: subprocess.Popen
    log: Path

    def running(self) -> bool:
        return self.process.poll() is None

    def says(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    def stop(self) -> None:
        """End the process and all that it started; kill what does not end by itself."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            deadline = time.monotonic() + STOP_SECONDS
            while self.group() and time.monotonic() < deadline:
                time.sleep(0.1)
            if not self.group():
                break
        self.process.wait()

    def group(self) -> list[psutil.Process]:
        """Return those of its processes that have not ended."""
        self.process.poll()
        found = []
        for process in psutil.process_iter(["status"]):
            with suppress(ProcessLookupError, psutil.Error):
                if os.getpgid(process.pid) == self.process.pid:
                    found.append(process)
        return [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]


class Federation:
    """A SuperLink and SuperNodes on this machine, for one app.

    Args:
        app: the app's folder; a copy of it is run, so that nothing is written there.
        folder: keys, certificates, the SuperLink's database and logs; used again if it exists.
        secure: TLS, and only SuperNodes whose keys are registered; else neither.
        warm: fork ClientApps from processes that have imported the app's dependencies.
        database: keep the SuperLink's state in a file, for a restart; else in memory.
        verbose: print each command.
    """

    def __init__(
        self,
        app: Path,
        folder: Path,
        *,
        secure: bool = True,
        warm: bool = False,
        database: bool = True,
        verbose: bool = True,
    ) -> None:
        self.folder = folder.resolve()
        self.app = self.folder / "app"
        self.secure = secure
        self.database = database
        self.preload = modules(app) if warm else []
        self.verbose = verbose
        self.parts: dict[str, Part] = {}
        self.control, self.fleet, self.serverappio = free_addresses(3)
        self.registered: set[Path] = set()
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if secure and not self.certificates.exists():
            make_certificates(self.certificates)
        self.copy(app)

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    def copy(self, app: Path) -> None:
        """Copy the app, and declare this federation in the copy."""
        shutil.rmtree(self.app, ignore_errors=True)
        shutil.copytree(app, self.app, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if (app / ".gitignore").is_file():
            shutil.copy(app / ".gitignore", self.app)
        trust = f'root-certificates = "{self.certificates / "ca.crt"}"'
        with (self.app / "pyproject.toml").open("a") as file:
            file.write(f'\n[tool.flwr.federations.{NAME}]\naddress = "{self.control}"\n')
            file.write(f"{trust if self.secure else 'insecure = true'}\n")

    def __enter__(self) -> Self:
        try:
            self.start_superlink()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take everything down, SuperNodes first; nothing interrupts that."""
        with uninterrupted():
            for name in sorted(self.parts, key=lambda name: name == "superlink"):
                self.parts[name].stop()

    def start_superlink(self) -> Part:
        """Start the SuperLink, on its database if it has one, and wait until it answers."""
        command = [sys.executable, str(ROOT / "tools" / "superlink.py"), *self.tls_of_server()]
        command += ["--control-api-address", self.control, "--fleet-api-address", self.fleet]
        command += ["--serverappio-api-address", self.serverappio]
        if self.database:
            command += ["--database", str(self.folder / "superlink.db")]
        part = self.start("superlink", command)
        self.wait(part, lambda: all(map(answers, (self.control, self.fleet, self.serverappio))))
        return part

    def tls_of_server(self) -> list[str]:
        if not self.secure:
            return ["--insecure"]
        files = {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
        named = [(f"--ssl-{option}", self.certificates / file) for option, file in files.items()]
        return [str(word) for pair in named for word in pair] + ["--enable-supernode-auth"]

    def start_supernode(
        self,
        partition: int,
        partitions: int,
        *,
        register: bool = True,
        ca: Path | None = None,
        secure: bool | None = None,
        wait: bool = True,
        node_config: str = "",
    ) -> Part:
        """Start a SuperNode, once its key is registered, and wait until it is connected.

        Args:
            partition: which part of the data it holds, of `partitions`.
            register: whether to register its public key.
            ca: the certificate that it trusts; that of this federation by default.
            secure: whether it uses TLS and its key; as the federation by default.
            wait: whether to wait.
            node_config: more of it, as "key=value key=value".

        Raises:
            FederationError: it ended, or took too long.
        """
        name, [address] = f"supernode-{partition}", free_addresses(1)
        command = ["flower-supernode", "--superlink", self.fleet]
        command += ["--clientappio-api-address", address]
        holds = f"partition-id={partition} num-partitions={partitions} {node_config}".strip()
        command += ["--node-config", holds]
        if self.secure if secure is None else secure:
            key = self.folder / "keys" / name
            if not key.exists():
                make_node_key(key)
            if register:
                self.register(key)
            command += ["--root-certificates", str(ca or self.certificates / "ca.crt")]
            command += ["--auth-supernode-private-key", str(key)]
        else:
            command += ["--insecure"]
        threads = max(1, cores() // partitions)
        isolation = ["--isolation", "process"] * bool(self.preload)
        part = self.start(name, command + isolation, threads)
        if self.preload:
            command = [sys.executable, str(ROOT / "tools" / "warm_clientapp.py")]
            command += ["--clientappio-api-address", address, "--preload", *self.preload]
            self.start(f"clientapp-{partition}", command, threads)
        if wait:
            self.wait(part, lambda: part.says("SuperNode ID"))
        return part

    def register(self, key: Path) -> None:
        """Register the public key beside a private key, unless this federation has it."""
        if key in self.registered:
            return
        public = public_key_path(key)
        done = self.call(["flwr", "supernode", "register", str(public), str(self.app), NAME])
        if "registered successfully" not in done and "already in use" not in done:
            raise FederationError(f"{public} could not be registered:\n{done}")
        self.registered.add(key)

    def run(self, run_config: str = "") -> int:
        """Start a run of the app and return its id."""
        command = ["flwr", "run", str(self.app), NAME]
        answer = self.ask(command + (["--run-config", run_config] if run_config else []))
        if not answer.get("success"):
            raise FederationError(f"the run could not be started: {answer.get('error-message')}")
        return int(answer["run-id"])

    def follow(self, run_id: int) -> str:
        """Print a run's log until it ends; return its status, "finished:completed" if all is well.

        Raises:
            FederationError: the SuperLink ended, or no SuperNode is left.
        """
        command = ["flwr", "log", str(run_id), str(self.app), NAME, "--stream"]
        if self.verbose:
            print(f"$ {shlex.join(command)}", flush=True)
        stream = subprocess.Popen([BIN / command[0], *command[1:]], env=self.environment())
        gone: set[str] = set()
        try:
            while stream.poll() is None:
                self.check(gone)
                time.sleep(0.5)
        finally:
            stream.kill()
            stream.wait()
        self.check(gone)
        return self.status(run_id)

    def check(self, gone: set[str]) -> None:
        """Say which parts have ended since the last look; without SuperLink there is no run.

        A SuperNode whose warm ClientApps have ended would take messages and never answer, so it
        is ended as well, and Flower tells the run.
        """
        for part in self.parts.values():
            if not part.running() and part.name not in gone:
                gone.add(part.name)
                print(f"{part.name} ended, exit status {part.process.returncode}: {part.log}")
                if part.name.startswith("clientapp"):
                    self.parts[part.name.replace("clientapp", "supernode")].stop()
        nodes = {name for name in self.parts if name.startswith("supernode")}
        if "superlink" in gone or nodes <= gone:
            raise FederationError("the SuperLink ended" if nodes - gone else "no SuperNode is left")

    def status(self, run_id: int) -> str:
        answer = self.ask(["flwr", "ls", str(self.app), NAME, "--run-id", str(run_id)])
        return answer["runs"][0]["status"]

    def nodes(self) -> dict[int, str]:
        """Return the status of each registered SuperNode by its id."""
        answer = self.ask(["flwr", "supernode", "list", str(self.app), NAME])
        return {int(node["node-id"]): node["status"] for node in answer["nodes"]}

    def ask(self, command: list[str]) -> dict[str, Any]:
        """Run one of Flower's commands and return its answer.

        Raises:
            FederationError: there is none, as when the SuperLink does not answer.
        """
        answer = self.call([*command, "--format", "json"])
        try:
            return json.loads(answer[answer.index("{") :])
        except ValueError:
            raise FederationError(f"`{shlex.join(command)}` failed:\n{answer}") from None

    def call(self, command: list[str]) -> str:
        """Run one of Flower's commands to its end and return what it printed."""
        if self.verbose:
            print(f"$ {shlex.join(command)}", flush=True)
        done = subprocess.run(
            [BIN / command[0], *command[1:]],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout

    def start(self, name: str, command: list[str], threads: int | None = None) -> Part:
        """Start a part in a group of its own, so that it is stopped together with its children.

        Args:
            name: what its log is called.
            command: what to run.
            threads: how many PyTorch may use in it, so that parts do not slow each other down.
        """
        if self.verbose:
            print(f"$ {shlex.join(command)}", flush=True)
        launcher, log = os.getpid(), self.folder / "logs" / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [BIN / command[0], *command[1:]],
                env=self.environment(name, threads),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=(lambda: end_with_parent(launcher)) if LINUX else None,
            )
        self.parts[name] = Part(name, process, log)
        return self.parts[name]

    def environment(self, name: str = "cli", threads: int | None = None) -> dict[str, str]:
        """Give each part a place of its own for its apps, and no proxy on the way to the others."""
        # In small letters: gRPC knows no others.
        direct = filter(None, [os.environ.get("no_grpc_proxy"), LOOPBACK])  # noqa: SIM112
        own = {"FLWR_HOME": str(self.folder / "flwr" / name), "no_grpc_proxy": ",".join(direct)}
        own |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        if threads:
            own |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        return os.environ | own

    def wait(self, part: Part, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if not part.running() or time.monotonic() > deadline:
                lines = part.log.read_text(errors="replace").strip().splitlines()
                tail = "\n".join(lines[-15:])
                what = "ended" if not part.running() else f"was not ready in {START_SECONDS} s"
                raise FederationError(f"{part.name} {what}; {part.log} ends with\n{tail}")
            time.sleep(0.2)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have nothing interrupt what is done inside."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def modules(app: Path) -> list[str]:
    """Return what an app's dependencies are imported as."""
    declared = load_toml(app / "pyproject.toml")["project"]["dependencies"]
    names = {Requirement(text).name.lower() for text in declared}
    provided = packages_distributions().items()
    return sorted(m for m, of in provided if names & {name.lower() for name in of})


def settings(app: Path, offline: bool, run_config: str) -> dict[str, Any]:
    """Return what is set differently from pyproject.toml: offline.toml, and what was given."""
    overrides: dict[str, Any] = flatten(load_toml(app / "offline.toml")) if offline else {}
    if run_config.endswith(".toml"):
        overrides |= flatten(load_toml(Path(run_config)))
    else:
        overrides |= parse_config_args([run_config])
    return overrides


def replies_needed(app: Path, changes: dict[str, Any]) -> int:
    """Return `min-replies`, as it stands in the app's settings; 1 where it has none."""
    declared = flatten(flower_settings(app)["app"]["config"]) | changes
    return int(declared.get("min-replies", declared.get("strategy.min-replies", 1)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("app", type=Path, help="an app's folder, examples/<name>")
    parser.add_argument("--num-supernodes", type=int, default=2, metavar="N")
    parser.add_argument("--offline", action="store_true", help="with the app's offline.toml")
    parser.add_argument("--run-config", default="", help="'key=value key=value', or a TOML file")
    parser.add_argument("--insecure", action="store_true", help="no TLS and no authentication")
    parser.add_argument("--warm", action="store_true", help="import PyTorch once, not in each step")
    parser.add_argument("--keep", action="store_true", help="leave it up until Ctrl-C")
    parser.add_argument("--folder", type=Path, help="keep keys, database and logs, and use them")
    arguments = parser.parse_args()
    if arguments.num_supernodes < 1:
        parser.error(f"--num-supernodes {arguments.num_supernodes}: at least 1 is needed")
    if not (arguments.app / "pyproject.toml").is_file():
        parser.error(f"{arguments.app} holds no pyproject.toml; name an example's folder")
    app = arguments.app.resolve()
    folder = arguments.folder or ROOT / ".federations" / f"{app.name}-{os.getpid()}"
    if folder.resolve().is_relative_to(app):
        parser.error(f"--folder {folder} is inside the app, which is copied into it")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "logs").is_dir():
        parser.error(f"--folder {folder} holds files that are not a federation's; name another")
    try:
        changes = settings(app, arguments.offline, arguments.run_config)
    except (OSError, ValueError, typer.Exit) as error:
        parser.error(f"--run-config {arguments.run_config!r} cannot be read ({error})")
    needed = replies_needed(app, changes)
    if arguments.num_supernodes < needed:
        parser.error(
            f"--num-supernodes {arguments.num_supernodes}: this run waits for min-replies = "
            f"{needed}; start as many, or lower it with --run-config"
        )
    for number in ENDINGS[1:]:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    status = "not run"
    try:
        with Federation(
            app, folder, secure=not arguments.insecure, warm=arguments.warm
        ) as federation:
            for partition in range(arguments.num_supernodes):
                federation.start_supernode(partition, arguments.num_supernodes)
            run_id = federation.run(as_run_config(changes))
            status = federation.follow(run_id)
            print(f"Run {run_id}: {status}")
            if arguments.keep:
                print(f"Still up, until Ctrl-C. To run more:\n$ flwr run {federation.app} {NAME}")
                gone: set[str] = set()
                while True:
                    federation.check(gone)
                    time.sleep(0.5)
    except FederationError as error:
        print(f"Error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted: taken down")
        if status == "not run":
            return 130
    if status == "finished:completed":
        if not arguments.folder:
            shutil.rmtree(folder)
        return 0
    print(f"Logs: {folder / 'logs'}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
