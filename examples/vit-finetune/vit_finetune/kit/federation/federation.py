# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""A SuperLink and SuperNodes on this machine, started for one app and taken down again."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Self

from ..processes import cores, descendants, end_with_parent, running, send
from .addresses import LOOPBACK, answers, free_addresses
from .releases import HERE, RELEASE, connection

BIN = Path(sys.executable).parent
NAME = "this-machine"  # of the federation, as `flwr` knows it
START_SECONDS = 300  # for a part to start while others do
STOP_SECONDS = 10  # for a part to stop by itself
LINUX = sys.platform == "linux"
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # signals that end this program
LEFT_OUT = ("outputs", "__pycache__", ".*", "*.egg-info", "wandb")  # of the copy of an app


class FederationError(RuntimeError):
    """A part of the federation that did not start, or ended; the text names it."""


@dataclass(eq=False)
class Part:
    """A SuperLink or SuperNode: its process, with all that this starts, and its log."""

    name: str
    process: subprocess.Popen
    log: Path

    def running(self) -> bool:
        return self.process.poll() is None

    def says(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    def connected(self) -> bool:
        """Tell whether this SuperNode is connected to its SuperLink."""
        return self.says("SuperNode ID")

    def stop(self) -> None:
        """End the process and all that it started; kill those that do not end in time."""
        take_down([self])

    def signal(self, number: int) -> bool:
        """Send a signal, 0 for none, to the process group; tell whether any of it is left."""
        self.process.poll()  # clears a zombie
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):  # the second on macOS, from a zombie
            return False
        return True


def take_down(parts: Iterable[Part]) -> None:
    """End parts, all at once; kill those that do not end in time."""
    parts = list(parts)
    # On the newest Flower, some processes are not in the part's group.
    others = {pid for part in parts for pid in descendants(part.process.pid)}
    for number in (signal.SIGTERM, signal.SIGKILL):
        parts = [part for part in parts if part.signal(number)]
        for pid in others:
            send(pid, number)
        deadline = time.monotonic() + STOP_SECONDS
        while (parts or others) and time.monotonic() < deadline:
            time.sleep(0.1)
            parts = [part for part in parts if part.signal(0)]
            others = set(running(others))


