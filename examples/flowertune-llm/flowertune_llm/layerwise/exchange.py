"""Requests of which only a few are under way at a time, and replies in the requests' order."""

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
LOOK = 5.0  # seconds between two checks that a client is still connected
GRACE = 10.0  # seconds to wait for the last messages of a client that has gone


def exchange(grid: Grid, requests: Requests, in_flight: int, timeout: float) -> Replies:
    """Send requests and yield replies.

    Args:
        requests: messages, each with a label.
        in_flight: largest number under way at once.
        timeout: seconds for each.

    Yields:
        the request's label, and the reply; None if none came.
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
    finally:  # removes slices from the store of messages
        soon = time.monotonic() + GRACE
        for _, node, message_id, _ in waiting:
            pull(grid, node, message_id, soon)


def pull(grid: Grid, node: int, message_id: str | None, deadline: float) -> Message | None:
    """Wait for the reply to a message.

    Returns:
        the reply; None if the message was not sent, after the deadline, or when the client has
        gone: Flower would wait for hours for the rest of a reply.
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
        except BaseException as error:  # an interrupt, while a client works in this process
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
    """Return why a reply is missing or an error, or an empty text."""
    if reply is None:
        return "no reply within strategy.round-timeout, or gone before its end"
    return cause(reply) if reply.has_error() else ""
