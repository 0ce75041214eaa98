"""Feature extraction before training: clients extract, the server adds up statistics."""

import time
from collections.abc import Collection, Iterable
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from tqdm import tqdm

from vit_finetune import task
from vit_finetune.config import Config
from vit_finetune.kit.clients import Clients, Draw, TooFewReplies
from vit_finetune.kit.images import UNREADABLE
from vit_finetune.kit.replies import Arrays, cause, to_numpy, to_record

EXTRACT = f"{MessageType.QUERY}.extract"


class WithFeatures(Strategy):
    """A wrapper around any strategy, for clients that extract features before they train.

    With each head it sends the statistics that standardise features, the same for all clients.

    Args:
        strategy: averages the heads.
        config, clients, draw: of the run.
        num_classes, width: of the head.
    """

    def __init__(
        self,
        strategy: Strategy,
        config: Config,
        clients: Clients,
        draw: Draw,
        num_classes: int,
        width: int,
    ) -> None:
        self.strategy, self.config, self.clients, self.draw = strategy, config, clients, draw
        self.num_classes, self.width = num_classes, width
        self.statistics: Arrays = {}  # mean and scale, and the offset of a closed-form start
        self.skipped: dict[int, int] = {}  # images left out, by partition with features ready
        self.bytes: dict[str, list[int]] = {"down": [], "up": []}  # of this round's training

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics and counts, to be saved with the run."""
        return {"statistics": self.statistics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state that was saved with the run."""
        self.statistics = state.get("statistics", {})

    def closed_form(self) -> ArrayRecord:
        """Return the head, solved from the sums of all clients by `task.discriminant`."""
        total = self.extract(self.clients.connected())
        standard = task.statistics(total)
        weight, offset = task.discriminant(total, standard, self.config.head_start_shrinkage)
        self.statistics["offset"] = offset
        return to_record({"weight": weight})

    def prepare(self, nodes: dict[int, int], server_round: int) -> Collection[int]:
        """Extract features for this round and later ones; return the partitions that are ready."""
        upcoming = self.upcoming(sorted(nodes), server_round)
        self.extract({partition: nodes[partition] for partition in upcoming})
        return self.skipped

    def upcoming(self, partitions: list[int], server_round: int) -> list[int]:
        """Return the partitions that are drawn in this round or a later one."""
        kinds = [MessageType.TRAIN] + [MessageType.EVALUATE] * bool(self.draw.evaluate)
        asked: set[int] = set()
        for later in range(server_round, self.config.num_server_rounds + 1):
            for kind in kinds:
                asked.update(self.draw(partitions, later, kind))
            if len(asked) == len(partitions):
                break
        return sorted(asked)

    def extract(self, nodes: dict[int, int]) -> Arrays:
        """Make clients extract the features that are missing, and show progress.

        All are asked at once, so that no worker idles. The first time, clients also send moments
        of their features for the statistics; the sums of these are returned.
        """
        new = [node for partition, node in nodes.items() if partition not in self.skipped]
        if not new:
            return {}
        content = RecordDict({"config": ConfigRecord({"moments": not self.statistics})})
        messages = [Message(content, node, EXTRACT) for node in new]
        began, images, computed, skipped = time.perf_counter(), 0, 0, 0
        moments: dict[int, Arrays] = {}
        self.clients.send(messages)
        with tqdm(total=len(new), desc="Extracting features", unit="client", disable=None) as bar:
            for reply in self.clients.receive(self.config.round_timeout):
                partition = self.clients.partition_of(reply)
                bar.update()
                if problem := self.problem(reply):
                    log(WARNING, "Partition %d: %s", partition, problem)
                    continue
                metrics = reply.content["metrics"]
                self.skipped[partition] = metrics["skipped"]
                skipped += metrics["skipped"]
                if not self.statistics:
                    moments[partition] = to_numpy(reply.content["moments"])
                images, computed = images + metrics["images"], computed + metrics["computed"]
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
        if skipped > UNREADABLE * (skipped + images):
            raise RuntimeError(
                f"dataset = '{self.config.dataset}': {skipped} training images cannot be read, "
                f"{images} can; the lines above name them"
            )
        parts = [moments[partition] for partition in sorted(moments)]
        total = {name: sum(part[name] for part in parts) for name in parts[0]} if parts else {}
        if total:
            standard = task.statistics(total)._asdict()
            self.statistics = {name: value.numpy() for name, value in standard.items()}
        if not self.statistics:
            raise TooFewReplies("no client could extract features; the lines above say why")
        return total

    def problem(self, reply: Message) -> str:
        """Return the problem of a client's answer, or an empty text: bad sums would spoil all."""
        if reply.has_error():
            return cause(reply)
        if self.statistics:
            return ""
        sums = to_numpy(reply.content["moments"])
        classes, width = self.num_classes, self.width
        shapes = {"count": (1,), "sum": (width,), "squares": (width,)}
        if self.config.closed_form:
            shapes |= {"class_count": (classes,), "class_sum": (classes, width)}
            shapes |= {"products": (width, width)}
        if shapes != (sent := {name: value.shape for name, value in sums.items()}):
            return f"its sums over features have shapes {sent}, not {shapes}"
        broken = [name for name, value in sums.items() if not np.isfinite(value).all()]
        return f"its sums over features hold NaN or infinity: {broken}" if broken else ""

    def remarks(self, server_round: int, clients: list[dict[str, Any]]) -> dict[str, Any]:
        """Return further keys of a round in results.json: bytes, and each client's figures."""
        sizes = {f"{way}_bytes": max(size) for way, size in self.bytes.items() if size}
        if sizes and server_round == 1:
            log(INFO, "A client gets %(down_bytes)d bytes and sends %(up_bytes)d a round", sizes)
        self.bytes = {"down": [], "up": []}
        each = [
            {"partition": p, "skipped_images": self.skipped[p]} | figures
            for figures in clients
            for p in [figures["partition"]]
        ]
        return {"traffic": sizes, "clients": each}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the statistics along with the head."""
        messages = self.strategy.configure_train(server_round, arrays, config, grid)
        messages = self.with_statistics(messages)
        self.bytes["down"] = [content_size(message) for message in messages]
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the statistics along with the head."""
        messages = self.strategy.configure_evaluate(server_round, arrays, config, grid)
        return self.with_statistics(messages)

    def with_statistics(self, messages: Iterable[Message]) -> list[Message]:
        messages = list(messages)
        for message in messages:
            message.content["statistics"] = to_record(self.statistics)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note the bytes, and have the strategy average the heads."""
        replies = list(replies)
        self.bytes["up"] = [content_size(reply) for reply in replies]
        return self.strategy.aggregate_train(server_round, replies)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Have the strategy average the metrics."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        self.strategy.summary()


def content_size(message: Message) -> int:
    """Return the size of a message's content, in bytes as Flower sends it."""
    return recorddict_to_proto(message.content).ByteSize()