class Federation:
    """A SuperLink and SuperNodes on this machine, for one app; they run inside `with`.

    Args:
        app: the app's folder; what runs is a copy of it.
        folder: place of keys, certificates, the SuperLink's database and logs; may exist already.
        secure: use TLS, and admit only SuperNodes with registered keys.
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
        # Imported here: `python -m …certificates` would warn of a second import.
        from .certificates import make_certificates

        self.folder = folder.resolve()
        self.app = self.folder / "app"
        self.secure = secure
        self.database = database
        self.preload = modules(app) if warm else []
        self.verbose = verbose
        self.parts: dict[str, Part] = {}
        self.gone: set[str] = set()
        self.apis = RELEASE.apis()
        self.addresses = set(self.apis.values())
        self.registered: set[Path] = set()
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if secure and not self.certificates.exists():
            make_certificates(self.certificates)
        self.copy(app)

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    @property
    def named(self) -> list[str]:
        """Arguments that name this federation to `flwr`."""
        return RELEASE.named(self.app, NAME)

    def home(self, name: str) -> Path:
        """Return the FLWR_HOME of a part; "cli" is `flwr` itself."""
        return self.folder / "flwr" / name

    def log_of_run(self, run_id: int) -> Path:
        return self.folder / "logs" / f"run-{run_id}.log"

    def copy(self, app: Path) -> None:
        """Copy the app, and declare this federation in the copy."""
        shutil.rmtree(self.app, ignore_errors=True)
        shutil.copytree(app, self.app, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if (app / ".gitignore").is_file():
            shutil.copy(app / ".gitignore", self.app)
        ca = self.certificates / "ca.crt" if self.secure else None
        shutil.rmtree(self.home("cli"), ignore_errors=True)
        RELEASE.declare(self.app, self.home("cli"), NAME, connection(self.apis["control"], ca))

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
        """Take everything down, the SuperLink last; signals are ignored meanwhile."""
        with uninterrupted():
            take_down(part for part in self.parts.values() if part.name != "superlink")
            take_down(self.parts.values())

    def start_superlink(self) -> Part:
        """Start the SuperLink, on its database if it has one, and wait until it answers."""
        command = [*RELEASE.superlink(self.apis), *self.tls_of_server()]
        if self.database:
            command += ["--database", str(self.folder / "superlink.db")]
        part = self.start("superlink", command)
        self.wait([part], lambda _: all(map(answers, self.apis.values())))
        return part

    def tls_of_server(self) -> list[str]:
        if not self.secure:
            return ["--insecure"]
        files = {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
        named = [(f"--ssl-{option}", self.certificates / file) for option, file in files.items()]
        return [str(word) for pair in named for word in pair] + ["--enable-supernode-auth"]

    def start_supernodes(self, count: int, progress: Callable[[int], None] | None = None) -> None:
        """Start SuperNodes, no more of them at a time than there are cores.

        Args:
            count: their number; each holds one of as many partitions.
            progress: called with the number of connected SuperNodes.
        """
        starting: list[Part] = []
        for partition in range(count):
            starting.append(self.start_supernode(partition, count, wait=False))
            most = cores() - 1 if partition + 1 < count else 0
            starting = self.wait(starting, Part.connected, most)
            if progress:
                progress(partition + 1 - len(starting))

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
            partition: number of its part of the data, of `partitions` parts.
            register: register its public key.
            ca: the certificate that it trusts; by default this federation's.
            secure: use TLS and its key; by default as the federation does.
            wait: wait until it is connected.
            node_config: further keys, as "key=value key=value".

        Raises:
            FederationError: it ended, or took too long.
        """
        name = f"supernode-{partition}"
        command = [*RELEASE.supernode(self.new_address()), "--superlink", self.apis["fleet"]]
        holds = f"partition-id={partition} num-partitions={partitions} {node_config}".strip()
        command += ["--node-config", holds]
        if self.secure if secure is None else secure:
            key = self.key(name)
            if register:
                self.register(key)
            command += ["--root-certificates", str(ca or self.certificates / "ca.crt")]
            command += ["--auth-supernode-private-key", str(key)]
        else:
            command += ["--insecure"]
        if self.preload:
            warm = [sys.executable, "-P", str(HERE / "warm_clientapp.py")]
            command = [*warm, "--preload", ",".join(self.preload), *command]
        part = self.start(name, command, max(1, cores() // partitions))
        if wait:
            self.wait([part], Part.connected)
        return part

    def new_address(self) -> str:
        """Return a free address that was not given to another part before."""
        while (address := free_addresses(1)[0]) in self.addresses:
            continue
        self.addresses.add(address)
        return address

    def key(self, name: str) -> Path:
        """Return the path of a SuperNode's private key; make the pair if there is none."""
        from .certificates import make_node_key  # here for the reason in `__init__`

        key = self.folder / "keys" / name
        if not key.exists():
            make_node_key(key)
        return key

    def register(self, key: Path) -> None:
        """Register the public key of a private key, unless that has been done."""
        if key in self.registered:
            return
        public = key.with_name(f"{key.name}.pub")
        done = self.call(["flwr", "supernode", "register", str(public), *self.named])
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
        command = ["flwr", "log", str(run_id), *self.named, "--stream"]
        self.say(command)
        with self.log_of_run(run_id).open("w") as file, self.log_of_run(run_id).open() as lines:
            stream = subprocess.Popen(
                [BIN / command[0], *command[1:]],
                env=self.environment() | {"PYTHONUNBUFFERED": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                while stream.poll() is None:
                    self.check()
                    print(lines.read(), end="", flush=True)
                    time.sleep(0.5)
            finally:
                stream.kill()
                stream.wait()
                print(lines.read(), end="", flush=True)
        self.check()
        return self.status(run_id)

    def check(self) -> None:
        """Print which parts have ended since the last check.

        Raises:
            FederationError: the SuperLink ended, or no SuperNode is left.
        """
        for part in self.parts.values():
            if not part.running() and part.name not in self.gone:
                self.gone.add(part.name)
                print(f"{part.name} ended, exit status {part.process.returncode}: {part.log}")
        nodes = {name for name in self.parts if name.startswith("supernode")}
        if "superlink" in self.gone or nodes <= self.gone:
            alive = "superlink" not in self.gone
            raise FederationError("no SuperNode is left" if alive else "the SuperLink ended")

    def status(self, run_id: int) -> str:
        answer = self.ask(["flwr", "ls", *self.named, "--run-id", str(run_id)])
        return answer["runs"][0]["status"]

    def nodes(self) -> dict[int, str]:
        """Return the status of each registered SuperNode by its id."""
        answer = self.ask(["flwr", "supernode", "list", *self.named])
        return {int(node["node-id"]): node["status"] for node in answer["nodes"]}

    def ask(self, command: list[str]) -> dict[str, Any]:
        """Run one of Flower's commands and return its answer.

        Raises:
            FederationError: the command failed; the SuperLink does not answer, for instance.
        """
        answer = self.call([*command, "--format", "json"])
        try:
            return json.loads(answer[answer.index("{") :])
        except ValueError:
            raise FederationError(f"`{shlex.join(command)}` failed:\n{answer}") from None

    def call(self, command: list[str]) -> str:
        """Run one of Flower's commands to its end and return what it printed."""
        self.say(command)
        done = subprocess.run(
            [BIN / command[0], *command[1:]],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout

    def start(self, name: str, command: list[str], threads: int | None = None) -> Part:
        """Start a part in a process group of its own, to be stopped together with its children.

        Args:
            name: of its log.
            command: program and arguments.
            threads: PyTorch's in this part, so that parts do not slow each other down; the
                environment's OMP_NUM_THREADS takes precedence.
        """
        self.say(command)
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
        self.gone.discard(name)
        return self.parts[name]

    def say(self, command: list[str]) -> None:
        if self.verbose:
            print(f"$ {shlex.join(command)}", flush=True)

    def environment(self, name: str = "cli", threads: int | None = None) -> dict[str, str]:
        """Return a part's environment: its own FLWR_HOME, and no proxy on this machine."""
        own = {"FLWR_HOME": str(self.home(name)), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        for variable in ("no_grpc_proxy", "no_proxy"):  # gRPC reads small letters only
            others = os.environ.get(variable, os.environ.get(variable.upper(), ""))
            own[variable] = ",".join(filter(None, [others, LOOPBACK]))
        own |= RELEASE.environment
        if threads:
            own |= {"OMP_WAIT_POLICY": "PASSIVE"}
            own |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        return os.environ | own

    def wait(self, parts: list[Part], ready: Callable[[Part], bool], most: int = 0) -> list[Part]:
        """Wait until all but `most` of the parts are ready; return those that are not.

        Raises:
            FederationError: a part has ended, or takes too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while len(parts := [part for part in parts if not ready(part)]) > most:
            for part in parts:
                if not part.running() or time.monotonic() > deadline:
                    lines = part.log.read_text(errors="replace").strip().splitlines()
                    tail = "\n".join(lines[-15:])
                    what = "ended" if not part.running() else f"was not ready in {START_SECONDS} s"
                    raise FederationError(f"{part.name} {what}; {part.log} ends with\n{tail}")
            time.sleep(0.2)
        return parts


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore signals inside `with`."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this program as Ctrl-C does: with all cleaning up."""
    for number in ENDINGS[1:]:
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def modules(app: Path) -> list[str]:
    """Return the modules of an app's dependencies, and one that PyTorch's optimizers import."""
    project = tomllib.loads((app / "pyproject.toml").read_text("utf-8"))["project"]
    names = {package(text) for text in project.get("dependencies", [])}
    found = sorted(m for m, of in packages_distributions().items() if names & set(map(package, of)))
    return found + ["torch._dynamo"] * ("torch" in found)  # it costs the first optimizer seconds


def package(requirement: str) -> str:
    """Return the name of the package in a requirement, in its normal form."""
    return re.sub(r"[-_.]+", "-", re.match(r"\s*([\w.-]+)", requirement)[1]).lower()
