"""FedAvg that samples by partition, leaves bad replies out, has momentum and can be resumed."""

import time
from collections.abc import Callable, Iterable
from logging import INFO, WARNING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from pytorch_example.checkpoint import RunState
from pytorch_example.config import PERSONAL_HEAD, Config
from pytorch_example.replies import NamedArrays, collect, problems, to_numpy, to_record

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class TooFewReplies(RuntimeError):
    """Fewer than `min-replies` clients sent something that can be used."""


class CustomFedAvg(FedAvg):
    """FedAvg (McMahan et al. 2017) with server momentum (Hsu et al. 2019), made to be resumed.

    Sources: https://arxiv.org/abs/1602.05629 and https://arxiv.org/abs/1909.06335.

    Args:
        config: the run config.
        state: where the run stands; `start` carries on after `state.round`.
        on_round_end: called after each whole round, to save the state.
    """

    def __init__(self, config: Config, state: RunState, on_round_end: Callable[[], None]) -> None:
        super().__init__(config.fraction_train, config.fraction_evaluate)
        self.config = config
        self.state = state
        self.on_round_end = on_round_end
        self.partitions: dict[int, int] = {}  # by node id, which Flower draws anew in each run
        self.awaited: set[int] = set()  # partitions asked in this phase
        self.asked: dict[str, int] = {}  # node ids by message id, of this phase
        self.heads_to_return = dict(state.personal_heads)  # after a resume, clients start empty

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
            central = evaluate_fn(0, initial_arrays) if evaluate_fn else None
            self.end_round(0, result, central)
        else:  # a checkpoint sorts by name; clipping and noise go by the order of the model
            self.state.arrays = {name: self.state.arrays[name] for name in initial_arrays}

        for server_round in range(self.state.round + 1, num_rounds + 1):
            log(INFO, "")
            log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
            began = time.perf_counter()

            arrays = to_record(self.state.arrays)
            messages = self.configure_train(server_round, arrays, train_config, grid)
            replies = collect(grid, self.send(grid, messages), timeout)
            arrays, metrics = self.aggregate_train(server_round, replies)
            self.state.arrays = to_numpy(arrays)
            result.train_metrics_clientapp[server_round] = metrics

            central = None
            try:
                messages = self.configure_evaluate(server_round, arrays, evaluate_config, grid)
                pending = self.send(grid, messages)
                central = evaluate_fn(server_round, arrays) if evaluate_fn else None  # meanwhile
                metrics = self.aggregate_evaluate(server_round, collect(grid, pending, timeout))
                result.evaluate_metrics_clientapp[server_round] = metrics or MetricRecord()
            except TooFewReplies:
                self.end_round(server_round, result, central)  # the new model is not lost
                raise
            self.end_round(server_round, result, central)
            log(INFO, "Round took %.2f s", time.perf_counter() - began)

        result.arrays = to_record(self.state.arrays)
        return result

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
        state.round = server_round
        state.history.append({"round": server_round} | entry)
        accuracy = central["accuracy"] if central else -1.0
        if accuracy >= state.best_accuracy:
            state.best_round, state.best_accuracy = server_round, accuracy
        self.on_round_end()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global model and this round's learning rate to a sample of the clients."""
        decay = self.config.learning_rate_decay ** (server_round - 1)
        config["learning-rate"] = self.config.learning_rate * decay
        return self.configure(server_round, arrays, config, grid, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global model to another sample of the clients."""
        if self.fraction_evaluate == 0:
            return []
        return self.configure(server_round, arrays, config, grid, MessageType.EVALUATE)

    def configure(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, kind: str
    ) -> list[Message]:
        config["server-round"] = server_round
        nodes = self.connected_nodes(grid)
        sample = self.sample(sorted(nodes), server_round, kind)
        log(INFO, "%s: sampled %d of %d clients", kind, len(sample), len(nodes))
        self.awaited = set(sample)
        messages = []
        for partition in sample:
            content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
            if partition in self.heads_to_return:
                content[PERSONAL_HEAD] = to_record(self.heads_to_return[partition])
            messages.append(Message(content, nodes[partition], kind))
        return messages

    def send(self, grid: Grid, messages: Iterable[Message]) -> list[str]:
        """Send messages, remember which node each went to, and return the ids of those sent."""
        messages = list(messages)
        sent = [message_id for message_id in grid.push_messages(messages) if message_id]
        self.asked = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        return sent

    def sample(self, partitions: list[int], server_round: int, kind: str) -> list[int]:
        """Draw with a seed of (seed, round, kind): the same in every run and after a resume."""
        training = kind == MessageType.TRAIN
        fraction = self.fraction_train if training else self.fraction_evaluate
        count = max(int(len(partitions) * fraction), self.config.min_replies)
        rng = np.random.default_rng((self.config.seed, server_round, training))
        return sorted(rng.permutation(partitions)[:count].tolist())

    def connected_nodes(self, grid: Grid) -> dict[int, int]:
        """Return node ids by partition, asking new nodes which partition they hold."""
        deadline, told = time.monotonic() + self.config.round_timeout, -1
        while len(node_ids := list(grid.get_node_ids())) < self.config.min_replies:
            if time.monotonic() > deadline:
                raise TooFewReplies(
                    f"{len(node_ids)} nodes connected within round-timeout = "
                    f"{self.config.round_timeout} s, min-replies = {self.config.min_replies}"
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
                log(WARNING, "Node %d left out: %s", node_id, reply.error.reason)
            else:
                self.partitions[node_id] = int(reply.content["node"]["partition-id"])
        known = [node_id for node_id in node_ids if node_id in self.partitions]
        nodes = {self.partitions[node_id]: node_id for node_id in known}
        if len(nodes) < len(known):
            log(WARNING, "%d nodes hold only %d partitions: some are idle", len(known), len(nodes))
        return nodes

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the good updates and step towards the average."""
        good = self.good_replies(server_round, replies, "training")
        heads = {}
        for reply in good:  # FedAvg averages one record of arrays for each client
            if PERSONAL_HEAD in reply.content:
                heads[self.partition_of(reply)] = to_numpy(reply.content.pop(PERSONAL_HEAD))
        average, metrics = self.average(server_round, good)
        self.state.personal_heads |= heads
        return to_record(self.step(to_numpy(average))), metrics

    def average(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average arrays and metrics, weighted by examples."""
        return super().aggregate_train(server_round, replies)

    def step(self, average: NamedArrays) -> NamedArrays:
        """Move the global model towards the average of the clients' models.

        velocity = server-momentum * velocity + (average - model)
        model    = model + server-learning-rate * velocity
        """
        model = {}
        for name, value in self.state.arrays.items():
            velocity = average[name] - value
            if name in self.state.velocity:
                velocity += self.config.server_momentum * self.state.velocity[name]
            self.state.velocity[name] = velocity
            model[name] = (value + self.config.server_learning_rate * velocity).astype(value.dtype)
        return model

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
        left_out = {}
        good = []
        ratio = self.config.max_update_ratio
        found = problems(replies, self.weighted_by_key, sent, ratio)
        for reply, problem in zip(replies, found, strict=True):
            if problem:
                left_out[self.partition_of(reply)] = problem
            else:
                good.append(reply)
                self.heads_to_return.pop(self.partition_of(reply), None)
        for partition in self.awaited - {self.partition_of(reply) for reply in replies}:
            left_out[partition] = "no reply within round-timeout"
        for partition, problem in sorted(left_out.items()):
            log(WARNING, "Partition %d left out of %s: %s", partition, phase, problem)
        if len(good) < self.config.min_replies:
            raise TooFewReplies(
                f"round {server_round}: {len(good)} of {len(self.awaited)} {phase} replies can be "
                f"used, min-replies = {self.config.min_replies}; the log names what was left out"
            )
        return good

    def partition_of(self, reply: Message) -> int:
        """Tell whose answer it is; one that the SuperLink gave in a lost node's place, too."""
        return self.partitions[self.asked[reply.metadata.reply_to_message_id]]
