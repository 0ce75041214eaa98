"""Encoding of arrays for messages: floats of 32 or 16 bits, or whole numbers of 8 or 4 and scales.

numpy and Flower do not know bfloat16: its 16 bits are sent as uint16.
"""

import math

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from flowertune_llm.kit.replies import Arrays

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEVELS = {"int8": 127, "int4": 7}  # largest whole number, of either sign
BLOCK = 64  # values that share a scale of 16 bits: 8.25 and 4.25 bits for each value


def encode(arrays: Arrays, dtype: str) -> ArrayRecord:
    """Return float32 arrays in the dtype of messages, rounded to the nearest."""
    one = blocks if dtype in LEVELS else floats
    # NumPy turns arrays without dimensions into scalars when it computes.
    return ArrayRecord({name: one(np.asarray(array), dtype) for name, array in arrays.items()})


def decode(record: ArrayRecord) -> Arrays:
    """Return encoded arrays in float32.

    Raises:
        TypeError, ValueError, RuntimeError: they do not hold numbers, or too few.
    """
    arrays = {}
    for name, array in record.items():
        whole_numbers = array.dtype in LEVELS and array.stype == "blocks"
        arrays[name] = (from_blocks if whole_numbers else from_floats)(array)
    return arrays


def floats(array: np.ndarray, dtype: str) -> Array:
    tensor = torch.from_numpy(array).to(FLOATS[dtype])
    bits = tensor.view(torch.uint16) if dtype == "bfloat16" else tensor
    return Array(bits.numpy())


def from_floats(array: Array) -> np.ndarray:
    tensor = torch.from_numpy(array.numpy())
    tensor = tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
    return tensor.to(torch.float32).numpy()


def blocks(array: np.ndarray, dtype: str) -> Array:
    """Return an array as bytes: the scales of all blocks, then whole numbers to be scaled.

    A scale is a block's largest value divided by the largest whole number, rounded up to bfloat16.
    Two numbers of 4 bits share a byte, with 8 added to each.
    """
    values = np.pad(array.ravel(), (0, -array.size % BLOCK)).reshape(-1, BLOCK)
    largest = np.abs(values).max(axis=1, initial=0) / np.float32(LEVELS[dtype])
    scales = ((largest.view(np.uint32) + 0xFFFF) >> 16).astype("<u2")
    width = from_bfloat16(scales)[:, None]
    usable = np.isfinite(width) & (width > 0)  # else 0, which times NaN is NaN
    numbers = np.divide(values, width, out=np.zeros_like(values), where=usable)
    numbers = np.rint(numbers).astype(np.int8)
    if dtype == "int4":
        low, high = (numbers.reshape(-1, 2) + 8).astype(np.uint8).T
        numbers = low | high << 4
    return Array(dtype, array.shape, "blocks", scales.tobytes() + numbers.tobytes())


def from_blocks(array: Array) -> np.ndarray:
    size = math.prod(array.shape)
    count = -(-size // BLOCK)
    scales = np.frombuffer(array.data, "<u2", count)
    numbers = np.frombuffer(array.data, np.uint8, offset=scales.nbytes)
    if array.dtype == "int4":
        numbers = np.stack([numbers & 15, numbers >> 4], axis=-1).astype(np.int8) - 8
    with np.errstate(invalid="ignore"):  # infinity times 0
        values = numbers.view(np.int8).reshape(count, BLOCK) * from_bfloat16(scales)[:, None]
    return values.ravel()[:size].reshape(array.shape)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(arrays: Arrays, left_out: Arrays, dtype: str) -> tuple[ArrayRecord, Arrays]:
    """Encode arrays, with the part added that rounding has left out before.

    So nothing is lost for good, even with few bits (error feedback, Seide et al. 2014).

    Source: https://www.isca-archive.org/interspeech_2014/seide14_interspeech.html

    Returns:
        the encoded arrays, and the part that is left out of them.
    """
    wanted = {name: array + left_out.get(name, 0) for name, array in arrays.items()}
    record = encode(wanted, dtype)
    return record, {name: np.asarray(wanted[name] - v) for name, v in decode(record).items()}


def size(record: ArrayRecord) -> int:
    """Return the size of all arrays in bytes, without Flower's framing."""
    return sum(len(array.data) for array in record.values())
