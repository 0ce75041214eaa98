# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Random batches."""

import torch
from torch import Tensor


def batches(count: int, size: int, device: torch.device | None = None) -> list[Tensor]:
    """Return the row numbers of each batch, in a random order drawn on the CPU.

    A last batch of one row joins the batch before: batch norm cannot train on a single row.
    """
    found = list(torch.randperm(count).to(device).split(size))
    if len(found) > 1 and len(found[-1]) == 1 < size:
        found[-2:] = [torch.cat(found[-2:])]
    return found
