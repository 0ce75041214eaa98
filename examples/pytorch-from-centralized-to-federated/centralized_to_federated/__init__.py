"""A plain PyTorch project, and its federation with Flower."""

import os

# OpenMP threads that wait shall sleep: spinning ones starve other clients on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
