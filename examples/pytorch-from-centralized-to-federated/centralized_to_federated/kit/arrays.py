# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Arrays of messages, read where they lie.

`Array.numpy` parses NumPy's header by Python's parser, and copies, which takes 15 to 30 times
as long. The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
from functools import lru_cache
from io import BytesIO

import numpy as np
from flwr.app import Array

READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def view(array: Array) -> np.ndarray:
    """Return an array that can be read only.

    Raises:
        TypeError, ValueError: it is no array of NumPy's format, or not a whole one.
    """
    if array.stype != "numpy.ndarray":
        raise TypeError(f"serialized as {array.stype}, not as numpy.ndarray")
    data = array.data
    start = 10 if data[6:7] == b"\x01" else 12  # behind the header's own length
    end = start + int.from_bytes(data[8:start], "little")
    shape, fortran, dtype = header(data[:end])
    flat = np.frombuffer(data, dtype, count=math.prod(shape), offset=end)
    return flat.reshape(shape, order="F" if fortran else "C")


@lru_cache(4096)
def header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape, whether the order is Fortran's, and the type."""
    file = BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in READERS:
        raise ValueError(f"NumPy's format {version} is not known")
    return READERS[version](file)
