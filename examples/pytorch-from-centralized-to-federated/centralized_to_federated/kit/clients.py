# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""The clients of a run: which are connected, which are drawn, and the messages to them."""

import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.common import log
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from .flower import is_simulated, registered
from .population import Everyone, Players
from .processes import cores
from .replies import cause
from .settings import Settings

SHUFFLED = 10_000  # clients; a draw from more does not shuffle all
SETTLED = 3.0  # seconds after which a simulation has all its nodes
TELL_EVERY = 60.0  # seconds between two log lines while waiting
# A few clients are asked first: a fault that all clients have shows there.
FEW, FEW_SECONDS = 4, 30.0
APP_FAULTS = (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.LOAD_CLIENT_APP_EXCEPTION)


class TooFewReplies(RuntimeError):
    """Fewer than `min-replies` usable replies."""


class CommonFault(RuntimeError):
    """A fault of the app: the first clients of a run all fail with the same error."""


@dataclass(frozen=True)
class Draw:
    """The seeded draw of a phase's clients: the same in every run and after a resume.

    Args:
        train, evaluate: size of the draw: a float is a share of the connected clients, an int
            their number; 0 leaves the phase out.
        at_least: smallest size of the draw, if so many are connected.
        seed: of the run.
    """

    train: float | int
    evaluate: float | int
    at_least: int
    seed: int

    def __call__(self, partitions: Collection[int], server_round: int, kind: str) -> list[int]:
        """Return the partitions of a phase, sorted; `kind` is one of Flower's message types."""
        size = self.train if kind == MessageType.TRAIN else self.evaluate
        if not size:
            return []
        count = int(len(partitions) * size) if isinstance(size, float) else size
        count = min(max(count, self.at_least), len(partitions))
        generator = self.generator(server_round, kind)
        if isinstance(partitions, Everyone) and len(partitions) > SHUFFLED:
            return sorted(generator.choice(len(partitions), count, replace=False).tolist())
        return sorted(generator.permutation(sorted(partitions))[:count].tolist())

    def generator(self, server_round: int, kind: str) -> np.random.Generator:
        return np.random.default_rng((self.seed, server_round, kind == MessageType.TRAIN))


