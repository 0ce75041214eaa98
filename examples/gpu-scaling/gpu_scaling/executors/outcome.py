"""The end of a step, as it travels between processes: a result, or an error in words."""

import logging
import pickle
import signal
import traceback
from collections.abc import Callable
from functools import wraps
from multiprocessing.connection import Connection
from typing import Any

Execute = Callable[..., Any]


class StepFailed(RuntimeError):
    """A step raised an error. Only its text travels: its class may need imports to be read."""


class WorkerDied(StepFailed):
    """The process that ran a step ended before it had a result."""


class TookTooLong(WorkerDied):
    """The process that ran a step was killed after `step-timeout`."""


def describe(error: Exception) -> str:
    plain = type(error) in (RuntimeError, StepFailed)
    return str(error) if plain else f"{type(error).__name__}: {error}"


def perform(connection: Connection, note: str = "") -> Exception | None:
    """Receive a step, run it, send its outcome; return its error, if it had one."""
    step, args = pickle.loads(connection.recv_bytes())
    try:
        result, error = step(*args), None
    except Exception as failure:
        traceback.print_exc()
        result, error = None, failure
    send(connection, (result, StepFailed(describe(error)) if error else None, note))
    return error


def send(connection: Connection, value: Any) -> None:
    connection.send_bytes(pickle.dumps(value, protocol=5))


def receive(connection: Connection) -> tuple[Any, str]:
    """Return a step's result, and the note that came with it.

    Raises:
        StepFailed: it raised an error, or its worker died.
        EOFError: there will be no answer.
    """
    try:
        result, failure, note = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError, pickle.UnpicklingError):
        raise EOFError from None
    if failure:
        raise failure
    return result, note


def twice(execute: Execute) -> Execute:
    """Have an executor try a step once more if its worker died, but not if it took too long."""

    @wraps(execute)
    def run_again(executor: Any, step: Callable[..., Any], *args: Any) -> Any:
        try:
            return execute(executor, step, *args)
        except TookTooLong:
            raise
        except WorkerDied as error:
            # Flower's logger; its import would cost each worker half a second.
            logging.getLogger("flwr").warning("%s; it is tried once more", error)
            return execute(executor, step, *args)

    return run_again


def cause(exit_code: int | None) -> str:
    """Return the reason for a process's end."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ": out of memory?" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"
    return f"ended with status {exit_code}"
