"""Adapters on the wire: in the dtype asked for, and only their changes on the way back.

numpy and Flower know no bfloat16: its 16 bits travel as uint16.
"""

from collections.abc import Iterable
from logging import INFO
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from flowertune_llm.kit.replies import Arrays, to_numpy, to_record

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Wire:
    """A Grid on which adapters travel small, and arrive in float32 at both ends.

    What is sent is rounded to `dtype`. What comes back is the change that training made; the
    adapter that was sent is added to it, unrounded, so that strategies see adapters.
    """

    def __init__(self, grid: Grid, dtype: str) -> None:
        self.grid, self.dtype = grid, dtype
        self.sent: dict[str, Arrays] = {}  # adapters by message id, until they are answered
        self.traffic: dict[str, int] = {}  # bytes of arrays, the most of any client in this round

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        keys = [id(message.content) for message in messages]  # many messages share one content
        contents = {id(m.content): m.content for m in messages if has_arrays(m)}
        adapters = {key: to_numpy(content["arrays"]) for key, content in contents.items()}
        encoded = {key: self.encoded(contents[key], adapters[key]) for key in contents}
        for message, key in zip(messages, keys, strict=True):
            message.content = encoded.get(key, message.content)
        ids = list(self.grid.push_messages(messages))
        for message, key in zip(messages, keys, strict=True):
            if key in adapters:
                self.sent[message.metadata.message_id] = adapters[key]
        return ids

    def encoded(self, content: RecordDict, adapter: Arrays) -> RecordDict:
        """Return the content of a message with its adapter as it is to travel."""
        arrays = encode(adapter, self.dtype)
        self.traffic["down_bytes"] = size(arrays)
        return RecordDict(dict(content) | {"arrays": arrays})

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = list(self.grid.pull_messages(message_ids))
        for reply in replies:
            sent = self.sent.pop(reply.metadata.reply_to_message_id, {})
            if has_arrays(reply):
                reply.content["arrays"] = self.decoded(reply.content["arrays"], sent)
        return replies

    def decoded(self, received: ArrayRecord, sent: Arrays) -> ArrayRecord:
        """Return the adapter that a client means by the change that it has sent."""
        self.traffic["up_bytes"] = max(self.traffic.get("up_bytes", 0), size(received))
        try:
            adapter = decode(received)
        except (RuntimeError, TypeError, ValueError):  # no numbers: found and named as unlike ours
            adapter = {}
        for name, value in sent.items():
            if name in adapter and adapter[name].shape == value.shape:
                adapter[name] += value
        return to_record(adapter)

    def remarks(self, server_round: int, clients: list[dict[str, Any]]) -> dict[str, Any]:
        """Have results.json tell the round's traffic, and list each client's figures."""
        if self.traffic:
            log(INFO, "A client gets %(down_bytes)d bytes and sends %(up_bytes)d", self.traffic)
        traffic = dict(self.traffic)
        self.traffic.clear()
        self.sent.clear()
        return {"traffic": traffic, "clients": clients}


def has_arrays(message: Message) -> bool:
    """Tell whether a message, or a reply, is of a training phase and carries an adapter."""
    kind = message.metadata.message_type.partition(".")[0]
    return (
        kind == MessageType.TRAIN
        and message.has_content()
        and "arrays" in message.content.array_records
    )


def encode(arrays: Arrays, dtype: str) -> ArrayRecord:
    """Return float32 arrays in the dtype in which they travel, rounded to the nearest."""
    record = ArrayRecord()
    for name, array in arrays.items():
        tensor = torch.from_numpy(array).to(DTYPES[dtype])
        bits = tensor.view(torch.uint16) if dtype == "bfloat16" else tensor
        record[name] = Array(bits.numpy())
    return record


def decode(record: ArrayRecord) -> Arrays:
    """Return arrays in float32, whichever dtype they travelled in."""
    arrays = {}
    for name, array in record.items():
        tensor = torch.from_numpy(array.numpy())
        tensor = tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
        arrays[name] = tensor.to(torch.float32).numpy()
    return arrays


def size(record: ArrayRecord) -> int:
    """Return the bytes of all arrays, without Flower's framing."""
    return sum(len(array.data) for array in record.values())
