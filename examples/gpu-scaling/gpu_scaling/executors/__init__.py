"""Where a step of training or testing runs: in this process, in a spawned one, or in a pool."""

import os
from collections.abc import Callable
from typing import Any, Protocol

from gpu_scaling.executors.inline import Inline
from gpu_scaling.executors.outcome import StepFailed, WorkerDied
from gpu_scaling.executors.pool import Options, Pool
from gpu_scaling.executors.spawn import Spawn

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


def make(kind: str, run_id: int, options: Options, owner: int = 0) -> Executor:
    """Return an executor.

    Args:
        kind: "inline", "spawn" or "pool".
        run_id: all processes of this machine that give the same one share a pool.
        options: of the pool; the time for a step holds for "spawn", too.
        owner: a process without which this one has no more steps to run, by default the one that
            started it; when all owners have ended, so does the pool.
    """
    if kind == "inline":
        return Inline()
    if kind == "spawn":
        return Spawn(options.step_timeout)
    if not hasattr(os, "fork"):
        raise StepFailed("executor = 'pool' needs fork, which Windows has not; use 'spawn'")
    return Pool(f"{run_id:x}", options, owner or os.getppid())
