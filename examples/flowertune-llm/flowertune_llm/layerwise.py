"""Aggregation a slice at a time: neither side ever holds a model."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from flowertune_llm import profiling, transport
from flowertune_llm.checkpoint import RunState
from flowertune_llm.config import Config
from flowertune_llm.exchange import Replies, Requests, exchange, lacking
from flowertune_llm.progress import Progress
from flowertune_llm.replies import collect, problems, to_record
from flowertune_llm.rounds import TooFewReplies
from flowertune_llm.serving import raw_record
from flowertune_llm.shards import FLOATS, Part, Shard, Slice, Tensor, plan, tensors_from
from flowertune_llm.strategy import AdapterFedAvg
from flowertune_llm.summing import RunningSum, one_thread


class ClientFailed(RuntimeError):
    """A client sent nothing, or nothing that can be used."""

    def __init__(self, partition: int, problem: str) -> None:
        super().__init__(f"partition {partition}: {problem}")
        self.partition, self.problem = partition, problem


class Client(NamedTuple):
    """One that takes part in a round."""

    node: int
    ready: RecordDict  # what it said when it was: `manifest` and `metrics`


class LayerwiseFedAvg(AdapterFedAvg):
    """FedAvg over whole models, or over adapters too long for one message.

    In each round clients first get ready: they train, or have nothing to do, and say which tensors
    they have. The server then asks all of them for slice after slice, adds the replies up in
    float32, and writes each finished slice to its place in `model_<round>`. A client that fails on
    the way is left out of every slice, or ends the run: `aggregation.on-failure`.

    Args:
        config, state, on_round_end: as for `AdapterFedAvg`.
        folder: of the run.
        make_sink: makes what takes a round's slices, from the folder to be, its shards, what
            the values come from, and each client's share.
    """

    def __init__(
        self,
        config: Config,
        state: RunState,
        on_round_end: Callable[[], None],
        folder: Path,
        make_sink: Callable[[Path, list[Shard], Any, dict[int, float]], Any],
    ) -> None:
        super().__init__(config, state, on_round_end)
        self.folder, self.make_sink = folder, make_sink
        unique = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
        self.token = "-".join([*folder.parts[-2:], unique])  # the same when resumed

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds as `AdapterFedAvg` does; afterwards clients keep nothing of them."""
        result = super().start(grid, *args, **kwargs)
        if self.config.trains:
            self.forget(grid)
        return result

    def train_round(
        self, server_round: int, grid: Grid, config: ConfigRecord, timeout: float
    ) -> tuple[ArrayRecord, MetricRecord]:
        config["run"], config["server-round"] = self.token, server_round
        config["learning-rate"] = self.config.learning_rate(server_round)
        nodes = self.sampled_nodes(grid, server_round, MessageType.TRAIN)
        self.traffic["down_bytes"] = 0
        if self.config.whole_model and server_round > 1:
            nodes = self.distribute(grid, nodes, config, self.model_folder(server_round - 1))
        clients, tensors = self.make_ready(grid, nodes, config, timeout)
        self.traffic["up_bytes"] = sum(tensor.nbytes for tensor in tensors)
        while True:
            try:
                self.gather(grid, clients, tensors, config)
                break
            except ClientFailed as failed:
                if self.config.on_failure == "stop":
                    raise
                log(WARNING, "Partition %d fails: %s", failed.partition, failed.problem)
                del clients[failed.partition]
                self.enough(clients)
                log(INFO, "Starting over with %d clients", len(clients))
        for partition, client in clients.items():
            self.note(partition, "training", client.ready)
        contents = [client.ready for client in clients.values()]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        if self.config.whole_model:
            self.drop_unsaved(server_round - 1)
            return ArrayRecord(), metrics
        return self.changed_adapter(self.model_folder(server_round)), metrics

    # Getting ready

    def distribute(
        self, grid: Grid, nodes: dict[int, int], config: ConfigRecord, folder: Path
    ) -> dict[int, int]:
        """Send the files of the global model to all, and return the nodes that have them."""
        files = sorted(path for path in folder.iterdir() if path.is_file())
        self.traffic["down_bytes"] = sum(path.stat().st_size for path in files)
        log(INFO, "Sending %s to %d clients", folder.name, len(nodes))

        def pieces() -> Iterator[RecordDict]:
            yield RecordDict({"piece": ConfigRecord({"step": "begin"})})
            for path in files:
                with path.open("rb") as file:
                    offset = 0
                    while data := file.read(self.slice_bytes):
                        place = ConfigRecord({"step": "write", "file": path.name, "offset": offset})
                        yield RecordDict({"piece": place, "data": raw_record(data)})
                        offset += len(data)
            yield RecordDict({"piece": ConfigRecord({"step": "end"})})

        have = dict(nodes)
        for content in pieces():
            content["config"] = config
            requests = ((p, Message(content, node, "query.receive")) for p, node in have.items())
            for partition, reply in self.exchange(grid, list(requests)):
                if problem := lacking(reply):
                    log(WARNING, "Partition %d left out of training: %s", partition, problem)
                    del have[partition]
            self.enough(have)
        return have

    def make_ready(
        self, grid: Grid, nodes: dict[int, int], config: ConfigRecord, timeout: float
    ) -> tuple[dict[int, Client], list[Tensor]]:
        """Have clients train, where they do, and return those that can be averaged.

        Raises:
            TooFewReplies: fewer than `strategy.min-replies` can.
        """
        content = {"config": config}
        if self.state.arrays:
            sent = transport.encode(self.state.arrays, self.config.transport_dtype)
            self.traffic["down_bytes"] = transport.size(sent)
            content["arrays"] = sent
        messages = [Message(RecordDict(content), n, "train.make_ready") for n in nodes.values()]
        replies = collect(grid, self.send(grid, messages), timeout)
        replies.sort(key=self.partition_of)
        left_out = dict.fromkeys(nodes, "no reply within strategy.round-timeout")
        found = problems(replies, self.weighted_by_key, None, 0)
        left_out |= dict(zip(map(self.partition_of, replies), found, strict=True))
        ready = {
            self.partition_of(reply): reply.content
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
        self.enough(clients)
        return clients, kinds[next(iter(clients))]

    def enough(self, left: dict[int, Any]) -> None:
        if len(left) < self.config.min_replies:
            raise TooFewReplies(
                f"{len(left)} clients are left, strategy.min-replies = {self.config.min_replies}; "
                "the log names what was left out"
            )

    # Aggregating

    @profiling.task("aggregate")
    def gather(
        self, grid: Grid, clients: dict[int, Client], tensors: list[Tensor], config: ConfigRecord
    ) -> None:
        """Write the mean of the clients' models.

        Raises:
            ClientFailed: nothing of this client, nor of the others, has become a model.
        """
        metrics = {partition: client.ready["metrics"] for partition, client in clients.items()}
        examples = {p: float(values[self.weighted_by_key]) for p, values in metrics.items()}
        total = sum(examples.values())
        shares = {partition: count / total for partition, count in examples.items()}
        shards = plan(tensors, self.config.shard_megabytes * 2**20, self.slice_bytes)
        served = {p: client.ready["manifest"]["fingerprint"] for p, client in clients.items()}
        identity = {"shares": sorted(shares.items()), "served": sorted(served.items())}
        identity["plan"] = [self.slice_bytes, self.config.shard_megabytes, sorted(tensors)]
        target = self.model_folder(int(config["server-round"]))
        sink = self.make_sink(target, shards, identity, shares)
        try:
            if self.config.aggregation_mode == "layerwise":
                self.by_slices(grid, clients, shards, shares, sink, config)
            else:
                self.all_at_once(grid, clients, shards, sink, config)
        finally:
            sink.abandon()
        sink.finish(self.files_beside(grid, clients, config))

    def by_slices(
        self,
        grid: Grid,
        clients: dict[int, Client],
        shards: list[Shard],
        shares: dict[int, float],
        sink: Any,
        config: ConfigRecord,
    ) -> None:
        if sink.whole:
            log(INFO, "%d of %d shards are whole already", sink.whole, len(shards))
        sizes = [len(clients) * shard.nbytes for shard in shards]
        requests = (
            ((piece, partition), self.request(piece, client.node, config))
            for shard in shards[sink.whole :]
            for piece in shard.slices
            for partition, client in clients.items()
        )
        first, last = next(iter(clients)), next(reversed(clients))
        total = RunningSum()
        with (
            one_thread(),
            Progress(sum(sizes), sum(sizes[: sink.whole])) as progress,
            closing(self.exchange(grid, requests)) as replies,
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

    def request(self, piece: Slice, node: int, config: ConfigRecord) -> Message:
        columns = zip(*piece.parts, strict=True)
        asked = ConfigRecord(dict(zip(Part._fields, map(list, columns), strict=True)))
        return Message(RecordDict({"config": config, "slice": asked}), node, "query.slice")

    def add(self, total: RunningSum, reply: Message | None, partition: int, share: float) -> None:
        """Add a reply to the sum.

        Raises:
            ClientFailed: it cannot be used; the sum is spoilt.
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
        grid: Grid,
        clients: dict[int, Client],
        shards: list[Shard],
        sink: Any,
        config: ConfigRecord,
    ) -> None:
        """Average as Flower's FedAvg does: all models in memory together."""
        content = RecordDict({"config": config})
        messages = [Message(content, c.node, "query.model") for c in clients.values()]
        replies = {
            self.partition_of(reply): reply
            for reply in collect(grid, self.send(grid, messages), self.config.round_timeout)
        }
        tensors = [tensor for shard in shards for tensor in shard.tensors]
        for partition in clients:
            reply = replies.get(partition)
            problem = lacking(reply) or model_problem(reply, tensors)
            if problem:
                raise ClientFailed(partition, problem)
            reply.content["arrays"] = to_record(transport.decode(reply.content["arrays"]))
            reply.content["metrics"] = clients[partition].ready["metrics"]
        ordered = [replies[partition] for partition in clients]
        mean, _ = FedAvg.aggregate_train(self, int(config["server-round"]), ordered)
        for shard in shards:
            sink.begin(shard)
            values = {t.name: transport.to_bytes(mean[t.name], t.dtype) for t in shard.tensors}
            for piece in shard.slices:
                data = b"".join(values[name][start:stop] for name, start, stop in piece.parts)
                sink.write(piece, memoryview(data))
            sink.end(shard)

    def files_beside(
        self, grid: Grid, clients: dict[int, Client], config: ConfigRecord
    ) -> dict[str, bytes]:
        """Return the model's config and tokenizer, from the first client that gives them."""
        problem = ""
        for partition, client in clients.items():
            message = Message(RecordDict({"config": config}), client.node, "query.files")
            [(_, reply)] = self.exchange(grid, [(partition, message)])
            if not (problem := lacking(reply)):
                files = reply.content["files"]
                return {Path(name).name: bytes(content) for name, content in files.items()}
        raise ClientFailed(partition, problem)

    # Messages

    def exchange(self, grid: Grid, requests: Requests) -> Replies:
        return exchange(grid, requests, self.config.in_flight, self.config.round_timeout)

    def forget(self, grid: Grid) -> None:
        """Have the clients that are still there delete what they keep for this run."""
        config = ConfigRecord({"run": self.token})
        content = RecordDict({"config": config})
        there = set(grid.get_node_ids()) & self.partitions.keys()
        messages = [(None, Message(content, node, "query.forget")) for node in there]
        for _ in self.exchange(grid, messages):
            pass

    # Files

    @property
    def slice_bytes(self) -> int:
        return self.config.slice_megabytes * 2**20

    def model_folder(self, server_round: int) -> Path:
        return self.folder / f"model_{server_round}"

    def drop_unsaved(self, server_round: int) -> None:
        """Delete the model of a round that is not to be kept."""
        if server_round % self.config.save_every_round:
            shutil.rmtree(self.model_folder(server_round), ignore_errors=True)

    def changed_adapter(self, folder: Path) -> ArrayRecord:
        """Return the global adapter with the mean change added that is in the folder."""
        change = safetensors.torch.load_file(folder / "model.safetensors")
        shutil.rmtree(folder)
        arrays = self.state.arrays
        return to_record({name: arrays[name] + v.float().numpy() for name, v in change.items()})


def model_problem(reply: Message, tensors: list[Tensor]) -> str:
    """Say what is wrong with a whole model, or nothing."""
    arrays = reply.content["arrays"]
    for name, dtype, shape in tensors:
        if name not in arrays or tuple(arrays[name].shape) != shape:
            return f"{name} is missing, or not of shape {list(shape)}"
        if dtype in FLOATS and not transport.is_finite(arrays[name]):
            return f"{name} holds NaN or infinity"
    return ""
