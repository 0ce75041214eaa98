"""Federated averaging of the head: features first, bad replies left out, every round saved."""

import time
from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvgM, Result
from tqdm import tqdm

from vit_finetune import task
from vit_finetune.checkpoint import RunState
from vit_finetune.config import Config
from vit_finetune.replies import collect, problems, to_numpy, to_record

EXTRACT = f"{MessageType.QUERY}.extract"
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class TooFewReplies(RuntimeError):
    """Fewer than `min-replies` clients sent something that can be used."""


class HeadFedAvg(FedAvgM):
    """FedAvg with server momentum (Hsu et al. 2019) over clients that first extract features.

    Source: https://arxiv.org/abs/1909.06335

    Args:
        config: the run config.
        state: where the run stands; `start` carries on after `state.round`.
        on_round_end: called after each whole round, to save the state.
    """

    def __init__(self, config: Config, state: RunState, on_round_end: Callable[[], None]) -> None:
        super().__init__(
            config.fraction_train,
            config.fraction_evaluate if config.test_fraction > 0 else 0.0,
            server_learning_rate=config.server_learning_rate,
            server_momentum=config.server_momentum,
        )
        self.config = config
        self.state = state
        self.on_round_end = on_round_end
        self.partitions: dict[int, int] = {}  # by node id, which Flower draws anew in each run
        self.prepared: dict[int, int] = {}  # images skipped, by partition whose features are ready
        self.awaited: set[int] = set()  # partitions asked in this phase
        self.asked: dict[str, int] = {}  # node ids by message id, of this phase
        self.clients: dict[int, dict[str, Any]] = {}  # what each reported in this round
        self.bytes: dict[str, list[int]] = {"down": [], "up": []}  # of this round's training
        if velocity := [v for k, v in sorted(state.server.items()) if k.startswith("velocity/")]:
            self.momentum_vector = velocity
            self.current_arrays = to_record(state.arrays)

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
        """Run the rounds that `state` does not hold yet; otherwise like `FedAvgM.start`.

        Raises:
            TooFewReplies: all whole rounds are saved, and what this round has aggregated.
        """
        train_config = train_config or ConfigRecord()
        evaluate_config = evaluate_config or ConfigRecord()
        result = Result()
        if self.state.round < 0:
            self.state.arrays = to_numpy(initial_arrays)
            if self.config.head_start == "closed-form":
                self.prepare(self.connected_nodes(grid), grid)  # all: each adds its sums
                initial_arrays = to_record(self.state.arrays)
            central = evaluate_fn(0, initial_arrays) if evaluate_fn else None
            self.end_round(0, result, central)

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
                self.end_round(server_round, result, central)  # the new head is not lost
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
        sizes = {f"{way}_bytes": max(size) for way, size in self.bytes.items() if size}
        if sizes and server_round == self.state.round + 1 == 1:
            log(INFO, "A client gets %(down_bytes)d bytes and sends %(up_bytes)d a round", sizes)
        clients = [{"partition": p} | report for p, report in sorted(self.clients.items())]
        state = self.state
        state.round = server_round
        state.history.append(
            {"round": server_round} | entry | {"traffic": sizes, "clients": clients}
        )
        accuracy = central["accuracy"] if central else -1.0
        if accuracy >= state.best_accuracy:
            state.best_round, state.best_accuracy = server_round, accuracy
        self.clients, self.bytes = {}, {"down": [], "up": []}
        self.on_round_end()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the head to a sample of the clients, whose features are ready by then."""
        if self.current_arrays is None:
            self.current_arrays = arrays
        return self.configure(server_round, arrays, config, grid, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the new head to another sample of the clients."""
        if self.fraction_evaluate == 0:
            return []
        return self.configure(server_round, arrays, config, grid, MessageType.EVALUATE)

    def configure(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, kind: str
    ) -> list[Message]:
        nodes = self.connected_nodes(grid)
        sample = self.sample(sorted(nodes), server_round, kind)
        log(INFO, "%s: sampled %d of %d clients", kind, len(sample), len(nodes))
        self.awaited = set(sample)
        self.prepare({p: nodes[p] for p in self.upcoming(sorted(nodes), server_round)}, grid)
        config["server-round"] = server_round
        statistics = {k: v for k, v in self.state.server.items() if not k.startswith("velocity/")}
        content = {
            self.arrayrecord_key: arrays,
            "statistics": to_record(statistics),
            self.configrecord_key: config,
        }
        ready = [partition for partition in sample if partition in self.prepared]
        messages = [Message(RecordDict(content), nodes[partition], kind) for partition in ready]
        if kind == MessageType.TRAIN:
            self.bytes["down"] = [content_size(message) for message in messages]
        return messages

    def prepare(self, nodes: dict[int, int], grid: Grid) -> None:
        """Have the features of these partitions extracted where they are not, and show progress.

        All at once, so that no worker idles. The first time, clients also send the moments of
        their features, from which the statistics come that all heads standardise features with,
        and the head itself where it starts in closed form.
        """
        new = {
            partition: node for partition, node in nodes.items() if partition not in self.prepared
        }
        if not new:
            return
        wanted = "mean" not in self.state.server
        content = RecordDict({"config": ConfigRecord({"moments": wanted})})
        messages = [Message(content, node, EXTRACT) for node in new.values()]
        began = time.perf_counter()
        images = computed = 0
        moments = []
        with tqdm(total=len(new), desc="Extracting features", unit="client", disable=None) as bar:
            for reply in collect(grid, self.send(grid, messages), self.config.round_timeout):
                partition = self.partition_of(reply)
                bar.update()
                if reply.has_error():
                    log(WARNING, "Partition %d: %s", partition, one_line(reply.error.reason))
                    continue
                if wanted:
                    sums = to_numpy(reply.content["moments"])
                    if problem := self.problem_with_sums(sums):
                        log(WARNING, "Partition %d: %s", partition, problem)
                        continue
                    moments.append((partition, sums))
                self.prepared[partition] = reply.content["metrics"]["skipped"]
                images += reply.content["metrics"]["images"]
                computed += reply.content["metrics"]["computed"]
                bar.set_postfix_str(f"{computed / (time.perf_counter() - began):.0f} images/s")
                for note in reply.content["notes"]["notes"]:
                    if note != "none":
                        log(WARNING, "Partition %d: %s", partition, note)
        seconds = time.perf_counter() - began
        log(
            INFO,
            "Features of %d images on %d clients ready in %.1f s; %d computed, %.0f images/s",
            *(images, len(new), seconds, computed, computed / seconds),
        )
        if wanted and moments:
            parts = [part for _, part in sorted(moments, key=lambda pair: pair[0])]
            total = {name: sum(part[name] for part in parts) for name in parts[0]}
            standard = task.statistics(total)
            self.state.server |= {name: v.numpy() for name, v in standard._asdict().items()}
            if self.config.head_start == "closed-form":
                weight, offset = task.discriminant(
                    total, standard, self.config.head_start_shrinkage
                )
                self.state.arrays["weight"], self.state.server["offset"] = weight, offset
        if "mean" not in self.state.server:
            raise TooFewReplies("no client could extract features; the lines above say why")

    def problem_with_sums(self, sums: dict[str, np.ndarray]) -> str:
        """Say what is wrong with a client's moments, which would spoil everybody's statistics."""
        classes, width = self.state.arrays["weight"].shape
        shapes = {"count": (1,), "sum": (width,), "squares": (width,)}
        if self.config.head_start == "closed-form":
            shapes |= {"class_count": (classes,), "class_sum": (classes, width)}
            shapes |= {"products": (width, width)}
        if shapes != (sent := {name: value.shape for name, value in sums.items()}):
            return f"its sums over features have shapes {sent}, not {shapes}"
        broken = [name for name, value in sums.items() if not np.isfinite(value).all()]
        return f"its sums over features hold NaN or infinity: {broken}" if broken else ""

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

    def upcoming(self, partitions: list[int], server_round: int) -> list[int]:
        """Return the partitions that this round and those to come will ask."""
        kinds = [MessageType.TRAIN] + [MessageType.EVALUATE] * (self.fraction_evaluate > 0)
        asked: set[int] = set()
        for later in range(server_round, self.config.num_server_rounds + 1):
            for kind in kinds:
                asked.update(self.sample(partitions, later, kind))
            if len(asked) == len(partitions):
                break
        return sorted(asked)

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
                log(WARNING, "Node %d left out: %s", node_id, one_line(reply.error.reason))
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
        """Average the good heads and step towards the average."""
        replies = list(replies)
        self.bytes["up"] = [content_size(reply) for reply in replies if not reply.has_error()]
        good = self.good_replies(server_round, replies, "training")
        arrays, metrics = super().aggregate_train(server_round, good)
        for i, velocity in enumerate(self.momentum_vector or []):
            self.state.server[f"velocity/{i}"] = velocity
        return arrays, metrics

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
        ratio = self.config.max_update_ratio
        found = problems(replies, self.weighted_by_key, sent, ratio)
        for reply, problem in zip(replies, found, strict=True):
            partition = self.partition_of(reply)
            if problem:
                left_out[partition] = problem
            else:
                good.append(reply)
                self.note(partition, phase, reply.content["metrics"])
        for partition in self.awaited - {self.partition_of(reply) for reply in replies}:
            left_out[partition] = "no features, or no reply within round-timeout"
        for partition, problem in sorted(left_out.items()):
            log(WARNING, "Partition %d left out of %s: %s", partition, phase, problem)
        if len(good) < self.config.min_replies:
            raise TooFewReplies(
                f"round {server_round}: {len(good)} of {len(self.awaited)} {phase} replies can be "
                f"used, min-replies = {self.config.min_replies}; the log names what was left out"
            )
        return good

    def note(self, partition: int, phase: str, metrics: MetricRecord) -> None:
        """Keep one client's own figures for results.json."""
        skipped = {"skipped_images": self.prepared[partition]}
        report = self.clients.setdefault(partition, skipped)
        kind = "train" if phase == "training" else "eval"
        for name, value in metrics.items():
            report[f"{kind}_examples" if name == self.weighted_by_key else name] = value

    def partition_of(self, reply: Message) -> int:
        """Tell whose answer it is; one that the SuperLink gave in a lost node's place, too."""
        return self.partitions[self.asked[reply.metadata.reply_to_message_id]]


def content_size(message: Message) -> int:
    """Return the bytes of a message's content as Flower sends it."""
    return recorddict_to_proto(message.content).ByteSize()


def one_line(text: str) -> str:
    return " ".join(text.split())
