"""Many requests, a few of them on their way at a time; replies in the order of the requests."""

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from queue import Empty, Queue
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from flowertune_llm.kit.replies import cause

Requests = Iterable[tuple[Any, Message]]
Replies = Generator[tuple[Any, Message | None], None, None]
LOOK = 5.0  # seconds between two looks whether a client is still there
GRACE = 10.0  # seconds for what a client has sent just before it went


def exchange(grid: Grid, requests: Requests, in_flight: int, timeout: float) -> Replies:
    """Send requests and yield replies.

    Args:
        requests: each with something beside it, to know it by.
        in_flight: how many may be on their way at once.
        timeout: seconds for each.

    Yields:
        what stood beside the request, and the reply; None if none came.
    """
    requests = iter(requests)
    waiting: deque[tuple[Any, int, str | None, float]] = deque()
    try:
        while True:
            while len(waiting) < in_flight and (request := next(requests, None)) is not None:
                beside, message = request
                [message_id] = list(grid.push_messages([message])) or [None]
                node = message.metadata.dst_node_id
                waiting.append((beside, node, message_id, time.monotonic() + timeout))
            if not waiting:
                return
            beside, node, message_id, deadline = waiting.popleft()
            yield beside, pull(grid, node, message_id, deadline)
    finally:  # leave no slices behind where messages are kept
        soon = time.monotonic() + GRACE
        for _, node, message_id, _ in waiting:
            pull(grid, node, message_id, soon)


def pull(grid: Grid, node: int, message_id: str | None, deadline: float) -> Message | None:
    """Return the reply to a message as soon as it is there.

    Returns:
        None if the message was not sent, after the deadline, or when the client has gone: of a
        reply that was never sent to its end Flower would wait for the rest for hours.
    """
    if not message_id:
        return None
    found: Queue[Message | BaseException] = Queue()
    given_up = threading.Event()

    def look() -> None:
        wait = 0.001
        try:
            while not given_up.is_set():
                for reply in grid.pull_messages([message_id]):
                    found.put(reply)
                    return
                time.sleep(wait)
                wait = min(1.2 * wait, 0.5)
        except BaseException as error:  # a client in this process may have been interrupted
            found.put(error)

    threading.Thread(target=look, daemon=True).start()
    last_seen = time.monotonic()
    while (now := time.monotonic()) < deadline and now - last_seen < GRACE + LOOK:
        try:
            reply = found.get(timeout=min(LOOK, deadline - now))
        except Empty:
            if node in set(grid.get_node_ids()):
                last_seen = time.monotonic()
            continue
        if isinstance(reply, BaseException):
            raise reply
        return reply
    given_up.set()
    return None


def lacking(reply: Message | None) -> str:
    """Say why there is no reply, or nothing."""
    if reply is None:
        return "no reply within strategy.round-timeout, or gone before its end"
    return cause(reply) if reply.has_error() else ""
