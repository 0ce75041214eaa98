# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Arrays of messages: read as Flower reads them, and refused where it refuses them."""

import numpy as np
import pytest
from flwr.app import Array

from ..arrays import view


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3, dtype=np.int64),
        np.zeros((0, 4), dtype=np.float16),
        np.array([True, False]),
        np.arange(3, dtype=">i2"),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_views_are_what_flower_reads(array):
    packed = Array(array)
    seen, read = view(packed), packed.numpy()
    assert (seen.dtype, seen.shape) == (read.dtype, read.shape)
    assert np.array_equal(seen, read)
    assert not seen.flags.writeable


@pytest.mark.parametrize("kept", [0, 5, 9, 60, 130])
def test_part_of_an_array_is_refused(kept):
    packed = Array(np.arange(4.0))
    packed.data = packed.data[:kept]
    with pytest.raises(ValueError, match=r"magic|EOF|header|smaller|buffer"):
        view(packed)


def test_objects_and_other_formats_are_refused():
    packed = Array(np.arange(4.0))
    packed.stype = "pickle"
    with pytest.raises(TypeError, match="pickle"):
        view(packed)
    packed.stype, packed.data = "numpy.ndarray", packed.data.replace(b"'<f8'", b"'|O8'")
    with pytest.raises(ValueError, match="OBJECT"):
        view(packed)
