# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Trained parameters, buffers and counters of a model: a strategy moves only the first.

Momentum or adaptive steps would drive a running variance below 0, and a count of batches has no
mean. So buffers are averaged, and the largest value of each counter is kept.
"""

from collections.abc import Collection, Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from .arrays import view
from .replies import Arrays, metrics, to_numpy, to_record


def whole(arrays: Arrays, buffers: Collection[str]) -> Arrays:
    """Return a model's arrays with floats in 32 bits at least, so that small steps add up.

    Raises:
        ValueError: an array cannot be averaged; the text names it.
    """
    for name, value in arrays.items():
        if value.dtype.kind not in "fiub":
            raise ValueError(f"the model's {name} is {value.dtype}, which has no average")
        if name not in buffers and not np.isfinite(value).all():
            raise ValueError(f"the model's {name} holds NaN or infinity before the first round")
    small = {name for name, v in arrays.items() if v.dtype.kind == "f" and v.itemsize < 4}
    return {name: v.astype(np.float32) if name in small else v for name, v in arrays.items()}


def to_send(arrays: Arrays) -> ArrayRecord:
    """Return arrays for a message: with at least one dimension, which strategies need.

    PyTorch can load an array of one number into an entry without dimensions.
    """
    return to_record({name: np.atleast_1d(value) for name, value in arrays.items()})


def floats(arrays: ArrayRecord) -> ArrayRecord:
    """Return the arrays of floats: all but counters."""
    return ArrayRecord({n: array for n, array in arrays.items() if array.dtype.startswith("float")})


def completed(arrays: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
    """Return arrays, with those of `sent` that are missing, in the order of `sent`."""
    return ArrayRecord({name: arrays.get(name, array) for name, array in sent.items()})


def put_back(messages: Iterable[Message], sent: ArrayRecord) -> list[Message]:
    """Add to messages the arrays of `sent` that are missing; all are in the order of `sent`."""
    messages = list(messages)
    for content in {id(m.content): m.content for m in messages}.values():  # many messages share one
        if "arrays" in content.array_records:
            content["arrays"] = completed(content["arrays"], sent)
    return messages


def moved(arrays: Arrays, new: ArrayRecord, trained: Collection[ArrayRecord]) -> Arrays:
    """Return a model's arrays after a round, in the dtypes and shapes from before.

    Args:
        arrays: the model that was sent.
        new: its floats, as the strategy has aggregated them.
        trained: the clients' arrays; the largest value of each counter is kept.
    """
    values = to_numpy(new)
    for name, value in arrays.items():
        if value.dtype.kind != "f" and trained:
            values[name] = np.max([view(record[name]) for record in trained], axis=0)
    return {
        name: values.get(name, value).astype(value.dtype).reshape(value.shape)
        for name, value in arrays.items()
    }


class OnlyTrained(Strategy):
    """A wrapper that shows a strategy only the trained parameters, and averages the buffers.

    Args:
        strategy: any.
        buffers: names of the arrays that are averaged.
        weight: the metric that weighs clients.
    """

    def __init__(self, strategy: Strategy, buffers: Collection[str], weight: str) -> None:
        self.strategy, self.buffers, self.weight = strategy, buffers, weight

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the strategy configure the round; send the buffers, too."""
        trained, _ = self.split(arrays)
        messages = self.strategy.configure_train(server_round, trained, config, grid)
        return put_back(messages, arrays)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the strategy configure the round; send the buffers, too."""
        trained, _ = self.split(arrays)
        messages = self.strategy.configure_evaluate(server_round, trained, config, grid)
        return put_back(messages, arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the buffers, and have the strategy aggregate the rest."""
        replies, contents = list(replies), []
        for reply in replies:
            reply.content["arrays"], buffers = self.split(reply.content["arrays"])
            contents.append(RecordDict({"arrays": buffers, "metrics": metrics(reply)}))
        average = aggregate_arrayrecords(contents, self.weight)
        arrays, measured = self.strategy.aggregate_train(server_round, replies)
        return None if arrays is None else ArrayRecord(dict(arrays) | dict(average)), measured

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Have the strategy average the metrics."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def split(self, arrays: ArrayRecord) -> tuple[ArrayRecord, ArrayRecord]:
        """Return the trained arrays, and the averaged ones."""
        trained = {name: array for name, array in arrays.items() if name not in self.buffers}
        buffers = {name: array for name, array in arrays.items() if name in self.buffers}
        return ArrayRecord(trained), ArrayRecord(buffers)

    def summary(self) -> None:
        self.strategy.summary()
