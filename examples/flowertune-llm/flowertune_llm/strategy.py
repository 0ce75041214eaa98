"""FedAvg of adapters: only changes travel, bad replies are left out, every round is saved."""

import time
from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from flowertune_llm import profiling, transport
from flowertune_llm.checkpoint import RunState
from flowertune_llm.config import Config
from flowertune_llm.replies import collect, problems, to_numpy, to_record

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class TooFewReplies(RuntimeError):
    """Fewer than `min-replies` clients sent something that can be used."""


class AdapterFedAvg(FedAvg):
    """FedAvg (McMahan et al. 2017) over adapters, in the dtype asked for, made to be resumed.

    The global adapter is kept in float32. Clients get it rounded to `strategy.transport-dtype`
    and answer with the change that training made, rounded likewise.

    Source: https://arxiv.org/abs/1602.05629

    Args:
        config: the run config.
        state: where the run stands; `start` carries on after `state.round`.
        on_round_end: called after each whole round, to save the state.
    """

    def __init__(self, config: Config, state: RunState, on_round_end: Callable[[], None]) -> None:
        super().__init__(config.fraction_train, fraction_evaluate=0.0)
        self.config = config
        self.state = state
        self.on_round_end = on_round_end
        self.partitions: dict[int, int] = {}  # by node id, which Flower draws anew in each run
        self.awaited: set[int] = set()  # partitions asked in this phase
        self.asked: dict[str, int] = {}  # node ids by message id, of this phase
        self.clients: dict[int, dict[str, Any]] = {}  # what each reported in this round
        self.traffic: dict[str, int] = {}  # bytes of arrays, the most of any client in this round

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

        Testing is central only: `evaluate_config` has no effect.

        Raises:
            TooFewReplies: all whole rounds are saved, and what this round has aggregated.
        """
        train_config = train_config or ConfigRecord()
        result = Result()
        if self.state.round < 0:
            self.state.arrays = to_numpy(initial_arrays)
            central = evaluate_fn(0, initial_arrays) if evaluate_fn else None
            self.end_round(0, result, central)

        for server_round in range(self.state.round + 1, num_rounds + 1):
            log(INFO, "")
            log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
            began = time.perf_counter()

            arrays, metrics = self.run_round(server_round, grid, train_config, timeout)
            self.state.arrays = to_numpy(arrays)
            result.train_metrics_clientapp[server_round] = metrics

            central = evaluate_fn(server_round, arrays) if evaluate_fn else None
            self.end_round(server_round, result, central)
            log(INFO, "Round took %.2f s", time.perf_counter() - began)

        result.arrays = to_record(self.state.arrays)
        return result

    def run_round(
        self, server_round: int, grid: Grid, config: ConfigRecord, timeout: float
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Train on a sample of the clients; return the new global adapter and their metrics."""
        arrays = to_record(self.state.arrays)
        messages = self.configure_train(server_round, arrays, config, grid)
        replies = collect(grid, self.send(grid, messages), timeout)
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
        if self.traffic:
            log(INFO, "A client gets %(down_bytes)d bytes and sends %(up_bytes)d", self.traffic)
        clients = [{"partition": p} | report for p, report in sorted(self.clients.items())]
        state = self.state
        state.round = server_round
        entry |= {"traffic": self.traffic, "clients": clients}
        state.history.append({"round": server_round} | entry)
        self.clients, self.traffic = {}, {}
        self.on_round_end()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global adapter and this round's learning rate to a sample of the clients."""
        config["server-round"] = server_round
        config["learning-rate"] = self.config.learning_rate(server_round)
        nodes = self.sampled_nodes(grid, server_round)
        sent = transport.encode(to_numpy(arrays), self.config.transport_dtype)
        self.traffic["down_bytes"] = transport.size(sent)
        content = RecordDict({self.arrayrecord_key: sent, self.configrecord_key: config})
        return [Message(content, node, MessageType.TRAIN) for node in nodes.values()]

    def send(self, grid: Grid, messages: Iterable[Message]) -> list[str]:
        """Send messages, remember which node each went to, and return the ids of those sent."""
        messages = list(messages)
        sent = [message_id for message_id in grid.push_messages(messages) if message_id]
        self.asked = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        return sent

    def sampled_nodes(self, grid: Grid, server_round: int) -> dict[int, int]:
        """Return the node ids of this round's clients by partition."""
        nodes = self.connected_nodes(grid)
        sample = self.sample(sorted(nodes), server_round)
        log(INFO, "train: sampled %d of %d clients", len(sample), len(nodes))
        self.awaited = set(sample)
        return {partition: nodes[partition] for partition in sample}

    def sample(self, partitions: list[int], server_round: int) -> list[int]:
        """Draw with a seed of (seed, round): the same in every run and after a resume."""
        count = max(int(len(partitions) * self.fraction_train), self.config.min_replies)
        rng = np.random.default_rng((self.config.seed, server_round))
        return sorted(rng.permutation(partitions)[:count].tolist())

    def connected_nodes(self, grid: Grid) -> dict[int, int]:
        """Return node ids by partition, asking new nodes which partition they hold."""
        deadline, told = time.monotonic() + self.config.round_timeout, -1
        while len(node_ids := list(grid.get_node_ids())) < self.config.min_replies:
            if time.monotonic() > deadline:
                raise TooFewReplies(
                    f"{len(node_ids)} nodes connected within strategy.round-timeout = "
                    f"{self.config.round_timeout} s, strategy.min-replies = "
                    f"{self.config.min_replies}"
                )
            if len(node_ids) != told:
                told, needed = len(node_ids), self.config.min_replies
                log(INFO, "Waiting for nodes: %d connected, min-replies = %d", told, needed)
            time.sleep(0.5)
        new = [node_id for node_id in node_ids if node_id not in self.partitions]
        questions = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in new]
        if new:
            log(INFO, "Asking %d nodes for their partition; their workers may yet start", len(new))
        for reply in collect(grid, self.send(grid, questions), self.config.round_timeout):
            node_id = self.asked[reply.metadata.reply_to_message_id]
            if reply.has_error():
                reason = " ".join(reply.error.reason.split())
                log(WARNING, "Node %d left out: %s", node_id, reason)
            else:
                self.partitions[node_id] = int(reply.content["node"]["partition-id"])
        known = [node_id for node_id in node_ids if node_id in self.partitions]
        nodes = {self.partitions[node_id]: node_id for node_id in known}
        if len(nodes) < len(known):
            log(WARNING, "%d nodes hold only %d partitions: some are idle", len(known), len(nodes))
        return nodes

    @profiling.task("aggregate")
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the good adapters, weighted by their numbers of examples.

        Raises:
            TooFewReplies: fewer than `strategy.min-replies` are good.
        """
        replies = sorted(replies, key=self.partition_of)  # so that sums are reproducible
        for reply in replies:
            self.restore(reply)
        left_out, good = {}, []
        sent, ratio = to_record(self.state.arrays), self.config.max_update_ratio
        found = problems(replies, self.weighted_by_key, sent, ratio)
        for reply, problem in zip(replies, found, strict=True):
            partition = self.partition_of(reply)
            if problem:
                left_out[partition] = problem
            else:
                good.append(reply)
                self.note(partition, reply.content["metrics"])
        for partition in self.awaited - {self.partition_of(reply) for reply in replies}:
            left_out[partition] = "no reply within strategy.round-timeout"
        for partition, problem in sorted(left_out.items()):
            log(WARNING, "Partition %d left out of training: %s", partition, problem)
        if len(good) < self.config.min_replies:
            raise TooFewReplies(
                f"round {server_round}: {len(good)} of {len(self.awaited)} training replies can be "
                f"used, strategy.min-replies = {self.config.min_replies}; the log names what was "
                "left out"
            )
        return super().aggregate_train(server_round, good)

    def restore(self, reply: Message) -> None:
        """Replace the change that a client sent by the adapter that it means, in float32."""
        if reply.has_error() or "arrays" not in reply.content.array_records:
            return
        received = reply.content.array_records["arrays"]
        self.traffic["up_bytes"] = max(self.traffic.get("up_bytes", 0), transport.size(received))
        try:
            adapter = transport.decode(received)
        except (RuntimeError, TypeError, ValueError):  # no numbers: found and named as unlike ours
            adapter = {}
        for name, value in self.state.arrays.items():
            if name in adapter and adapter[name].shape == value.shape:
                adapter[name] += value
        reply.content["arrays"] = to_record(adapter)

    def note(self, partition: int, metrics: MetricRecord) -> None:
        """Keep one client's own figures for results.json."""
        report = self.clients.setdefault(partition, {})
        for name, value in metrics.items():
            report["train_examples" if name == self.weighted_by_key else name] = value

    def partition_of(self, reply: Message) -> int:
        """Tell whose answer it is; one that the SuperLink gave in a lost node's place, too."""
        return self.partitions[self.asked[reply.metadata.reply_to_message_id]]
