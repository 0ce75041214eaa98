# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Help for the pinned Flower: errors that are shown, nodes that know their partition."""

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
    """An early end of a run; the text says why."""


def shown(main: Main) -> Main:
    """Make a ServerApp log its error, end at once on Ctrl-C, and survive a worker's death.

    A `RuntimeError` is raised as `RunFailed`: Flower 1.25 takes a `RuntimeError` for its own
    "Failed to start run", loses the text, and lists the run as running for another minute.
    """

    @wraps(main)
    def wrapped(grid: Grid, context: Context) -> None:
        replace_dead_workers()
        try:
            with simulation_watched():
                main(cast(Grid, AskingAgain(grid)), context)
        except Exception as error:
            log(ERROR, "%s", error)  # Flower shows it within a traceback, or not at all
            if not isinstance(error, RuntimeError):
                raise
            raise RunFailed(str(error)).with_traceback(error.__traceback__) from None

    return wrapped


def is_simulated(grid: Grid) -> bool:
    """Tell whether a grid is a simulation's: no nodes will join later."""
    return hasattr(grid, "state") or hasattr(grid, "nodes")  # Flower's grid, or the kit's


def registered(grid: Grid) -> dict[int, int]:
    """Return the place of each node in the order of registration; empty without a simulation."""
    state = getattr(grid, "state", None)
    if not hasattr(state, "get_node_info"):
        return {}
    return {info.node_id: place for place, info in enumerate(state.get_node_info())}


def partition_id(context: Context) -> int:
    """Return the number of this node's partition of the data.

    Raises:
        RuntimeError: the node config does not have it, or it is out of range.
    """
    node = context.node_config
    if not 0 <= int(node.get("partition-id", -1)) < int(node.get("num-partitions", 0)):
        raise RuntimeError(
            f"this SuperNode's node-config {dict(node)} does not say which partition it holds; "
            'start it with --node-config "partition-id=0 num-partitions=2"'
        )
    return int(node["partition-id"])


def identify(message: Message, context: Context) -> Message:
    """Reply with this node's partition and their number: node ids are random."""
    count = int(context.node_config["num-partitions"])
    node = MetricRecord({"partition-id": partition_id(context), "num-partitions": count})
    return Message(RecordDict({"node": node}), reply_to=message)
