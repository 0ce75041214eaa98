"""A worker of the pool: a fork of the server that runs steps on the device, one at a time."""

from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import NamedTuple

from gpu_scaling.executors import memory
from gpu_scaling.executors.outcome import perform

# After so long memory goes back; after each step it would cost a quarter of a small one.
IDLE_SECONDS = 0.1


class Order(NamedTuple):
    """The server's word to a worker before it hands over a client's socket."""

    fraction: float | None  # of the device memory, the most for this process; None: no limit
    note: str  # for the client's log


class Taken(NamedTuple):
    """A worker's word before a step: from now on its death costs that step."""


class Report(NamedTuple):
    """A worker's word after a step."""

    usage: memory.Usage | None  # if it has looked
    last: bool  # it ends now, for a fresh one to take its place


def work(server: Connection, recycle_after: int) -> None:
    """Run steps until the server hangs up, or until it is time for a fresh worker.

    Args:
        server: where orders come from and reports go.
        recycle_after: number of steps.
    """
    for done in range(1, recycle_after + 1):
        try:
            if not server.poll(IDLE_SECONDS):
                memory.give_back()
            order = server.recv()
        except (EOFError, OSError):  # the server has ended
            return
        if order is None:
            return
        memory.limit(order.fraction)
        with Connection(recv_handle(server)) as client:
            server.send(Taken())
            try:
                error = perform(client, order.note)
            except (EOFError, OSError):  # the client has gone
                error = None
        looks = error or done & (done - 1) == 0  # ever more seldom: a look takes milliseconds
        usage = memory.usage(error) if looks else None
        server.send(Report(usage, last=done == recycle_after))
