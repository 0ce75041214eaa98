"""Federated averaging of the head: features first; the rest of a round is in rounds.py."""

import time
from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from tqdm import tqdm

from vit_finetune import task
from vit_finetune.checkpoint import RunState
from vit_finetune.config import Config
from vit_finetune.momentum import step
from vit_finetune.replies import collect, one_line, to_numpy, to_record
from vit_finetune.rounds import Rounds, TooFewReplies

EXTRACT = f"{MessageType.QUERY}.extract"


class HeadFedAvg(Rounds):
    """FedAvg with server momentum (Hsu et al. 2019) over clients that first extract features.

    Source: https://arxiv.org/abs/1909.06335

    Args:
        config, state, on_round_end: as for `Rounds`.
    """

    silence = "no features, or no reply"

    def __init__(self, config: Config, state: RunState, on_round_end: Callable[[], None]) -> None:
        super().__init__(
            config,
            state,
            on_round_end,
            fraction_train=config.fraction_train,
            fraction_evaluate=config.fraction_evaluate if config.test_fraction > 0 else 0.0,
        )
        self.prepared: dict[int, int] = {}  # images skipped, by partition whose features are ready
        self.bytes: dict[str, list[int]] = {"down": [], "up": []}  # of this round's training

    def begin(self, grid: Grid) -> None:
        """Compute the head that starts in closed form: each client adds its sums."""
        if self.config.head_start == "closed-form":
            self.prepare(self.connected_nodes(grid), grid)

    def remarks(self, server_round: int) -> dict[str, Any]:
        sizes = {f"{way}_bytes": max(size) for way, size in self.bytes.items() if size}
        if sizes and server_round == 1:
            log(INFO, "A client gets %(down_bytes)d bytes and sends %(up_bytes)d a round", sizes)
        self.bytes = {"down": [], "up": []}
        return {"traffic": sizes} | super().remarks(server_round)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the head to a sample of the clients, whose features are ready by then."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.bytes["down"] = [content_size(message) for message in messages]
        return messages

    def sampled_nodes(self, grid: Grid, server_round: int, kind: str) -> dict[int, int]:
        """Return those of this phase's clients whose features are ready."""
        sampled = super().sampled_nodes(grid, server_round, kind)
        upcoming = self.upcoming(sorted(self.nodes), server_round)
        self.prepare({partition: self.nodes[partition] for partition in upcoming}, grid)
        return {p: node for p, node in sampled.items() if p in self.prepared}

    def content(self, partition: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        velocities = self.state.arrays.keys()
        statistics = {k: v for k, v in self.state.server.items() if k not in velocities}
        content = super().content(partition, arrays, config)
        content["statistics"] = to_record(statistics)
        return content

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
        speed = f", {computed / seconds:.0f} images/s" if computed else ""
        log(
            INFO,
            "Features of %d images on %d clients ready in %.1f s; %d computed%s",
            *(images, len(new), seconds, computed, speed),
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

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the good heads and step towards the average."""
        replies = list(replies)
        self.bytes["up"] = [content_size(reply) for reply in replies if not reply.has_error()]
        average, metrics = super().aggregate_train(server_round, replies)
        server, momentum = self.state.server, self.config.server_momentum
        moved = step(
            self.state.arrays, to_numpy(average), server, momentum, self.config.server_learning_rate
        )
        return to_record(moved), metrics

    def note(self, partition: int, phase: str, content: RecordDict) -> None:
        self.clients.setdefault(partition, {"skipped_images": self.prepared[partition]})
        super().note(partition, phase, content)


def content_size(message: Message) -> int:
    """Return the bytes of a message's content as Flower sends it."""
    return recorddict_to_proto(message.content).ByteSize()
