# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""What the pinned Flower needs: errors that it shows, nodes that say which partition they hold."""

from collections.abc import Callable
from functools import wraps
from logging import ERROR
from typing import cast

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from .signals import simulation_watched
from .workers import AskingAgain, replace_dead_workers

Main = Callable[[Grid, Context], None]


class RunFailed(Exception):
    """The end of a run before its time; the text says why."""


def shown(main: Main) -> Main:
    """Let a ServerApp end as it should: by an error, by Ctrl-C, or not by a worker's death.

    A `RuntimeError` is raised as `RunFailed`: Flower 1.25 takes it for its own "Failed to start
    run", the text is lost, and the run is listed as running for another minute.
    """

    @wraps(main)
    def wrapped(grid: Grid, context: Context) -> None:
        replace_dead_workers()
        try:
            with simulation_watched():
                main(cast(Grid, AskingAgain(grid)), context)
        except Exception as error:
            log(ERROR, "%s", error)  # Flower tells it within a traceback, if at all
            if not isinstance(error, RuntimeError):
                raise
            raise RunFailed(str(error)).with_traceback(error.__traceback__) from None

    return wrapped


def is_simulated(grid: Grid) -> bool:
    """Tell whether all nodes of a grid are there from the start."""
    return hasattr(grid, "state") or hasattr(grid, "nodes")  # Flower's in memory, the kit's own


def registered(grid: Grid) -> dict[int, int]:
    """Return the order in which a simulation's nodes were registered; nothing where none is."""
    state = getattr(grid, "state", None)
    if not hasattr(state, "get_node_info"):
        return {}
    return {info.node_id: place for place, info in enumerate(state.get_node_info())}


def partition_id(context: Context) -> int:
    """Return the partition of the data that this node was started with.

    Raises:
        RuntimeError: its node config does not say, or not properly.
    """
    node = context.node_config
    if not 0 <= int(node.get("partition-id", -1)) < int(node.get("num-partitions", 0)):
        raise RuntimeError(
            f"this SuperNode's node-config {dict(node)} does not say which partition it holds; "
            'start it with --node-config "partition-id=0 num-partitions=2"'
        )
    return int(node["partition-id"])


def identify(message: Message, context: Context) -> Message:
    """Tell which partition this node holds, and of how many: node ids are random."""
    count = int(context.node_config["num-partitions"])
    node = MetricRecord({"partition-id": partition_id(context), "num-partitions": count})
    return Message(RecordDict({"node": node}), reply_to=message)
