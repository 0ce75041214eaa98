"""Hooks of the profiler: a ClientApp's mod, a watched Grid, tasks of the server.

Without `profile.enabled` they do nothing. With it, a client sends its figures in a record of their
own, which the server takes out of the reply before the strategy sees it.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

from flwr.app import ConfigRecord, Context, Message
from flwr.serverapp import Grid

from flowertune_llm.profiler.recorder import FILE, Cost, Recorder, cost_of, measured, size_of

RECORD = "profile"  # name of the record in a reply: the task's costs


def mod(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
    """Send the costs of a message with the reply: `ClientApp(mods=[mod])`."""
    if not context.run_config.get("profile.enabled"):
        return call_next(message, context)
    cost: Cost = {"node": int(context.node_config.get("partition-id", -1))}
    with measured(cost):
        reply = call_next(message, context)
    if reply.has_content():
        reply.content[RECORD] = ConfigRecord(cost)
    return reply


class WatchedGrid:
    """A view of a Grid that tells a recorder of all messages."""

    def __init__(self, grid: Grid, recorder: Recorder) -> None:
        self.grid = grid
        self.recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages, wall, start = list(messages), time.time(), time.perf_counter()
        contents = {id(m.content): m.content for m in messages}  # many messages may share one
        sizes = {key: size_of(content) for key, content in contents.items()}
        ids = list(self.grid.push_messages(messages))
        accepted = set(ids)
        for message in messages:
            if message.metadata.message_id in accepted:
                self.recorder.pushed(message, sizes[id(message.content)], wall, start)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = list(self.grid.pull_messages(message_ids))
        end = time.perf_counter()
        for reply in replies:
            record = reply.content.pop(RECORD, None) if reply.has_content() else None
            self.recorder.pulled(reply, cost_of(record), end)
        return replies

    def task(self, name: str) -> AbstractContextManager[None]:
        """Measure a task of the server, for code that has only the Grid."""
        return task(name)


active: Recorder | None = None  # of the ServerApp in this process


@contextmanager
def profiled(enabled: bool, folder: Path, after_round: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to be called at the end of each round; `task` and `watched` work inside.

    Args:
        after_round: last round in the folder's profile to keep, when a run is resumed.
    """
    global active
    if not enabled:
        yield lambda server_round: None
        return
    active, status = Recorder(folder / FILE, after_round), "failed"
    try:
        yield active.end_round
        status = "completed"
    finally:
        if active.run_ids:  # empty if no round was started
            active.write(status)
        active = None


@contextmanager
def task(name: str) -> Iterator[None]:
    """Measure a task of the server; also a decorator."""
    cost: Cost = {}
    if active is None:
        yield
        return
    with measured(cost):
        yield
    active.add(name, "server", None, cost, cost["began"])


def watched(grid: Grid) -> Grid:
    """Return a Grid that records its messages; the same Grid if nothing is recorded."""
    if active is None:
        return grid
    active.start(grid.run.run_id)
    return cast(Grid, WatchedGrid(grid, active))
