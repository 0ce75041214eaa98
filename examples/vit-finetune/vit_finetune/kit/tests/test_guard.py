# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Absurd updates are found, and honest ones that look like them are not."""

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

from ..guard import Guard
from ..replies import to_record

MODEL = {"weight": np.full(100, 0.1, np.float32)}  # of length 1


def found(guard: Guard, *lengths: float, **more: list[np.ndarray]) -> list[bool]:
    """Return the numbers of the updates that the guard takes for absurd."""
    sent = MODEL | {name: np.zeros_like(values[0]) for name, values in more.items()}
    replies = []
    for i, length in enumerate(lengths):
        arrays = {"weight": MODEL["weight"].astype(np.float64) + length / 10}
        arrays |= {name: values[i] for name, values in more.items()}
        content = {"arrays": to_record(arrays), "metrics": MetricRecord({"num-examples": 1})}
        replies.append(Message(RecordDict(content), reply_to=Message(RecordDict(), 1, "train")))
    return [bool(problem) for problem in guard.problems(replies, to_record(sent))]


@pytest.mark.parametrize(
    ("lengths", "absurd"),
    [
        ((0.1, 0.1, 0.12, 100.0), [3]),
        ((0.1, 0.1, 0.12, 11.0), [3]),
        ((0.1, 0.1, 0.12, 9.0), []),
        ((0.0, 0.0, 1e-9, 0.9), []),  # most have nothing left to learn
        ((0.0, 0.0, 0.0, 1e3), [3]),
        ((1e-4, 1e-4, 1e-4, 1e6), [3]),
        ((0.5,), []),
        ((1e-8, 0.5), []),
    ],
)
def test_absurd_is_what_is_many_times_as_long_as_updates_are(lengths, absurd):
    assert found(Guard(100.0), *lengths) == [i in absurd for i in range(len(lengths))]


def test_it_remembers_how_long_updates_were():
    guard = Guard(100.0)
    assert not any(found(guard, 2.0, 2.0, 2.0))
    assert found(guard, 1e-6, 1e-6, 15.0) == [False] * 3
    assert found(guard, 1e-6, 1e-6, 25.0) == [False, False, True]


def test_counters_and_buffers_hide_nothing():
    count = [np.array([60]) for _ in range(4)]
    assert found(Guard(100.0), 0.1, 0.1, 0.1, 100.0, count=count) == [False, False, False, True]
    long = [np.full(10, 1e4) for _ in range(4)]
    guard = Guard(100.0, {"variance"})
    assert found(guard, 0.1, 0.1, 0.1, 100.0, variance=long) == [False, False, False, True]
    long[2] = np.full(10, 1e9)
    assert found(guard, 0.1, 0.1, 0.1, 0.1, variance=long) == [False, False, True, False]
