# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Workers that die, for lack of memory for instance: replaced, and their clients asked again."""

import random
import sys
import textwrap
from collections.abc import Iterable
from functools import wraps
from logging import WARNING
from typing import Any

from flwr.app import Message
from flwr.common import log
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

START_SECONDS = 30  # for a fresh worker to start


class AskingAgain:
    """A view of a grid that asks a client once more if its worker process has died.

    The second answer appears as the reply to the first message.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.sent: dict[str, Message] = {}  # messages that may be sent again, by id
        self.second: dict[str, str] = {}  # id of the second message, by that of the first

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; forget those of earlier phases."""
        messages = list(messages)
        sent = list(self.grid.push_messages(messages))
        phases = set(map(phase, messages))
        self.sent = {i: message for i, message in self.sent.items() if phase(message) in phases}
        self.sent |= {message.metadata.message_id: message for message in messages}
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        first = {self.second.get(i, i): i for i in message_ids}
        replies = []
        for reply in self.grid.pull_messages(list(first)):
            message_id = first[reply.metadata.reply_to_message_id]
            message = self.sent.pop(message_id, None)
            if message and worker_died(reply) and self.ask_again(message, message_id):
                text = "Node %d: its worker died (out of memory?); it is asked again: %s"
                reason = textwrap.shorten(reply.error.reason, 300)
                log(WARNING, text, message.metadata.dst_node_id, reason)
                continue
            if self.second.pop(message_id, None):
                reply.metadata.__dict__["_reply_to_message_id"] = message_id
            replies.append(reply)
        return replies

    def ask_again(self, message: Message, message_id: str) -> bool:
        """Send a message again; tell whether its node is still there."""
        about = message.metadata
        again = Message(
            message.content,
            about.dst_node_id,
            about.message_type,
            ttl=about.ttl,
            group_id=about.group_id,
        )
        [sent] = self.grid.push_messages([again]) or [None]
        if sent:
            self.second[message_id] = sent
        return bool(sent)


def phase(message: Message) -> tuple[str, str]:
    return message.metadata.message_type, message.metadata.group_id


def worker_died(reply: Message) -> bool:
    """Tell whether a reply is an error of the worker process, not of the app."""
    if not reply.has_error():
        return False
    code, reason = reply.error.code, reply.error.reason or ""
    by_ray = "ray.exceptions." in reason and "RayTaskError" not in reason
    return code == ErrorCode.CLIENT_APP_CRASHED or (code == ErrorCode.UNKNOWN and by_ray)


def replace_dead_workers() -> None:
    """Make Flower's simulation replace a dead worker by a fresh one.

    Flower 1.25 keeps the dead one. It answers each message with an error at once, and so gets
    nearly all of them.
    """
    actors = sys.modules.get("flwr.simulation.ray_transport.ray_actor")
    pool_class = getattr(actors, "BasicActorPool", None)
    take_back = getattr(pool_class, "add_actor_back_to_pool", None)
    if not take_back or hasattr(take_back, "__wrapped__"):
        return

    from ray import wait
    from ray.exceptions import RayError, RayTaskError

    @wraps(take_back)
    def take_back_or_replace(pool: Any, future: Any) -> None:
        error = sys.exception()
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            dead = pool._future_to_actor.pop(future)
            others = {*pool.pool, *pool._future_to_actor.values()} - {dead}
            worker = pool.create_actor_fn()
            started, _ = wait([worker.__ray_ready__.remote()], timeout=START_SECONDS)
            if others and not started:  # its machine is gone: another worker takes over
                worker = random.choice(list(others))
            pool._future_to_actor[future] = worker
        take_back(pool, future)

    pool_class.add_actor_back_to_pool = take_back_or_replace
