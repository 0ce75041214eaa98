# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Replies of clients: which of them can be aggregated, and why others cannot."""

import math
from collections import Counter
from collections.abc import Iterable
from statistics import median_low

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord

Arrays = dict[str, np.ndarray]


def to_numpy(record: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def to_record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def problems(
    replies: Iterable[Message], weight: str, sent: ArrayRecord | None, max_update_ratio: float
) -> list[str]:
    """Return, for each reply, why it cannot be aggregated, or an empty text.

    Args:
        replies: replies of one phase.
        weight: the metric that weighs a client's contribution, to be above 0.
        sent: the global model that training replies must resemble; None after evaluation.
        max_update_ratio: how many times as long as the median an update may be.
    """
    replies = list(replies)
    names = Counter(frozenset(metrics(r)) for r in replies if not r.has_error())
    usual = names.most_common(1)[0][0] if names else frozenset()
    found = [problem(reply, weight, sent, usual) for reply in replies]
    if sent is None:
        return found
    lengths = {i: update_length(replies[i], sent) for i, text in enumerate(found) if not text}
    median = median_low(lengths.values()) if lengths else 0.0
    for i, length in lengths.items():
        if length > max_update_ratio * median > 0:
            found[i] = f"its update is {length / median:.3g} times as long as the median"
    return found


def update_length(reply: Message, sent: ArrayRecord) -> float:
    """Return the Euclidean length of what training changed, over all arrays."""
    received = reply.content["arrays"]
    changes = (received[name].numpy() - sent[name].numpy().astype(np.float64) for name in sent)
    return math.sqrt(sum(float(np.vdot(change, change)) for change in changes))


def problem(reply: Message, weight: str, sent: ArrayRecord | None, usual: frozenset[str]) -> str:
    if reply.has_error():
        return one_line(reply.error.reason)
    values = metrics(reply)
    if frozenset(values) != usual:
        return f"its metrics are {sorted(values)}, the others' {sorted(usual)}"
    for name, value in values.items():
        if not np.all(np.isfinite(value)):
            return f"{name} = {value}"
    if not isinstance(values.get(weight), int | float) or values[weight] <= 0:
        return f"{weight} = {values.get(weight)}"
    return "" if sent is None else problem_with_arrays(reply, sent)


def problem_with_arrays(reply: Message, sent: ArrayRecord) -> str:
    received = reply.content.get("arrays")
    if not isinstance(received, ArrayRecord) or received.keys() != sent.keys():
        return "its arrays are not named like the global model's"
    for record in reply.content.array_records.values():
        for name, array in record.items():
            if record is received and tuple(array.shape) != tuple(sent[name].shape):
                return f"{name} has shape {array.shape}, not {sent[name].shape}"
            if not np.isfinite(array.numpy()).all():
                return f"{name} holds NaN or infinity"
    return ""


def metrics(reply: Message) -> MetricRecord:
    """Return the reply's one metric record, or an empty one if there is not exactly one."""
    records = list(reply.content.metric_records.values())
    return records[0] if len(records) == 1 else MetricRecord()


def one_line(text: str) -> str:
    return " ".join(text.split())
