# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Which examples a model saw in a run, and which functions of the app returned arrays."""

import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SHAPES = 512  # inputs of a client whose shape is kept
POINTS = np.linspace(0, 1, 33)


@contextmanager
def inputs_noted(wanted: bool, record: Any, now: Any) -> Iterator[None]:
    """Note what the outermost modules get: in training with gradients, or in testing.

    Args:
        wanted: else nothing is done.
        record: has `seen`, `shapes` and `entries`.
        now: returns whose turn it is: a partition, -1 for the server; the round; what is asked.
    """
    if not wanted:
        yield
        return
    original, depth = nn.Module.__call__, [0]

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        outermost = not depth[0] and bool(given)
        if outermost:
            note(module, given, record, *now())
        depth[0] += outermost
        try:
            return original(module, *args, **kwargs)
        finally:
            depth[0] -= outermost

    nn.Module.__call__ = call
    try:
        yield
    finally:
        nn.Module.__call__ = original


def note(
    module: nn.Module,
    given: list[Tensor],
    record: Any,
    partition: int,
    server_round: int,
    kind: str,
) -> None:
    batch = given[0]
    if batch.ndim < 1 or not len(batch) or batch[0].numel() < 2:
        return
    use = "train" if module.training and torch.is_grad_enabled() else kind
    rows = batch.detach().cpu().flatten(1).contiguous()
    rows = (rows.float() if rows.is_floating_point() else rows).numpy()
    filled = [row[mask] for row, mask in zip(rows, masks(batch, given), strict=True)]
    digests = record.seen.setdefault((partition, use, server_round), set())
    sort = rows.dtype.kind.encode()  # "f" for floats
    digests.update(sort + hashlib.blake2b(row.tobytes(), digest_size=12).digest() for row in filled)
    shapes = record.shapes.setdefault(partition, [])
    if len(shapes) < SHAPES:
        shapes.extend(filter(lambda s: s is not None, map(shape_of, rows[: SHAPES - len(shapes)])))
    if use == "train" and any(True for _ in module.parameters()):
        trained = dict(module.named_parameters(remove_duplicate=False))
        record.entries |= {
            name: ("trained" if name in trained else "buffer", str(v.dtype), tuple(v.shape))
            for name, v in module.state_dict().items()
            if isinstance(v, Tensor)
        }


def masks(batch: Tensor, given: list[Tensor]) -> list[Any]:
    """Return, for each row, which of its numbers count: what an attention mask says, or all."""
    for other in given[1:]:
        if other.shape == batch.shape and not other.is_floating_point() and other.max() <= 1:
            return list(other.detach().cpu().flatten(1).bool().numpy())
    return [slice(None)] * len(batch)


def shape_of(values: np.ndarray) -> np.ndarray | None:
    """Return what stays of numbers that are scaled, shifted and put into another order."""
    values = values.astype(np.float64).ravel()
    if len(values) < 16 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return None
    if len(np.unique(values)) < 4:
        return None
    return np.quantile((values - values.min()) / np.ptp(values), POINTS, method="nearest")


@contextmanager
def calls_noted(wanted: bool, record: Any, folder: Path) -> Iterator[None]:
    """Note which functions of the files in a folder return arrays, by file and name."""
    if not wanted:
        yield
        return
    root = f"{folder}/"

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        if event == "call":
            if not frame.f_code.co_filename.startswith(root):
                return None
            frame.f_trace_lines = False
        elif event == "return" and is_array(value):
            code = frame.f_code
            record.calls.add((code.co_filename.removeprefix(root), code.co_qualname))
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


def is_array(value: Any) -> bool:
    """Tell whether a value is numbers: an array, a tensor, an image, or a tuple with one."""
    if isinstance(value, tuple):
        return any(map(is_array, value))
    return isinstance(value, np.ndarray | Tensor) or hasattr(value, "getbands")
