"""The pool's server: imports PyTorch, never touches the device, and forks workers that do.

One thread waits for clients, workers and the end of owners. A client's socket is handed on to a
worker, so that arrays go straight from one to the other; the server keeps a copy of it only to be
able to answer if the worker dies.
"""

import gc
import importlib
import json
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

from gpu_scaling.executors import memory
from gpu_scaling.executors.outcome import TookTooLong, WorkerDied, cause, send
from gpu_scaling.executors.pool import OWNER, Options
from gpu_scaling.executors.worker import Order, Taken, work
from gpu_scaling.kit.processes import cores, end_with_parent

FORK = multiprocessing.get_context("fork")
# torch._dynamo: half of what a first training step would import, 3 s and 150 MB in each worker.
PRELOADED = ("torch", "torch._dynamo", "gpu_scaling.task", "gpu_scaling.steps")


@dataclass
class Worker:
    """A worker, and the client that it works for."""

    process: BaseProcess
    connection: Connection
    client: socket.socket | None = None
    since: float = 0.0
    taken: bool = False  # the client's step has begun
    leaving: bool = False


class Server:
    """Gives each client's step to a worker; replaces workers; ends with its owners.

    Args:
        listener: where clients connect.
        path: of that socket.
        device: "cpu", or a GPU.
        options: how the pool works.
    """

    def __init__(self, listener: socket.socket, path: Path, device: str, options: Options) -> None:
        self.listener, self.path, self.device, self.options = listener, path, device, options
        self.queue: deque[socket.socket] = deque()
        self.workers: list[Worker] = []
        self.owners: dict[int, int] = {}  # process id: a handle that tells its end
        self.had_owners = False
        self.last_used = time.monotonic()
        self.sizing: memory.Sizing | None = None

    def serve(self) -> None:
        while not self.is_over():
            connections = {worker.connection: worker for worker in self.workers}
            ends = {end: owner for owner, end in self.owners.items()}
            for ready in wait([self.listener, *connections, *ends], timeout=1.0):
                if ready is self.listener:
                    self.accept()
                elif ready in ends:
                    self.owners.pop(ends[ready])
                    os.close(ready)
                else:
                    self.hear(connections[ready])
            self.stop_late()
            self.dispatch()
        self.path.unlink(missing_ok=True)  # from now on clients start another pool

    def is_over(self) -> bool:
        if self.had_owners and not self.owners:
            return True
        if self.queue or any(worker.client for worker in self.workers):
            self.last_used = time.monotonic()
        return time.monotonic() - self.last_used > self.options.pool_idle

    def accept(self) -> None:
        client, _ = self.listener.accept()
        said = client.recv(OWNER.size, socket.MSG_WAITALL) if wait([client], timeout=5.0) else b""
        if len(said) < OWNER.size:  # it has gone again, or hangs
            client.close()
            return
        self.own(*OWNER.unpack(said))
        self.queue.append(client)

    def own(self, owner: int) -> None:
        """Watch a process; where the system cannot tell its end, the pool ends when idle."""
        if owner not in self.owners and hasattr(os, "pidfd_open"):
            try:
                self.owners[owner] = os.pidfd_open(owner)
            except OSError:
                return
            self.had_owners = True

    def hear(self, worker: Worker) -> None:
        """Take a worker's report; or its end, and tell its client."""
        try:
            report = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self.bury(worker)
            return
        if isinstance(report, Taken):
            worker.taken = True
            return
        if report.usage:
            self.sizing.learn(report.usage, alone=len(self.workers) == 1)
        worker.client.close()
        worker.client, worker.leaving = None, report.last
        if len(self.workers) > self.sizing.workers and not worker.leaving:
            worker.leaving = True
            worker.connection.send(None)

    def bury(self, worker: Worker) -> None:
        worker.process.join()
        worker.connection.close()
        self.workers.remove(worker)
        if worker.client and not worker.taken:  # it was dead before: another one's turn
            self.queue.appendleft(worker.client)
        elif worker.client:
            error = WorkerDied(f"the worker that ran this step {cause(worker.process.exitcode)}")
            if self.is_late(worker):
                limit = f"step-timeout = {self.options.step_timeout} s"
                error = TookTooLong(f"the step took longer than {limit}")
            print(error, file=sys.stderr, flush=True)
            self.refuse(worker.client, error)

    @staticmethod
    def refuse(client: socket.socket, error: WorkerDied) -> None:
        with Connection(client.detach()) as connection:
            try:
                send(connection, (None, error, ""))
            except OSError:
                return  # gone as well

    def is_late(self, worker: Worker) -> bool:
        return time.monotonic() - worker.since > self.options.step_timeout

    def stop_late(self) -> None:
        for worker in self.workers:
            if worker.client and self.is_late(worker):
                worker.process.kill()

    def dispatch(self) -> None:
        """Hand waiting clients to idle workers, and to new ones as far as there is room."""
        if self.queue and not self.sizing:
            self.sizing = self.measure()
        while self.queue and (worker := self.idle_worker()):
            client = self.queue.popleft()
            try:
                worker.connection.send(Order(self.sizing.fraction, self.sizing.note))
                send_handle(worker.connection, client.fileno(), worker.process.pid)
            except OSError:  # it has died, and its end is heard in a moment
                worker.leaving = True
                self.queue.appendleft(client)
            else:
                worker.client, worker.since, worker.taken = client, time.monotonic(), False

    def idle_worker(self) -> Worker | None:
        """Return a worker without a client, a new one if there is room for it."""
        for worker in self.workers:
            if not worker.client and not worker.leaving:
                return worker
        if len(self.workers) < self.sizing.workers:
            self.workers.append(Worker(*self.fork(work, self.options.recycle_after)))
            return self.workers[-1]
        return None

    def fork(self, target: Callable[..., None], *args: Any) -> tuple[BaseProcess, Connection]:
        """Start a process that has nothing of the server open but its end of a connection."""
        ours, theirs = FORK.Pipe()
        taken = [worker.client for worker in self.workers if worker.client]
        inherited = [ours, self.listener, *self.queue, *taken]
        inherited += [worker.connection for worker in self.workers]
        process = FORK.Process(target=start, args=(inherited, os.getpid(), target, theirs, *args))
        process.start()
        theirs.close()
        return process, ours

    def measure(self) -> memory.Sizing:
        """Look at the device, which only other processes may touch, before any worker is there."""
        room = None
        if self.device != "cpu":
            one, first = self.fork(memory.show_cuda)
            if found := first.recv():
                two, second = self.fork(memory.show_cuda)
                context = found[0] - second.recv()[0]  # memory of the other by its mere presence
                room = memory.Room(found[0] + context, found[1], context)
                second.close()
                two.join()
            first.close()
            one.join()
        return memory.Sizing(
            room or memory.cpu_room(), self.options.memory_share, cores(), self.options.workers
        )


def start(inherited: Iterable[Any], parent: int, target: Callable[..., None], *args: Any) -> None:
    """Run in a fork: close the server's own connections, and end when the server ends."""
    end_with_parent(parent)
    for thing in inherited:
        thing.close()
    target(*args)


def main() -> None:
    settings = json.loads(sys.argv[1])
    listener = socket.socket(fileno=settings.pop("listener"))
    path, device = Path(settings.pop("path")), settings.pop("device")
    for name in PRELOADED:
        importlib.import_module(name)
    if device == "cpu":  # with a GPU, not even this may run here: forks could not use it
        try:
            importlib.import_module("gpu_scaling.steps").warm_up()
        except Exception:  # a step would fail, too, and its client is told why
            traceback.print_exc()
    gc.collect()
    gc.freeze()  # workers do not touch, and so do not copy, what the server has
    server = Server(listener, path, device, Options(**settings))
    server.serve()
    if not (log := path.with_suffix(".log")).stat().st_size:
        log.unlink()
    os._exit(0)  # workers end with it


if __name__ == "__main__":
    main()
