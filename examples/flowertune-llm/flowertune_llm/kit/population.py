# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""A population: many more clients than nodes, each played by whichever node is asked to.

A client is a number, and costs nothing until it is drawn. Its data is found by that number; nodes
keep nothing of it.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

PLAYED = "played"  # the record that names the clients of a message, and of a reply
FAILED = "failed"  # the record, instead of a client's own, that says why it failed
MOST_BYTES = 64 * 2**20  # of arrays in a reply


def play(message: Message, context: Context, app: Callable[[Message, Context], Message]) -> Message:
    """Have a ClientApp answer for each client that a message names: a mod of Flower's.

    `ClientApp(mods=[play])`: the app finds the client's number in `partition-id`, and the size of
    the population in `num-partitions`, as if each client were a node.
    """
    if not message.has_content() or PLAYED not in message.content:
        return app(message, context)
    played, answers = message.content[PLAYED], RecordDict()
    for client in played["clients"]:
        try:
            content = played_by(client, message, context, app).content
        except Exception as error:  # costs this client's contribution, not the others'
            reason = f"{type(error).__name__}: {error}"
            content = {FAILED: ConfigRecord({"reason": reason})}
        for name, record in content.items():
            answers[f"{client} {name}"] = record
    return Message(answers, reply_to=message)


def played_by(
    client: int, message: Message, context: Context, app: Callable[[Message, Context], Message]
) -> Message:
    """Return a client's answer.

    Raises:
        RuntimeError: the app keeps a state, which would be the node's and not the client's.
    """
    content, played = message.content, message.content[PLAYED]
    own = copy(message)
    own.content = RecordDict({n: copied(r) for n, r in content.items() if n != PLAYED})
    number = {"partition-id": client, "num-partitions": int(played["population"])}
    node, state = dict(context.node_config) | number, RecordDict()
    reply = app(own, Context(context.run_id, context.node_id, node, state, context.run_config))
    if state:
        raise RuntimeError(
            f"the app keeps {', '.join(state)} in a client's context.state, which nodes of a "
            "population have no place for; set population = 0, or keep it elsewhere"
        )
    if reply.has_error():
        raise RuntimeError(reply.error.reason)
    return reply


def copied(record: Any) -> Any:
    """Return a record that one client may change without another's seeing it."""
    return type(record)(dict(record)) if isinstance(record, ArrayRecord) else record


class Everyone(Mapping[int, int]):
    """The clients of a population, all of them connected: each number is its own node id."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))

    def __getitem__(self, client: int) -> int:
        if not 0 <= client < self.size:
            raise KeyError(client)
        return client


class Players:
    """A view of a grid in which clients of a population are nodes, and real nodes play them.

    Messages that are pushed together and hold the same content travel together: one to each node,
    with all the clients that it is to play; more where the replies would be too large. A simulation
    hands a node one message every tenth of a second, so more nodes than workers are the way to
    share the work evenly. The replies come apart here.
    """

    def __init__(self, grid: Grid, population: int) -> None:
        self.grid, self.population = grid, population
        self.nodes: list[int] = []  # that play
        self.played: dict[str, list[Message]] = {}  # by the id of the message that a node got
        self.replies: dict[str, Message] = {}  # that nobody has pulled yet, by message id

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages, alike = list(messages), {}
        for message in messages:
            message.metadata.__dict__["_message_id"] = secrets.token_hex(16)
            kind = message.metadata.message_type
            alike.setdefault((id(message.content), kind), []).append(message)
        parts = [part for each in alike.values() for part in self.shares(each)]
        sent = [self.to_node(part, i) for i, part in enumerate(parts)]
        for message_id, part in zip(self.grid.push_messages(sent), parts, strict=True):
            self.played[message_id] = part
        return [message.metadata.message_id for message in messages]

    def shares(self, messages: list[Message]) -> Iterator[list[Message]]:
        """Yield the messages that travel together, as even in number as can be."""
        arrays = messages[0].content.array_records.values()
        size = sum(len(array.data) for record in arrays for array in record.values())
        count = min(len(messages), max(len(self.nodes), len(messages) * size // MOST_BYTES))
        for i in range(count):
            yield messages[i * len(messages) // count : (i + 1) * len(messages) // count]

    def to_node(self, part: list[Message], turn: int) -> Message:
        """Return the message that has a node play some clients; nodes take turns."""
        clients = [message.metadata.dst_node_id for message in part]
        played = ConfigRecord({"clients": clients, "population": self.population})
        content = RecordDict(dict(part[0].content) | {PLAYED: played})
        kind = part[0].metadata.message_type
        return Message(content, self.nodes[turn % len(self.nodes)], kind)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        for reply in self.grid.pull_messages(list(self.played)):
            for message in self.played.pop(reply.metadata.reply_to_message_id, ()):
                self.replies[message.metadata.message_id] = apart(reply, message)
        return [self.replies.pop(i) for i in list(message_ids) if i in self.replies]


def apart(reply: Message, message: Message) -> Message:
    """Return a client's own part of a node's reply, as the reply to its message."""
    if reply.has_error():
        return Message(reply.error, reply_to=message)
    prefix = f"{message.metadata.dst_node_id} "
    content = RecordDict(
        {n.removeprefix(prefix): r for n, r in reply.content.items() if n.startswith(prefix)}
    )
    reason = ""
    if FAILED in content:
        reason = str(content[FAILED]["reason"])
    elif not content:
        reason = "the ClientApp plays no clients of a population; give it the kit's play among mods"
    if reason:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
    return Message(content, reply_to=message)
