"""Rounds that can be resumed: who takes part, whose reply is left out, what is saved of each."""

import time
from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from centralized_to_federated.checkpoint import RunState
from centralized_to_federated.config import Config
from centralized_to_federated.replies import collect, one_line, problems, to_numpy, to_record

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class TooFewReplies(RuntimeError):
    """Fewer than `min-replies` clients sent something that can be used."""


class Rounds(FedAvg):
    """FedAvg (McMahan et al. 2017) round by round; a strategy overrides what it does otherwise.

    Source: https://arxiv.org/abs/1602.05629

    Args:
        config: the run config.
        state: where the run stands; `start` carries on after `state.round`.
        on_round_end: called after each whole round, to save the state.
        settings: of the Flower strategy that this one extends.
    """

    section = ""  # before the run config's names of the keys that concern the strategy
    silence = "no reply"  # what it means that none came

    def __init__(
        self, config: Config, state: RunState, on_round_end: Callable[[], None], **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.config = config
        self.state = state
        self.on_round_end = on_round_end
        self.needed = {f"{self.section}min-replies": config.min_replies}  # nodes, by key
        self.partitions: dict[int, int] = {}  # by node id, which Flower draws anew in each run
        self.nodes: dict[int, int] = {}  # the other way round, of those that are connected
        self.awaited: set[int] = set()  # partitions asked in this phase
        self.asked: dict[str, int] = {}  # node ids by message id, of this phase
        self.clients: dict[int, dict[str, Any]] = {}  # what each reported in this round

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run the rounds that `state` does not hold yet; otherwise like `FedAvg.start`.

        Raises:
            TooFewReplies: all whole rounds are saved, and what this round has aggregated.
        """
        train_config = train_config or ConfigRecord()
        evaluate_config = evaluate_config or ConfigRecord()
        result = Result()
        if self.state.round < 0:
            self.state.arrays = to_numpy(initial_arrays)
            self.begin(grid)
            arrays = to_record(self.state.arrays)
            self.end_round(0, result, evaluate_fn(0, arrays) if evaluate_fn else None)

        for server_round in range(self.state.round + 1, num_rounds + 1):
            log(INFO, "")
            log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
            began = time.perf_counter()

            arrays, metrics = self.train_round(server_round, grid, train_config, timeout)
            self.state.arrays = to_numpy(arrays)
            result.train_metrics_clientapp[server_round] = metrics

            central = None
            try:
                messages = self.configure_evaluate(server_round, arrays, evaluate_config, grid)
                pending = self.send(grid, messages)
                central = evaluate_fn(server_round, arrays) if evaluate_fn else None  # meanwhile
                replies = self.receive(grid, pending, timeout)
                metrics = self.aggregate_evaluate(server_round, replies)
                result.evaluate_metrics_clientapp[server_round] = metrics or MetricRecord()
            except TooFewReplies:
                self.end_round(server_round, result, central)  # the new model is not lost
                raise
            self.end_round(server_round, result, central)
            log(INFO, "Round took %.2f s", time.perf_counter() - began)

        result.arrays = to_record(self.state.arrays)
        return result

    def begin(self, grid: Grid) -> None:
        """Do what comes before the model is tested for the first time; nothing here."""

    def train_round(
        self, server_round: int, grid: Grid, config: ConfigRecord, timeout: float
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Train on a sample of the clients; return the new global model and their metrics."""
        arrays = to_record(self.state.arrays)
        messages = self.configure_train(server_round, arrays, config, grid)
        replies = self.receive(grid, self.send(grid, messages), timeout)
        return self.aggregate_train(server_round, replies)

    def end_round(self, server_round: int, result: Result, central: MetricRecord | None) -> None:
        """Write the round's record into the state and have it saved."""
        result.evaluate_metrics_serverapp[server_round] = central or MetricRecord()
        entry = {
            "train_metrics": result.train_metrics_clientapp,
            "evaluate_metrics_clientapp": result.evaluate_metrics_clientapp,
            "evaluate_metrics_serverapp": result.evaluate_metrics_serverapp,
        }
        entry = {part: dict(metrics.get(server_round, {})) for part, metrics in entry.items()}
        for part, metrics in entry.items():
            if metrics:
                log(INFO, "%s: %s", part, ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
        state = self.state
        state.history.append({"round": server_round} | entry | self.remarks(server_round))
        state.round = server_round
        if central and "accuracy" in central and central["accuracy"] >= state.best_accuracy:
            state.best_round, state.best_accuracy = server_round, central["accuracy"]
        self.clients = {}
        self.on_round_end()

    def remarks(self, server_round: int) -> dict[str, Any]:
        """Return what else results.json is to say of a round."""
        return {"clients": [{"partition": p} | r for p, r in sorted(self.clients.items())]}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global model to a sample of the clients."""
        return self.configure(server_round, arrays, config, grid, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the new model to another sample of the clients."""
        if self.fraction_evaluate == 0:
            return []
        return self.configure(server_round, arrays, config, grid, MessageType.EVALUATE)

    def configure(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, kind: str
    ) -> list[Message]:
        config["server-round"] = server_round
        nodes = self.sampled_nodes(grid, server_round, kind)
        return [
            Message(self.content(partition, arrays, config), node, kind)
            for partition, node in nodes.items()
        ]

    def content(self, partition: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        """Return what a client is sent."""
        return RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})

    def sampled_nodes(self, grid: Grid, server_round: int, kind: str) -> dict[int, int]:
        """Return the node ids of this phase's clients by partition."""
        nodes = self.connected_nodes(grid)
        sample = self.sample(sorted(nodes), server_round, kind)
        log(INFO, "%s: sampled %d of %d clients", kind, len(sample), len(nodes))
        self.awaited = set(sample)
        return {partition: nodes[partition] for partition in sample}

    def sample(self, partitions: list[int], server_round: int, kind: str) -> list[int]:
        """Draw with a seed of (seed, round, kind): the same in every run and after a resume."""
        count = max(self.sample_size(len(partitions), kind), self.config.min_replies)
        rng = np.random.default_rng((self.config.seed, server_round, kind == MessageType.TRAIN))
        return sorted(rng.permutation(partitions)[:count].tolist())

    def sample_size(self, connected: int, kind: str) -> int:
        training = kind == MessageType.TRAIN
        return int(connected * (self.fraction_train if training else self.fraction_evaluate))

    def send(self, grid: Grid, messages: Iterable[Message]) -> list[str]:
        """Send messages, remember which node each went to, and return the ids of those sent."""
        messages = list(messages)
        sent = [message_id for message_id in grid.push_messages(messages) if message_id]
        self.asked = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        return sent

    def receive(self, grid: Grid, sent: Iterable[str], timeout: float) -> list[Message]:
        """Return the replies that come within `timeout` seconds."""
        return collect(grid, sent, timeout)

    def connected_nodes(self, grid: Grid) -> dict[int, int]:
        """Return node ids by partition, asking new nodes which partition they hold."""
        deadline, told = time.monotonic() + self.config.round_timeout, -1
        keys = ", ".join(f"{key} = {count}" for key, count in self.needed.items())
        while len(node_ids := list(grid.get_node_ids())) < max(self.needed.values()):
            if time.monotonic() > deadline:
                raise TooFewReplies(
                    f"{len(node_ids)} nodes connected within {self.section}round-timeout = "
                    f"{self.config.round_timeout} s, {keys}"
                )
            if len(node_ids) != told:
                told = len(node_ids)
                log(INFO, "Waiting for nodes: %d connected, %s", told, keys)
            time.sleep(0.5)
        new = [node_id for node_id in node_ids if node_id not in self.partitions]
        questions = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in new]
        if new:
            log(INFO, "Asking %d nodes for their partition; their workers may yet start", len(new))
        for reply in self.receive(grid, self.send(grid, questions), self.config.round_timeout):
            node_id = self.asked[reply.metadata.reply_to_message_id]
            if reply.has_error():
                log(WARNING, "Node %d left out: %s", node_id, one_line(reply.error.reason))
            else:
                self.partitions[node_id] = int(reply.content["node"]["partition-id"])
        known = [node_id for node_id in node_ids if node_id in self.partitions]
        self.nodes = {self.partitions[node_id]: node_id for node_id in known}
        if len(self.nodes) < len(known):
            counts = (len(known), len(self.nodes))
            log(WARNING, "%d nodes hold only %d partitions: some are idle", *counts)
        return self.nodes

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the good models, weighted by their numbers of examples."""
        return self.average(server_round, self.good_replies(server_round, replies, "training"))

    def average(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average arrays and metrics as Flower does."""
        return super().aggregate_train(server_round, replies)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the good metrics; None where federated evaluation is off."""
        if self.fraction_evaluate == 0:
            return None
        good = self.good_replies(server_round, replies, "evaluation")
        return super().aggregate_evaluate(server_round, good)

    def good_replies(
        self, server_round: int, replies: Iterable[Message], phase: str
    ) -> list[Message]:
        """Return what can be aggregated, sorted by partition so that sums are reproducible.

        Raises:
            TooFewReplies: fewer than `min-replies` are good.
        """
        replies = sorted(replies, key=self.partition_of)
        sent = to_record(self.state.arrays) if phase == "training" else None
        left_out, good = {}, []
        found = problems(replies, self.weighted_by_key, sent, self.config.max_update_ratio)
        for reply, problem in zip(replies, found, strict=True):
            partition = self.partition_of(reply)
            if problem:
                left_out[partition] = problem
            else:
                good.append(reply)
                self.note(partition, phase, reply.content)
        for partition in self.awaited - {self.partition_of(reply) for reply in replies}:
            left_out[partition] = f"{self.silence} within {self.section}round-timeout"
        for partition, problem in sorted(left_out.items()):
            log(WARNING, "Partition %d left out of %s: %s", partition, phase, problem)
        if len(good) < self.config.min_replies:
            raise TooFewReplies(
                f"round {server_round}: {len(good)} of {len(self.awaited)} {phase} replies can be "
                f"used, {self.section}min-replies = {self.config.min_replies}; the log names what "
                "was left out"
            )
        return good

    def note(self, partition: int, phase: str, content: RecordDict) -> None:
        """Keep one client's own figures for results.json."""
        report = self.clients.setdefault(partition, {})
        kind = "train" if phase == "training" else "eval"
        for name, value in content["metrics"].items():
            report[f"{kind}_examples" if name == self.weighted_by_key else name] = value

    def partition_of(self, reply: Message) -> int:
        """Tell whose answer it is; one that the SuperLink gave in a lost node's place, too."""
        return self.partitions[self.asked[reply.metadata.reply_to_message_id]]
