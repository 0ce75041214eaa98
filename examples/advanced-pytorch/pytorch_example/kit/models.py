# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""The arrays of a PyTorch model in messages. Entries that cannot be sent are refused by name."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from . import replies
from .replies import Arrays, to_numpy


def to_record(model: nn.Module) -> ArrayRecord:
    """Return a model's arrays for a message; see `to_arrays`."""
    return replies.to_record(to_arrays(model))


def to_arrays(model: nn.Module) -> Arrays:
    """Return the entries of `model.state_dict()`: floats in 32 bits at least, tied weights once.

    Raises:
        ValueError: an entry cannot be sent; the text names it.
    """
    first = owners(model)
    return {name: to_travel(name, v) for name, v in entries_of(model) if first[name] == name}


def load(model: nn.Module, arrays: ArrayRecord | Arrays) -> None:
    """Copy arrays, from a message for instance, into the model, in the model's own dtypes.

    Raises:
        RuntimeError: names or shapes differ; PyTorch's text lists them.
    """
    own = to_numpy(arrays) if isinstance(arrays, ArrayRecord) else arrays
    received = {name: torch.from_numpy(array) for name, array in own.items()}
    tied = {name: received[first] for name, first in owners(model).items() if first in received}
    model.load_state_dict(received | tied)


def buffers(model: nn.Module) -> set[str]:
    """Return the names of the entries that are not trained, running statistics for instance."""
    return {name for name, value in entries_of(model) if not isinstance(value, nn.Parameter)}


def entries_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from model.state_dict(keep_vars=True).items()


def owners(model: nn.Module) -> dict[str, str]:
    """Return a name for each entry: that of the first entry with the same tensor, or its own."""
    names: dict[Any, str] = {}
    return {name: names.setdefault(place(value), name) for name, value in entries_of(model)}


def place(value: Any) -> Any:
    """Return a key that is equal for entries with the same numbers in memory."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided
    if not plain or nn.parameter.is_lazy(value) or not value.numel() or value.is_meta:
        return id(value)
    return value.data_ptr(), value.shape, value.stride(), value.dtype


def to_travel(name: str, value: Any) -> np.ndarray:
    """Return an entry as a NumPy array.

    Raises:
        ValueError: it is not a tensor, or of a kind that cannot be averaged.
    """
    problem = ""
    if not isinstance(value, Tensor):
        problem = f"is a {type(value).__name__}, not a tensor"
    elif nn.parameter.is_lazy(value):
        problem = "has no shape yet; run the model once, on a batch of the right shape"
    elif value.is_meta or value.layout != torch.strided or value.is_quantized:
        problem = "is not an ordinary tensor (meta, sparse or quantized)"
    elif value.is_complex():
        problem = f"is {value.dtype}; keep real and imaginary parts apart"
    if problem:
        raise ValueError(f"the model's {name} {problem}: it cannot be sent")
    small = value.is_floating_point() and value.element_size() < 4
    return value.detach().to("cpu", torch.float32 if small else None).contiguous().numpy()
