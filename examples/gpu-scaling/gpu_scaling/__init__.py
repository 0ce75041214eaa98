"""Hundreds of clients on one device: steps in the client's process, a spawned one, or a pool."""

import os

# Idle OpenMP threads sleep instead of spinning: clients that share cores would starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
