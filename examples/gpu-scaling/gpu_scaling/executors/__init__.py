"""Where a step of training or testing runs: in this process, in a spawned one, or in a pool.

To leave this wing out, delete this folder and the lines marked `# executors`: steps then run in the
clients' own processes.
"""

import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Protocol

from gpu_scaling.executors.inline import Inline
from gpu_scaling.executors.outcome import StepFailed, WorkerDied
from gpu_scaling.executors.pool import Options, Pool
from gpu_scaling.executors.spawn import Spawn

owner_here = 0  # a process id; set where the server and its clients share a process
__all__ = ["Executor", "Inline", "Options", "Pool", "Spawn", "StepFailed", "WorkerDied", "make"]


class Executor(Protocol):
    """Runs steps, one at a time, for one client."""

    note: str  # what there is to say about the workers, for the log

    def run(self, step: Callable[..., Any], *args: Any) -> Any:
        """Return what `step(*args)` returns; both must be picklable.

        Raises:
            StepFailed: the step raised an error.
            WorkerDied: the process that ran it ended, or took longer than `step-timeout`.
        """


def make(config: Any, run_id: int, owner: int = 0) -> Executor:
    """Return an executor.

    Args:
        config: has `executor` ("inline", "spawn" or "pool") and the fields of `Options`.
        run_id: all processes of this machine that give the same one share a pool.
        owner: a process without which this one has no more steps to run; by default the one that
            was given here before, or the one that started this. When all owners have ended, so
            does the pool.
    """
    global owner_here
    owner_here = owner or owner_here
    if config.executor == "inline":
        return Inline()
    if config.executor == "spawn":
        return Spawn(config.step_timeout)
    if not hasattr(os, "fork"):
        raise StepFailed("executor = 'pool' needs fork, which Windows has not; use 'spawn'")
    options = Options(**{field.name: getattr(config, field.name) for field in fields(Options)})
    return Pool(f"{run_id:x}", options, owner_here or os.getppid())
