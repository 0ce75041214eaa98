"""A plain PyTorch project, and its federation with Flower."""
