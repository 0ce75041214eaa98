"""Measured figures of each example: what its README and the front page show of results/."""
