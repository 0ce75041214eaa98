# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Replies of clients: their arrays and metrics, and the problems that keep some out."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from .arrays import view
from .guard import Guard

Arrays = dict[str, np.ndarray]


def to_numpy(record: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def to_record(arrays: Arrays) -> ArrayRecord:
    # NumPy turns arrays without dimensions into scalars when it computes.
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def with_dimensions(reply: Message) -> None:
    """Give a dimension to arrays without any: those of the model that was sent have one."""
    for record in reply.content.array_records.values() if reply.has_content() else ():
        for name, array in record.items():
            if not array.shape:
                record[name] = Array(np.atleast_1d(array.numpy()))


def problems(
    replies: Iterable[Message],
    weight: str,
    sent: ArrayRecord | None = None,
    guard: Guard | None = None,
) -> list[str]:
    """Return a text for each reply: the reason to leave it out, or an empty one.

    Args:
        replies: replies of one phase.
        weight: the metric that weighs a client's contribution; must be above 0.
        sent: the global model, whose names and shapes training replies must have; None after
            evaluation.
        guard: finds absurd updates.
    """
    replies = list(replies)
    names = Counter(frozenset(metrics(r)) for r in replies if not r.has_error())
    usual = names.most_common(1)[0][0] if names else frozenset()
    found = [problem(reply, weight, sent, usual) for reply in replies]
    if sent is None or guard is None:
        return found
    sound = [i for i, text in enumerate(found) if not text]
    absurd = guard.problems([replies[i] for i in sound], sent)
    for i, text in zip(sound, absurd, strict=True):
        found[i] = text
    return found


def problem(reply: Message, weight: str, sent: ArrayRecord | None, usual: frozenset[str]) -> str:
    if reply.has_error():
        return cause(reply)
    values = metrics(reply)
    if frozenset(values) != usual:
        return f"its metrics are {sorted(values)}, the others' {sorted(usual)}"
    for name, value in values.items():
        if not np.all(np.isfinite(value)):
            return f"{name} = {value}"
    if not isinstance(values.get(weight), int | float) or values[weight] <= 0:
        return f"{weight} = {values.get(weight)}"
    if sent is None:
        return ""
    try:
        return problem_with_arrays(reply, sent)
    except (TypeError, ValueError) as error:  # an array that holds no numbers
        return f"its arrays cannot be read ({one_line(str(error))})"


def problem_with_arrays(reply: Message, sent: ArrayRecord) -> str:
    received = reply.content.get("arrays")
    if not isinstance(received, ArrayRecord) or received.keys() != sent.keys():
        return "its arrays are not named like the global model's"
    for record in reply.content.array_records.values():
        for name, array in record.items():
            value, origin = view(array), None
            if record is received:
                origin = view(sent[name])
                if value.shape != origin.shape:
                    return f"{name} has shape {array.shape}, not {sent[name].shape}"
                if (value.dtype.kind == "f") != (origin.dtype.kind == "f"):
                    return f"{name} is {array.dtype}, not {sent[name].dtype}"
            finite = np.isfinite(value)
            # A model may have infinities, in a mask for instance: these may come back.
            if not finite.all() and (origin is None or not same(value, origin, ~finite)):
                return f"{name} holds NaN or infinity"
    return ""


def same(value: np.ndarray, origin: np.ndarray, where: np.ndarray) -> bool:
    return np.array_equal(value[where], origin[where], equal_nan=True)


def metrics(reply: Message) -> MetricRecord:
    """Return the reply's one metric record, or an empty one if there is not exactly one."""
    records = list(reply.content.metric_records.values())
    return records[0] if len(records) == 1 else MetricRecord()


def cause(reply: Message) -> str:
    """Return a client's error in one line: type and text, without Ray's traceback."""
    reason = reply.error.reason
    if found := re.fullmatch(r"<class '(.*?)'>:<'(.*)'>", reason, re.DOTALL):
        kind, text = found.groups()
        inner = text.rpartition("Exception ClientAppException occurred. Message: ")[2].strip()
        first = inner.partition("\n")[0]
        if inner != text and (named := re.search(rf"([\w.]+): {re.escape(first)}", text)):
            kind = named[1]
        reason = f"{kind}: {inner}"
    return one_line(reason)


def one_line(text: str) -> str:
    return " ".join(text.split())
