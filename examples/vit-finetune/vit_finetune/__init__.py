"""Federated fine-tuning of a Vision Transformer's head with Flower."""

import os

# OpenMP threads that wait shall sleep: spinning ones starve other clients on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Memory pages of 2 MiB for large tensors make a forward pass on the CPU faster.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
