"""Federated fine-tuning of a Vision Transformer's head with Flower."""

import os

# Idle OpenMP threads sleep instead of spinning: clients that share cores would starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Large tensors in pages of 2 MiB: a forward pass on the CPU spends less time on fetching memory.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
