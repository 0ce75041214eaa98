# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Clients: who is there, who takes part in a phase, and how they are asked."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from .flower import collect
from .replies import one_line
from .settings import Settings


class TooFewReplies(RuntimeError):
    """Fewer than `min-replies` clients sent something that can be used."""


@dataclass(frozen=True)
class Draw:
    """The seeded draw of a phase's clients: the same in every run and after a resume.

    Args:
        train, evaluate: how many take part: a share of those connected if a float, a number if an
            int; 0 leaves the phase out.
        at_least: how many take part in any case, as far as they are connected.
        seed: of the run.
    """

    train: float | int
    evaluate: float | int
    at_least: int
    seed: int

    def __call__(self, partitions: list[int], server_round: int, kind: str) -> list[int]:
        """Return the partitions of a phase, sorted; `kind` is one of Flower's message types."""
        size = self.train if kind == MessageType.TRAIN else self.evaluate
        if not size:
            return []
        count = int(len(partitions) * size) if isinstance(size, float) else size
        order = self.generator(server_round, kind).permutation(partitions)
        return sorted(order[: max(count, self.at_least)].tolist())

    def generator(self, server_round: int, kind: str) -> np.random.Generator:
        return np.random.default_rng((self.seed, server_round, kind == MessageType.TRAIN))


class Clients:
    """The clients of a run, by the partition of the data that each holds.

    Args:
        grid: what messages go through.
        config: the settings; `min-replies` nodes are waited for, for `round-timeout` seconds.
        needed: further numbers of nodes to wait for, by the key that asks for them.
        at_once: how many messages may be unanswered; 0 for no limit.
        check: called once with the number of partitions, when nodes have told it; raises what
            is wrong with that number.
    """

    def __init__(
        self,
        grid: Grid,
        config: Settings,
        needed: Mapping[str, int] | None = None,
        at_once: int = 0,
        check: Callable[[int], None] | None = None,
    ) -> None:
        self.grid, self.config, self.at_once, self.check = grid, config, at_once, check
        self.needed = dict(needed or {}) | {config.key_of("min_replies"): config.min_replies}
        self.partitions: dict[int, int] = {}  # by node id, which Flower draws anew in each run
        self.awaited: list[int] = []  # node ids of the last messages, of those to be sent yet, too
        self.asked: dict[str, int] = {}  # node ids by message id, of the last messages
        self.waiting: list[list[Message]] = []  # waves that wait for others to be answered

    def connected(self) -> dict[int, int]:
        """Return node ids by partition, asking new nodes which partition they hold.

        Raises:
            TooFewReplies: too few nodes are connected in time.
        """
        node_ids = self.wait_for_nodes()
        new = [node_id for node_id in node_ids if node_id not in self.partitions]
        if new:
            log(INFO, "Asking %d nodes for their partition; their workers may yet start", len(new))
        questions = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in new]
        self.send(questions)
        for reply in self.receive(self.config.round_timeout):
            node_id = self.asked[reply.metadata.reply_to_message_id]
            if reply.has_error():
                log(WARNING, "Node %d left out: %s", node_id, one_line(reply.error.reason))
            else:
                node = reply.content["node"]
                self.partitions[node_id] = int(node["partition-id"])
                if self.check:
                    check, self.check = self.check, None
                    check(int(node["num-partitions"]))
        known = [node_id for node_id in node_ids if node_id in self.partitions]
        nodes = {self.partitions[node_id]: node_id for node_id in known}
        if len(nodes) < len(known):
            counts = (len(known), len(nodes))
            log(WARNING, "%d nodes hold only %d partitions: some are idle", *counts)
        return nodes

    def wait_for_nodes(self) -> list[int]:
        timeout = self.config.round_timeout
        deadline, told = time.monotonic() + timeout, -1
        keys = ", ".join(f"{key} = {count}" for key, count in self.needed.items())
        while len(node_ids := list(self.grid.get_node_ids())) < max(self.needed.values()):
            if time.monotonic() > deadline:
                raise TooFewReplies(
                    f"{len(node_ids)} nodes connected within "
                    f"{self.config.key_of('round_timeout')} = {timeout} s, {keys}"
                )
            if len(node_ids) != told:
                told = len(node_ids)
                log(INFO, "Waiting for nodes: %d connected, %s", told, keys)
            time.sleep(0.5)
        return node_ids

    def send(self, messages: Iterable[Message]) -> None:
        """Send messages, `at_once` at most; the others follow while `receive` waits."""
        messages, self.asked = list(messages), {}
        self.awaited = [message.metadata.dst_node_id for message in messages]
        size = self.at_once or max(1, len(messages))
        waves = [messages[first : first + size] for first in range(0, len(messages), size)]
        self.sent = self.push(waves[0]) if waves else []
        self.waiting = waves[1:]

    def push(self, messages: list[Message]) -> list[str]:
        """Send messages, remember which node each went to, and return the ids of those sent."""
        sent = [message_id for message_id in self.grid.push_messages(messages) if message_id]
        self.asked |= {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        return sent

    def receive(self, timeout: float) -> Iterator[Message]:
        """Yield the replies to what was sent that come within `timeout` seconds, as they come."""
        deadline = time.monotonic() + timeout
        yield from collect(self.grid, self.sent, timeout)
        for wave in self.waiting:
            if (left := deadline - time.monotonic()) > 0:
                yield from collect(self.grid, self.push(wave), left)

    def partition_of(self, reply: Message) -> int:
        """Tell whose answer it is; one that the SuperLink gave in a lost node's place, too."""
        return self.partitions[self.asked[reply.metadata.reply_to_message_id]]


class Drawn:
    """A view of the grid in which only the nodes drawn for a phase exist."""

    def __init__(self, grid: Grid, nodes: Iterable[int]) -> None:
        self.grid, self.nodes = grid, list(nodes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def get_node_ids(self) -> list[int]:
        return self.nodes