class Clients:
    """The clients of a run, by the partition of the data that each holds.

    Args:
        grid: carries the messages.
        config: the settings: wait for `min-replies` nodes, for `round-timeout` seconds at most.
        needed: further numbers of nodes to wait for, by the key that sets them.
        at_once: largest number of unanswered messages; 0 for no limit.
        check: called once with the number of partitions, as soon as it is known; raises an error
            if the data cannot be split in so many.
        population: number of clients, which the connected nodes play in turn; 0: each node is a
            client.
    """

    def __init__(
        self,
        grid: Grid,
        config: Settings,
        needed: Mapping[str, int] | None = None,
        at_once: int = 0,
        check: Callable[[int], None] | None = None,
        population: int = 0,
    ) -> None:
        self.grid, self.config, self.at_once, self.check = grid, config, at_once, check
        self.needed = dict(needed or {}) | {config.key_of("min_replies"): config.min_replies}
        self.population = population
        # By node id, which Flower draws anew in each run.
        self.partitions: dict[int, int] | Everyone = {}
        if population:
            self.grid, self.needed = Players(grid, population), dict(needed or {})
            self.partitions = Everyone(population)
        self.num_partitions = 0  # of the data, as nodes have said
        self.awaited: list[int] = []  # node ids of the last messages, sent or not yet
        self.asked: dict[str, int] = {}  # node ids by message id, of the last messages
        self.pending: set[str] = set()  # ids of unanswered messages
        self.waiting: deque[Message] = deque()  # messages to be sent
        self.works: set[str] = set()  # kinds of messages that some client has answered
        self.faults: list[str] = []  # errors of the app, in the replies to the last messages

    def connected(self) -> Mapping[int, int]:
        """Return node ids by partition; ask new nodes which partition they hold.

        A simulation numbers partitions in the order in which its nodes were registered, so it is
        enough to ask a few.

        Raises:
            TooFewReplies: too few nodes are connected in time, or know their partition.
        """
        node_ids = self.wait_for_nodes()
        if self.population:
            return self.everyone(node_ids)
        new = [node_id for node_id in node_ids if node_id not in self.partitions]
        order = registered(self.grid) if len(new) > FEW else {}
        few = new[:: -(-len(new) // FEW)] if order else new
        problem = self.ask_who_they_are(few, len(new))
        if all(self.partitions.get(node_id, -1) == order.get(node_id) for node_id in few):
            self.partitions |= {node_id: order[node_id] for node_id in new}
        elif order:
            others = [node_id for node_id in new if node_id not in few]
            problem = self.ask_who_they_are(others, len(new))
        known = [node_id for node_id in node_ids if node_id in self.partitions]
        nodes = {self.partitions[node_id]: node_id for node_id in known}
        if len(nodes) < self.config.min_replies:
            raise TooFewReplies(
                f"{len(nodes)} of {len(node_ids)} nodes hold a partition of their own, "
                f"{self.config.key_of('min_replies')} = {self.config.min_replies}; "
                f"{problem or 'the others have not answered'}"
            )
        if len(nodes) < len(known):
            counts = (len(known), len(nodes))
            log(WARNING, "%d nodes hold only %d partitions: some are idle", *counts)
        return nodes

    def ask_who_they_are(self, new: list[int], count: int) -> str:
        """Ask some of `count` nodes which partition they hold; return the first problem, if any."""
        if new:
            told = "Asking %d of %d nodes for their partition; their workers may yet start"
            log(INFO, told, len(new), count)
        problem = ""
        self.send(Message(RecordDict(), node_id, MessageType.QUERY) for node_id in new)
        for reply in self.receive(self.config.round_timeout):
            node_id = self.asked[reply.metadata.reply_to_message_id]
            if found := self.identify(node_id, reply):
                log(WARNING, "Node %d left out: %s", node_id, found)
                problem = problem or found
        return problem

    def everyone(self, node_ids: list[int]) -> Everyone:
        """Return all clients of the population, without asking nodes."""
        self.grid.nodes = sorted(node_ids)
        if self.check and not self.num_partitions:
            self.check(self.population)
        self.num_partitions = self.population
        return self.partitions

    def identify(self, node_id: int, reply: Message) -> str:
        """Note a node's partition, and their number; return the problem, or an empty text."""
        if reply.has_error():
            return cause(reply)
        node = reply.content["node"]
        count = int(node.get("num-partitions", self.num_partitions))
        if self.check and not self.num_partitions:
            self.check(count)
        self.num_partitions = self.num_partitions or count
        if count != self.num_partitions:
            return f"its num-partitions = {count}, the others' {self.num_partitions}"
        self.partitions[node_id] = int(node["partition-id"])
        return ""

    def wait_for_nodes(self) -> list[int]:
        """Wait until enough nodes are connected, and return the ids of all.

        Raises:
            TooFewReplies: they do not come in time; or, in a simulation, at all.
        """
        timeout, needed = self.config.round_timeout, max(self.needed.values(), default=1)
        began = changed = time.monotonic()
        told, count, node_ids = began - TELL_EVERY + 1, 0, list(self.grid.get_node_ids())
        keys = ", ".join(f"{key} = {number}" for key, number in self.needed.items())
        while len(node_ids) < needed:
            now = time.monotonic()
            if len(node_ids) != count:
                count, changed, told = len(node_ids), now, now - TELL_EVERY - 1
            if count and is_simulated(self.grid) and now - changed > SETTLED:
                lower = (f"{key}={count}" for key, most in self.needed.items() if most > count)
                raise TooFewReplies(
                    f"this simulation has {count} nodes, {keys}: start more "
                    f"(--num-supernodes {needed}), or set {' '.join(lower)}"
                )
            if now - began > timeout:
                raise TooFewReplies(
                    f"{count} nodes connected within "
                    f"{self.config.key_of('round_timeout')} = {timeout} s, {keys}"
                )
            if now - told > TELL_EVERY:
                told = now
                log(INFO, "Waiting for nodes: %d connected, %s", count, keys)
            time.sleep(0.2)
            node_ids = list(self.grid.get_node_ids())
        return node_ids

    def send(self, messages: Iterable[Message]) -> None:
        """Send messages: some at once, the others from within `receive`.

        No more than `at_once` are unanswered at a time. Until a client has answered a message of
        this kind, only a few are sent, to clients spread over all partitions.
        """
        messages = sorted(messages, key=self.order)  # a strategy's own order does not repeat
        self.awaited = [message.metadata.dst_node_id for message in messages]
        self.asked, self.pending, self.faults = {}, set(), []
        self.few = min(len(messages), max(FEW, cores()))
        few = {i * len(messages) // self.few for i in range(self.few)}
        self.waiting = deque(messages[i] for i in sorted(few))
        self.waiting += (message for i, message in enumerate(messages) if i not in few)
        self.began = time.monotonic()
        self.send_more()

    def order(self, message: Message) -> int:
        return self.partitions.get(message.metadata.dst_node_id, -1)

    def send_more(self) -> None:
        """Send what the limits allow, and remember the node of each message."""
        if not self.waiting:
            return
        room = len(self.waiting)
        if self.at_once:
            room = min(room, self.at_once - len(self.pending))
        if not self.may_ask_all():
            room = min(room, self.few - len(self.asked))
        messages = [self.waiting.popleft() for _ in range(room)]
        if messages:
            self.pending.update(filter(None, self.grid.push_messages(messages)))
            self.asked |= {m.metadata.message_id: m.metadata.dst_node_id for m in messages}

    def may_ask_all(self) -> bool:
        """Tell whether some client has answered, or the first few have had enough time."""
        if self.waiting[0].metadata.message_type in self.works:
            return True
        answered = bool(self.asked) and not self.pending
        return answered or time.monotonic() - self.began > FEW_SECONDS

    def receive(self, timeout: float) -> Iterator[Message]:
        """Yield the replies as they come, for `timeout` seconds at most.

        The pause between two looks is a fiftieth of the time spent so far, a second at most. That
        is quicker than `Grid.send_and_receive`: 0.1 s in simulation, 3 s in deployment.

        Raises:
            CommonFault: the first clients all fail alike.
        """
        began = self.began = time.monotonic()
        while (self.pending or self.waiting) and (waited := time.monotonic() - began) < timeout:
            for reply in list(self.grid.pull_messages(self.pending)):
                self.pending.discard(reply.metadata.reply_to_message_id)
                self.judge(reply)
                yield reply
            self.send_more()
            time.sleep(min(0.005 + waited / 50, 1.0) if self.pending else 0)

    def judge(self, reply: Message) -> None:
        """Note whether clients can answer this kind of message.

        Raises:
            CommonFault: the first clients all failed, with the same words but for numbers.
        """
        kind = reply.metadata.message_type
        if reply.has_content():
            self.works.add(kind)
        elif kind not in self.works and reply.error.code in APP_FAULTS:
            self.faults.append(cause(reply))
            alike = len({re.sub(r"\d+", "#", fault) for fault in self.faults}) == 1
            if alike and len(self.faults) == self.few:
                raise CommonFault(f"{self.few} of {self.few} clients fail alike: {self.faults[0]}")

    def partition_of(self, reply: Message) -> int:
        """Return the partition a reply is for, even if the SuperLink replied for a lost node."""
        return self.partitions[self.asked[reply.metadata.reply_to_message_id]]


class Drawn:
    """A view of the grid with no other nodes than those drawn for a phase."""

    def __init__(self, grid: Grid, nodes: Iterable[int]) -> None:
        self.grid, self.nodes = grid, list(nodes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def get_node_ids(self) -> list[int]:
        return self.nodes
