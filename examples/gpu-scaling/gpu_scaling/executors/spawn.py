"""A fresh process for each step: it gives everything back when it ends, and imports all anew."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from gpu_scaling.executors.outcome import (
    TookTooLong,
    WorkerDied,
    cause,
    perform,
    receive,
    send,
    twice,
)
from gpu_scaling.kit.processes import end_with_parent

CONTEXT = multiprocessing.get_context("spawn")


class Spawn:
    """Runs each step in a process of its own.

    Args:
        timeout: seconds after which a step is given up; None waits for ever.
    """

    note = ""

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout

    @twice
    def run(self, step: Callable[..., Any], *args: Any) -> Any:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=run_one, args=(theirs, os.getpid()))
        process.start()
        theirs.close()  # so that its death is the end of the connection
        with ours:
            try:
                send(ours, (step, args))
                if not ours.poll(self.timeout):
                    process.kill()
                    raise TookTooLong(f"the step took longer than step-timeout = {self.timeout} s")
                return receive(ours)[0]
            except (EOFError, BrokenPipeError):
                process.join()
                raise WorkerDied(f"the step's process {cause(process.exitcode)}") from None
            finally:
                process.join(10)  # it ends by itself, and what it held is free then
                process.kill()
                process.join()


def run_one(connection: Connection, parent: int) -> None:
    end_with_parent(parent)
    perform(connection)
