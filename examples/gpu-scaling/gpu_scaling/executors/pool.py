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

from gpu_scaling.executors.outcome import StepFailed, WorkerDied, receive, send

OWNER = struct.Struct("!q")  # what a client says first: a process id
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
        self.path = runtime_folder() / f"{name}-{self.device.replace('/', '-')}.sock"
        self.options, self.owner, self.note = options, owner, ""

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
                    client = connect(self.path)  # somebody was faster
                except (FileNotFoundError, ConnectionRefusedError):
                    self.start()
                    client = connect(self.path)
        client.sendall(OWNER.pack(self.owner))
        return Connection(client.detach())

    def start(self) -> None:
        """Start the server with a socket that clients can use already while it starts."""
        self.path.unlink(missing_ok=True)
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


def visible_device() -> str:
    """Return the first GPU that this process may use, "cpu" if there is none. Asks no driver."""
    gpus = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return visible if gpus and visible not in ("", "-1") else "cpu"


def runtime_folder() -> Path:
    """Return a folder for sockets that nobody else can enter.

    Raises:
        StepFailed: somebody else has made it.
    """
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base, f"gpu-scaling-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StepFailed(
            f"{folder} belongs to somebody else; set XDG_RUNTIME_DIR to another folder"
        )
    folder.chmod(0o700)
    return folder
