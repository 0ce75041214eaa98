"""The weighted sum of replies, in float32, in the same memory for all slices."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from flwr.app import Array

from flowertune_llm.layerwise.shards import FLOATS, Slice

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCK = 2**18  # elements; in float32 they fit in the cache while they are widened and added
warnings.filterwarnings("ignore", message="The given buffer is not writable")  # it is only read


@contextmanager
def one_thread() -> Iterator[None]:
    """Make PyTorch compute in one thread: memory limits it, and clients need the other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class CannotAverage(RuntimeError):
    """Tensors without a mean that differ between clients: the model's fault, not a client's."""

    def __init__(self, names: str, dtype: str) -> None:
        super().__init__(
            f"{names}, {dtype}, differs between the clients, and only {', '.join(FLOATS)} can be "
            "averaged: give them a model without counters of their own and without quantised "
            "weights"
        )


class RunningSum:
    """The weighted sum of one slice after another."""

    def __init__(self) -> None:
        self.widened = torch.empty(BLOCK)
        self.sums = torch.empty(0)

    def begin(self, piece: Slice) -> None:
        self.piece, self.kept = piece, b""
        if piece.dtype in FLOATS:
            count = piece.nbytes // DTYPES[piece.dtype].itemsize
            if self.sums.numel() < count:
                self.sums = torch.empty(count)
            self.total = self.sums[:count].zero_()

    def add(self, data: bytes | memoryview, share: float) -> None:
        """Add one client's bytes.

        Raises:
            ValueError: they hold NaN or infinity.
            CannotAverage: they are not floats, and differ from the other clients'.
        """
        if self.piece.dtype not in FLOATS:
            if self.kept and self.kept != data:
                raise CannotAverage(self.names, self.piece.dtype)
            self.kept = bytes(data)
            return
        values = torch.frombuffer(data, dtype=DTYPES[self.piece.dtype])
        checked = torch.zeros(())
        for start in range(0, len(values), BLOCK):
            total = self.total[start : start + BLOCK]
            widened = self.widened[: len(total)].copy_(values[start : start + BLOCK])
            total.add_(widened, alpha=share)
            checked += widened.sum()
        if not checked.isfinite() and not values.isfinite().all():
            raise ValueError(f"{self.names} holds NaN or infinity")

    def rounded(self) -> Iterator[memoryview]:
        """Yield the finished slice as bytes of its dtype, block after block."""
        if self.piece.dtype not in FLOATS:
            yield memoryview(self.kept)
            return
        for start in range(0, len(self.total), BLOCK):
            block = self.total[start : start + BLOCK].to(DTYPES[self.piece.dtype])
            yield block.view(torch.uint8).numpy().data

    @property
    def names(self) -> str:
        first, last = self.piece.spans[0].name, self.piece.spans[-1].name
        return first if first == last else f"{first} to {last}"


def to_bytes(array: Array, dtype: str) -> memoryview:
    """Return float32 values as bytes of a dtype, with safetensors' name for it."""
    values = array.numpy()
    tensor = torch.from_numpy(values.astype(np.float32, copy=False)).to(DTYPES[dtype])
    return tensor.flatten().view(torch.uint8).numpy().data


def is_finite(array: Array) -> bool:
    """Tell whether an array from a message is free of NaN and infinity."""
    tensor = torch.from_numpy(array.numpy())
    tensor = tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
    return bool(tensor.isfinite().all())
