# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Independent seeds."""

import numpy as np


def derive_seed(*parts: int) -> int:
    """Return an independent seed for each combination of whole numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
