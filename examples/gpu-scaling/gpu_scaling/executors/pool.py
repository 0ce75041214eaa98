"""The pool as a client sees it: a socket on this machine, behind it workers shared by all."""

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from filelock import FileLock

from gpu_scaling.executors.outcome import StepFailed, WorkerDied, receive, send, twice

OWNER = struct.Struct("!q")  # a client's first words: a process id
LONGEST_PATH = 103  # of a Unix socket, on any system
ATTEMPTS = 2  # a pool may end in the moment in which a client finds it


@dataclass(frozen=True)
class Options:
    """How a pool works; the run config's keys of these names explain them."""

    workers: int = 0
    memory_share: float = 0.8
    recycle_after: int = 100
    pool_idle: float = 60.0
    step_timeout: float = 600.0


class Pool:
    """Runs steps in workers that all processes of this machine share, one pool for each device.

    The first client starts the pool. It ends by itself: when its owners have ended, or when
    nobody has asked for anything for `pool_idle` seconds.

    Args:
        name: of the pool; who gives the same name shares it.
        options: used by the client that starts it.
        owner: a process without which this client has no more steps to run.
    """

    def __init__(self, name: str, options: Options, owner: int) -> None:
        self.device = visible_device()
        socket_name = f"{name}-{self.device.replace('/', '-')}.sock"
        self.path = runtime_folder(socket_name) / socket_name
        self.options, self.owner, self.note = options, owner, ""

    @twice
    def run(self, step: Callable[..., Any], *args: Any) -> Any:
        for _ in range(ATTEMPTS):
            with self.connect() as connection:
                try:
                    send(connection, (step, args))
                    result, self.note = receive(connection)
                    return result
                except (EOFError, BrokenPipeError, ConnectionResetError):
                    continue
        raise WorkerDied(f"the pool ended {ATTEMPTS} times; {self.log} may say why")

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    def connect(self) -> Connection:
        try:
            client = connect(self.path)
        except (FileNotFoundError, ConnectionRefusedError):
            with FileLock(self.path.with_name("lock")):
                try:
                    client = connect(self.path)  # another process was faster
                except (FileNotFoundError, ConnectionRefusedError):
                    self.start()
                    client = connect(self.path)
        client.sendall(OWNER.pack(self.owner))
        return Connection(client.detach())

    def start(self) -> None:
        """Start the server with a socket that clients can use already while it starts."""
        for path in self.path.parent.glob("*.sock"):
            sweep(path)
        command = [sys.executable, "-m", "gpu_scaling.executors.server"]
        with socket.socket(socket.AF_UNIX) as listener, self.log.open("w") as log:
            listener.bind(str(self.path))
            listener.listen(socket.SOMAXCONN)
            settings = asdict(self.options) | {
                "listener": listener.fileno(),
                "path": str(self.path),
                "device": self.device,
            }
            subprocess.Popen(
                [*command, json.dumps(settings)],
                env=os.environ | self.environment(),
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for its owners, with whom it ends
            )

    def environment(self) -> dict[str, str]:
        """Give the server this process's modules, one device, and no reason to touch it."""
        package = Path(__file__).parents[2]
        return {
            "PYTHONPATH": os.pathsep.join([str(package), *filter(None, sys.path)]),
            "CUDA_VISIBLE_DEVICES": "" if self.device == "cpu" else self.device,
            # torch.cuda.is_available() in a module that is imported would spoil all later forks.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


def sweep(path: Path) -> None:
    """Remove the socket of a pool that was killed, and its log if that is empty."""
    try:
        connect(path).close()
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        log = path.with_suffix(".log")
        if log.is_file() and not log.stat().st_size:
            log.unlink()
    except OSError:
        return


def visible_device() -> str:
    """Return the first GPU that this process may use, "cpu" if there is none. Asks no driver."""
    gpus = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return visible if gpus and visible not in ("", "-1") else "cpu"


def runtime_folder(name: str) -> Path:
    """Return a folder for a socket of this name that nobody else can enter.

    That is one in XDG_RUNTIME_DIR, the folder for temporary files, or /tmp: the first that is
    there and has a path short enough for a socket. All processes of a run find the same.

    Raises:
        StepFailed: there is none, or somebody else has made it.
    """
    bases = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]
    found = [Path(base, f"gpu-scaling-{os.getuid()}") for base in filter(usable, bases)]
    folder = next((f for f in found if len(os.fsencode(f / name)) <= LONGEST_PATH), None)
    if not folder:
        raise StepFailed(
            f"no folder for the pool's socket: none of {bases} can be written to and has a path "
            f"that leaves room for {name} in {LONGEST_PATH} bytes; set XDG_RUNTIME_DIR to such a "
            "folder, or choose another executor"
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StepFailed(
            f"{folder} belongs to somebody else; set XDG_RUNTIME_DIR to another folder"
        )
    folder.chmod(0o700)
    return folder


def usable(base: str | None) -> bool:
    return bool(base) and Path(base).is_absolute() and os.access(base, os.W_OK | os.X_OK)
