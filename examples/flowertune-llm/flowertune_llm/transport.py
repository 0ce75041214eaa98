"""Adapters on the wire: in the chosen dtype, and only their changes on the way back."""

from collections.abc import Iterable
from contextlib import suppress
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from flowertune_llm.client_files import LeftOut, folder_of
from flowertune_llm.config import Config
from flowertune_llm.encoding import LEVELS, decode, encode, rounded, size
from flowertune_llm.kit.clients import Clients, CommonFault
from flowertune_llm.kit.replies import Arrays, to_numpy, to_record
from flowertune_llm.kit.run import Run


class Wire:
    """A Grid that sends adapters with few bits; both ends see them in float32.

    To clients goes the adapter, rounded to the run's dtype; or, in whole numbers of 8 or 4 bits,
    its difference from the first adapter, which clients make from the seed. Back comes the change
    that training made. The adapter that was sent is added to it, so that strategies see adapters.

    Args:
        grid: carries the messages.
        run: has the settings, and keeps what rounding has left out.
        first: the adapter before the first round.
    """

    def __init__(self, grid: Grid, run: Run, first: ArrayRecord) -> None:
        self.grid, self.run, self.dtype = grid, run, run.config.transport_dtype
        self.first = to_numpy(first)
        # For this round, by the content's id: content, encoded content, and adapter.
        self.encodings: dict[int, tuple[RecordDict, RecordDict, Arrays]] = {}
        self.sent: dict[str, Arrays] = {}  # adapters by id of unanswered messages
        self.traffic: dict[str, int] = {}  # bytes of arrays in this round, the most of any client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages, adapters = list(messages), []
        for message in messages:
            adapter = {}
            if has_arrays(message):
                message.content, adapter = self.encoded(message.content)
            adapters.append(adapter)
        ids = list(self.grid.push_messages(messages))
        for message, adapter in zip(messages, adapters, strict=True):
            if adapter:
                self.sent[message.metadata.message_id] = adapter
        return ids

    def encoded(self, content: RecordDict) -> tuple[RecordDict, Arrays]:
        """Return a message's content encoded, and its adapter; many messages share a content."""
        if id(content) not in self.encodings:
            adapter, config = to_numpy(content["arrays"]), dict(content["config"])
            if self.dtype in LEVELS:
                change = {name: value - self.first[name] for name, value in adapter.items()}
                left_out = self.run.memory.get("left out", {})
                arrays, self.run.memory["left out"] = rounded(change, left_out, self.dtype)
                config["run"] = self.run.name
            else:
                arrays = encode(adapter, self.dtype)
            self.traffic["down_bytes"] = size(arrays)
            small = dict(content) | {"arrays": arrays, "config": ConfigRecord(config)}
            self.encodings[id(content)] = content, RecordDict(small), adapter
        return self.encodings[id(content)][1:]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = list(self.grid.pull_messages(message_ids))
        for reply in replies:
            sent = self.sent.pop(reply.metadata.reply_to_message_id, {})
            if has_arrays(reply):
                reply.content["arrays"] = self.decoded(reply.content["arrays"], sent)
        return replies

    def decoded(self, received: ArrayRecord, sent: Arrays) -> ArrayRecord:
        """Return a client's adapter: the one it was sent, and its change."""
        self.traffic["up_bytes"] = max(self.traffic.get("up_bytes", 0), size(received))
        try:
            adapter = decode(received)
        except (RuntimeError, TypeError, ValueError):  # not numbers: the check of replies names it
            adapter = {}
        for name, value in sent.items():
            if name in adapter and adapter[name].shape == value.shape:
                adapter[name] = adapter[name] + value
        return to_record(adapter)

    def remarks(self, server_round: int, clients: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the round's traffic and each client's figures, for results.json."""
        if self.traffic:
            log(INFO, "A client gets %(down_bytes)d bytes and sends %(up_bytes)d", self.traffic)
        traffic = dict(self.traffic)
        for kept in (self.traffic, self.sent, self.encodings):
            kept.clear()
        return {"traffic": traffic, "clients": clients}


def has_arrays(message: Message) -> bool:
    """Tell whether a message or reply carries an adapter for training."""
    kind = message.metadata.message_type.partition(".")[0]
    return (
        kind == MessageType.TRAIN
        and message.has_content()
        and "arrays" in message.content.array_records
    )


def received(config: Config, arrays: ArrayRecord) -> Arrays:
    """Return the adapter from the content that a client has received."""
    from flowertune_llm import models  # imported here: a server that does not test needs no model

    adapter = decode(arrays)
    if config.transport_dtype in LEVELS:
        first = models.first_values(models.load_model(config), config.seed)
        adapter = {name: first[name] + value for name, value in adapter.items()}
    return adapter


def to_send(
    config: Config, change: Arrays, round_config: ConfigRecord, partition: int
) -> ArrayRecord:
    """Return a client's change, encoded."""
    if config.transport_dtype not in LEVELS:
        return encode(change, config.transport_dtype)
    kept = LeftOut(folder_of(config.client_dir, str(round_config["run"]), partition))
    server_round = int(round_config["server-round"])
    arrays, left_out = rounded(change, kept.before(server_round), config.transport_dtype)
    kept.keep(server_round, left_out)
    return arrays


def have_forgotten(clients: Clients, run: Run) -> None:
    """Make connected clients delete their files of a run that has ended."""
    content = RecordDict({"config": ConfigRecord({"run": run.name})})
    there = set(clients.grid.get_node_ids()) & clients.partitions.keys()
    clients.send([Message(content, node, "query.forget") for node in there])
    with suppress(CommonFault):  # the model is safe
        for _ in clients.receive(run.config.round_timeout):
            pass
