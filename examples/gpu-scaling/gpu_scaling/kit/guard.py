# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""A guard against absurdly long updates."""

import math
from collections.abc import Collection, Iterable
from statistics import median_low

import numpy as np
from flwr.app import ArrayRecord, Message

from .arrays import view

GROUPS = ("trained", "averaged")  # parameters and buffers, judged apart


class Guard:
    """A search for updates that are many times as long as usual.

    The usual length is this round's median, or a tenth of the longest median so far, or a
    hundredth of the model's own length, whichever is the longest: the median vanishes where most
    clients have nothing to learn. Parameters and buffers are measured apart, counters not at all.
    Buffers hold variances, which are squares, so the ratio is squared for them.

    Args:
        ratio: largest length of an update, as a multiple of the usual one.
        buffers: names of arrays that are not trained.
    """

    def __init__(self, ratio: float, buffers: Collection[str] = ()) -> None:
        self.ratio, self.buffers = ratio, buffers
        self.longest = dict.fromkeys(GROUPS, 0.0)  # median of all rounds; saved with the run

    def problems(self, replies: Iterable[Message], sent: ArrayRecord) -> list[str]:
        """Return a text for each reply of the training phase: its problem, or an empty one."""
        replies = list(replies)
        found = [""] * len(replies)
        ratios = (self.ratio, self.ratio**2)
        for group, names, ratio in zip(GROUPS, self.split(sent), ratios, strict=True):
            lengths = [length(reply.content["arrays"], sent, names) for reply in replies]
            median = median_low(lengths) if lengths else 0.0
            usual = max(median, self.longest[group] / 10, length(sent, None, names) / 100)
            self.longest[group] = max(self.longest[group], median)
            for i, own in enumerate(lengths):
                if own > ratio * usual > 0:
                    found[i] = f"its update is {own / usual:.3g} times as long as the median"
        return found

    def split(self, record: ArrayRecord) -> tuple[list[str], list[str]]:
        """Return the names of the trained arrays, and of the averaged ones."""
        floats = [name for name, array in record.items() if array.dtype.startswith("float")]
        buffers = [name for name in floats if name in self.buffers]
        return [name for name in floats if name not in self.buffers], buffers


def length(arrays: ArrayRecord, origin: ArrayRecord | None, names: Iterable[str]) -> float:
    """Return the Euclidean length of arrays, or of their change; infinities do not count."""
    total = 0.0
    for name in names:
        change = view(arrays[name]).astype(np.float64)
        if origin is not None:
            change -= np.nan_to_num(view(origin[name]), neginf=0.0, posinf=0.0)
        change = change[np.isfinite(change)]
        total += float(np.vdot(change, change))
    return math.sqrt(total)
