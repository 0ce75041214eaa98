"""Aggregation slice by slice: neither side ever has a whole model in memory."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, nullcontext
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from flowertune_llm.encoding import decode
from flowertune_llm.kit.clients import Clients, TooFewReplies
from flowertune_llm.kit.loop import Figures, Nodes
from flowertune_llm.kit.replies import problems, to_record
from flowertune_llm.kit.run import Run
from flowertune_llm.layerwise.exchange import Replies, Requests, exchange, lacking
from flowertune_llm.layerwise.progress import Progress
from flowertune_llm.layerwise.serving import raw_record
from flowertune_llm.layerwise.settings import LayerwiseSettings
from flowertune_llm.layerwise.shards import (
    FLOATS,
    Shard,
    Slice,
    Span,
    Tensor,
    plan,
    tensors_from,
)
from flowertune_llm.layerwise.summing import (
    CannotAverage,
    RunningSum,
    is_finite,
    one_thread,
    to_bytes,
)
from flowertune_llm.layerwise.synthetic import make_sink


class ClientFailed(RuntimeError):
    """A client without a usable reply."""

    def __init__(self, partition: int, problem: str) -> None:
        super().__init__(f"partition {partition}: {problem}")
        self.partition, self.problem = partition, problem


class Client(NamedTuple):
    """A client of a round."""

    node: int
    ready: RecordDict  # its reply when it was ready: `manifest` and `metrics`


class Layers:
    """FedAvg's mean over whole models, or over adapters too long for one message.

    In each round clients first get ready: they train, if this run trains, and say which tensors
    they have. The server then asks all of them for slice after slice, adds the replies up in
    float32, and writes each finished slice to its place in `model_<round>`. A client that fails
    meanwhile is left out of every slice, or ends the run: `aggregation.on-failure`.

    Args:
        config: the settings.
        run: state of the run, and its folder.
        clients: those of the run.
        strategy: weighs clients, and averages their metrics.
        traffic: is filled with the bytes to and from a client in a round.
    """

    def __init__(
        self,
        config: LayerwiseSettings,
        run: Run,
        clients: Clients,
        strategy: FedAvg,
        traffic: dict[str, int],
    ) -> None:
        self.config, self.run, self.clients = config, run, clients
        self.strategy, self.traffic = strategy, traffic

    def train(self, server_round: int, nodes: Nodes) -> tuple[ArrayRecord, MetricRecord, Figures]:
        """Train a round in the strategy's place: `Loop(train=...)`."""
        round_config = ConfigRecord({"run": self.run.name, "server-round": server_round})
        self.traffic["down_bytes"] = 0
        if self.config.whole_model and server_round > 1:
            nodes = self.distribute(nodes, round_config, self.model_folder(server_round - 1))
        clients, tensors = self.make_ready(nodes, round_config)
        self.traffic["up_bytes"] = sum(tensor.nbytes for tensor in tensors)
        measured = getattr(self.clients.grid, "task", nullcontext)  # the Grid of the profiler
        while True:
            try:
                with measured("aggregate"):
                    self.gather(clients, tensors, round_config)
                break
            except ClientFailed as failed:
                if self.config.on_failure == "stop":
                    raise
                log(WARNING, "Partition %d fails: %s", failed.partition, failed.problem)
                del clients[failed.partition]
                self.enough(clients, failed.problem)
                log(INFO, "Starting over with %d clients", len(clients))
        contents = [client.ready for client in clients.values()]
        metrics = self.strategy.train_metrics_aggr_fn(contents, self.strategy.weighted_by_key)
        figures = {partition: client.ready["metrics"] for partition, client in clients.items()}
        if self.config.whole_model:
            self.drop_unsaved(server_round - 1)
            return ArrayRecord(), metrics, figures
        return self.changed_adapter(self.model_folder(server_round)), metrics, figures

    # Getting ready

    def distribute(self, nodes: Nodes, round_config: ConfigRecord, folder: Path) -> Nodes:
        """Send the files of the global model, and return the nodes that have got all."""
        files = sorted(path for path in folder.iterdir() if path.is_file())
        self.traffic["down_bytes"] = sum(path.stat().st_size for path in files)
        log(INFO, "Sending %s to %d clients", folder.name, len(nodes))

        def pieces() -> Iterator[RecordDict]:
            yield RecordDict({"piece": ConfigRecord({"step": "begin"})})
            for path in files:
                with path.open("rb") as file:
                    offset = 0
                    while data := file.read(self.config.slice_bytes):
                        place = ConfigRecord({"step": "write", "file": path.name, "offset": offset})
                        yield RecordDict({"piece": place, "data": raw_record(data)})
                        offset += len(data)
            yield RecordDict({"piece": ConfigRecord({"step": "end"})})

        have, problem = dict(nodes), ""
        for content in pieces():
            content["config"] = round_config
            requests = ((p, Message(content, node, "query.receive")) for p, node in have.items())
            for partition, reply in self.exchange(list(requests)):
                if missing := lacking(reply):
                    log(WARNING, "Partition %d left out of training: %s", partition, missing)
                    del have[partition]
                    problem = missing
            self.enough(have, problem)
        return have

    def make_ready(
        self, nodes: Nodes, round_config: ConfigRecord
    ) -> tuple[dict[int, Client], list[Tensor]]:
        """Make clients train, if this run trains, and return those that can be averaged.

        Raises:
            TooFewReplies: they are fewer than `min-replies`.
        """
        content = RecordDict({"config": round_config})
        if self.run.arrays:
            content["arrays"] = to_record(self.run.arrays)
        messages = [Message(content, node, "train.make_ready") for node in nodes.values()]
        partition_of = self.clients.partition_of
        self.clients.send(messages)
        replies = sorted(self.clients.receive(self.config.round_timeout), key=partition_of)
        left_out = dict.fromkeys(nodes, f"no reply within {self.config.key_of('round_timeout')}")
        found = problems(replies, self.strategy.weighted_by_key, None, 0)
        left_out |= dict(zip(map(partition_of, replies), found, strict=True))
        ready = {
            partition_of(reply): reply.content
            for reply, problem in zip(replies, found, strict=True)
            if not problem
        }
        kinds = {}
        for partition, content in ready.items():
            try:
                kinds[partition] = tensors_from(json.loads(content["manifest"]["tensors"]))
            except (KeyError, TypeError, ValueError):
                left_out[partition] = "its reply does not say which tensors it has"
        counted = Counter(frozenset(tensors) for tensors in kinds.values())
        usual = counted.most_common(1)[0][0] if counted else frozenset()
        clients = {}
        for partition, tensors in kinds.items():
            if unlike := frozenset(tensors) ^ usual:
                name, dtype, shape = min(unlike)
                left_out[partition] = f"not the others' model: {name}, {dtype} {list(shape)}"
            else:
                clients[partition] = Client(nodes[partition], ready[partition])
        for partition, problem in sorted(left_out.items()):
            if problem:
                log(WARNING, "Partition %d left out of training: %s", partition, problem)
        [(cause, _)] = Counter(filter(None, left_out.values())).most_common(1) or [("", 0)]
        self.enough(clients, cause)
        return clients, kinds[next(iter(clients))]

    def enough(self, left: dict[int, Any], cause: str) -> None:
        if len(left) < self.config.min_replies:
            raise TooFewReplies(
                f"{len(left)} clients are left, {self.config.key_of('min_replies')} = "
                f"{self.config.min_replies}; the log names what was left out, most often: "
                f"{cause or 'none'}"
            )

    # Aggregating

    def gather(
        self, clients: dict[int, Client], tensors: list[Tensor], round_config: ConfigRecord
    ) -> None:
        """Write the mean of the clients' models.

        Raises:
            ClientFailed: a client failed, and no model was written.
        """
        metrics = {partition: client.ready["metrics"] for partition, client in clients.items()}
        weight = self.strategy.weighted_by_key
        examples = {partition: float(values[weight]) for partition, values in metrics.items()}
        total = sum(examples.values())
        shares = {partition: count / total for partition, count in examples.items()}
        shards = plan(tensors, self.config.shard_megabytes * 2**20, self.config.slice_bytes)
        served = {p: client.ready["manifest"]["fingerprint"] for p, client in clients.items()}
        identity = {"shares": sorted(shares.items()), "served": sorted(served.items())}
        identity["plan"] = [self.config.slice_bytes, self.config.shard_megabytes, sorted(tensors)]
        target = self.model_folder(int(round_config["server-round"]))
        sink = make_sink(self.config, target, shards, identity, shares)
        try:
            if self.config.aggregation_mode == "layerwise":
                self.by_slices(clients, shards, shares, sink, round_config)
            else:
                self.all_at_once(clients, shards, sink, round_config)
        finally:
            sink.abandon()
        sink.finish(self.files_beside(clients, round_config))

    def by_slices(
        self,
        clients: dict[int, Client],
        shards: list[Shard],
        shares: dict[int, float],
        sink: Any,
        round_config: ConfigRecord,
    ) -> None:
        if sink.whole:
            log(INFO, "%d of %d shards are whole already", sink.whole, len(shards))
        sizes = [len(clients) * shard.nbytes for shard in shards]
        requests = (
            ((piece, partition), self.request(piece, client.node, round_config))
            for shard in shards[sink.whole :]
            for piece in shard.slices
            for partition, client in clients.items()
        )
        first, last = next(iter(clients)), next(reversed(clients))
        total = RunningSum()
        with (
            one_thread(),
            Progress(sum(sizes), sum(sizes[: sink.whole])) as progress,
            closing(self.exchange(requests)) as replies,
        ):
            for (piece, partition), reply in replies:
                shard = shards[piece.shard]
                if partition == first:
                    total.begin(piece)
                    if piece is shard.slices[0]:
                        sink.begin(shard)
                self.add(total, reply, partition, shares[partition])
                del reply  # before the next is fetched
                progress.add(piece.nbytes)
                if partition == last:
                    for block in total.rounded():
                        sink.write(piece, block)
                    if piece is shard.slices[-1]:
                        sink.end(shard)
            log(INFO, "Aggregated %d models: %s", len(clients), progress)

    def request(self, piece: Slice, node: int, round_config: ConfigRecord) -> Message:
        columns = zip(*piece.spans, strict=True)
        asked = ConfigRecord(dict(zip(Span._fields, map(list, columns), strict=True)))
        return Message(RecordDict({"config": round_config, "slice": asked}), node, "query.slice")

    def add(self, total: RunningSum, reply: Message | None, partition: int, share: float) -> None:
        """Add a reply to the sum.

        Raises:
            ClientFailed: the reply cannot be used; the sum is not valid any more.
        """
        if problem := lacking(reply):
            raise ClientFailed(partition, problem)
        try:
            data = reply.content["data"]["data"].data
        except (AttributeError, KeyError, TypeError):
            raise ClientFailed(partition, "its reply holds no slice") from None
        if len(data) != total.piece.nbytes:
            problem = f"{len(data)} bytes for {total.names}, not {total.piece.nbytes}"
            raise ClientFailed(partition, problem)
        try:
            total.add(data, share)
        except ValueError as error:
            raise ClientFailed(partition, str(error)) from None

    def all_at_once(
        self,
        clients: dict[int, Client],
        shards: list[Shard],
        sink: Any,
        round_config: ConfigRecord,
    ) -> None:
        """Average as Flower's FedAvg does: with all models in memory."""
        content = RecordDict({"config": round_config})
        messages = [Message(content, c.node, "query.model") for c in clients.values()]
        self.clients.send(messages)
        found = self.clients.receive(self.config.round_timeout)
        replies = {self.clients.partition_of(reply): reply for reply in found}
        tensors = [tensor for shard in shards for tensor in shard.tensors]
        carried = {t.name: t.dtype for t in tensors if t.dtype not in FLOATS}
        kept: dict[str, bytes] = {}
        for partition in clients:
            reply = replies.get(partition)
            problem = lacking(reply) or model_problem(reply, tensors)
            if problem:
                raise ClientFailed(partition, problem)
            arrays = reply.content["arrays"]
            for name, dtype in carried.items():
                data = bytes(arrays.pop(name).numpy().data)
                if kept.setdefault(name, data) != data:
                    raise CannotAverage(name, dtype)
            reply.content["arrays"] = to_record(decode(arrays))
            reply.content["metrics"] = clients[partition].ready["metrics"]
        contents = [replies[partition].content for partition in clients]
        mean = aggregate_arrayrecords(contents, self.strategy.weighted_by_key)
        for shard in shards:
            sink.begin(shard)
            averaged = [t for t in shard.tensors if t.dtype in FLOATS]
            values = kept | {t.name: to_bytes(mean[t.name], t.dtype) for t in averaged}
            for piece in shard.slices:
                data = b"".join(values[name][start:stop] for name, start, stop in piece.spans)
                sink.write(piece, memoryview(data))
            sink.end(shard)

    def files_beside(
        self, clients: dict[int, Client], round_config: ConfigRecord
    ) -> dict[str, bytes]:
        """Return the model's config and tokenizer, from the first client that replies."""
        problem = ""
        for partition, client in clients.items():
            message = Message(RecordDict({"config": round_config}), client.node, "query.files")
            [(_, reply)] = self.exchange([(partition, message)])
            if not (problem := lacking(reply)):
                files = reply.content["files"]
                return {Path(name).name: bytes(content) for name, content in files.items()}
        raise ClientFailed(partition, problem)

    # Messages

    def exchange(self, requests: Requests) -> Replies:
        config = self.config
        return exchange(self.clients.grid, requests, config.in_flight, config.round_timeout)

    # Files

    def model_folder(self, server_round: int) -> Path:
        return self.run.folder / f"model_{server_round}"

    def drop_unsaved(self, server_round: int) -> None:
        """Delete a round's model, unless this round is one to keep."""
        if server_round % self.config.save_every_round:
            shutil.rmtree(self.model_folder(server_round), ignore_errors=True)

    def changed_adapter(self, folder: Path) -> ArrayRecord:
        """Return the global adapter, after adding the mean change in the folder."""
        change = safetensors.torch.load_file(folder / "model.safetensors")
        shutil.rmtree(folder)
        arrays = self.run.arrays
        return to_record({name: arrays[name] + v.float().numpy() for name, v in change.items()})


def model_problem(reply: Message, tensors: list[Tensor]) -> str:
    """Return the problem of a whole model, or an empty text."""
    arrays = reply.content["arrays"]
    for name, dtype, shape in tensors:
        if name not in arrays or tuple(arrays[name].shape) != shape:
            return f"{name} is missing, or not of shape {list(shape)}"
        if dtype in FLOATS and not is_finite(arrays[name]):
            return f"{name} holds NaN or infinity"
    return ""
