"""Advanced federated learning with PyTorch and Flower."""
