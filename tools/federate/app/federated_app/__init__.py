"""A PyTorch script, and its federation with Flower."""

import os

# Idle OpenMP threads sleep instead of spinning: clients that share cores would starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
