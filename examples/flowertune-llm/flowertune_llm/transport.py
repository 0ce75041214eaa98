"""Adapters on the wire. numpy and Flower know no bfloat16: its 16 bits travel as uint16."""

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from flowertune_llm.checkpoint import Arrays

SAFETENSORS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def to_bytes(array: Array, dtype: str) -> memoryview:
    """Return float32 values as bytes of a dtype named as safetensors names it."""
    values = array.numpy()
    if dtype not in SAFETENSORS:
        return memoryview(values.tobytes())
    tensor = torch.from_numpy(values.astype(np.float32, copy=False)).to(SAFETENSORS[dtype])
    return tensor.flatten().view(torch.uint8).numpy().data


def is_finite(array: Array) -> bool:
    """Tell whether there is neither NaN nor infinity in an array as it travelled."""
    tensor = torch.from_numpy(array.numpy())
    tensor = tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
    return bool(tensor.isfinite().all())


def size(record: ArrayRecord) -> int:
    """Return the bytes of all arrays, without Flower's framing."""
    return sum(len(array.data) for array in record.values())
