"""The project itself: network, training and testing. Plain PyTorch, on the process's device."""

from math import ceil

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gpu_scaling.dataset import CHANNELS, IMAGE_SIZE
from gpu_scaling.kit.batches import batches

EVALUATION_BATCH = 200


def build(num_classes: int, seed: int) -> nn.Module:
    """Return a new network on the device, 114 thousand parameters; same seed, same weights."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.Conv2d(CHANNELS, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.ReLU()),
        *(nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.GroupNorm(8, 128), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(128 * ceil(IMAGE_SIZE / 8) ** 2, num_classes),
    )
    # On the CPU this layout of memory makes training and testing faster.
    return network.to(device(), memory_format=torch.channels_last)


def device() -> torch.device:
    """Return the first GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_pixels(images: Tensor) -> Tensor:
    """Scale uint8 images (N, CHANNELS, IMAGE_SIZE, IMAGE_SIZE) to float32 in [-1, 1]."""
    pixels = images.to(device(), torch.float32).div_(127.5).sub_(1)
    return pixels.contiguous(memory_format=torch.channels_last)


def train(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    seed: int,
) -> float:
    """Train the network in place and return the mean training loss.

    Args:
        network: on the device.
        images: uint8 (N, CHANNELS, IMAGE_SIZE, IMAGE_SIZE); they and the labels go to the device.
        labels: int64 (N,).
    """
    torch.manual_seed(seed)
    network.train()
    inputs, targets = (torch.from_numpy(array).to(device()) for array in (images, labels))
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=momentum, fused=True)
    total_loss = torch.zeros((), device=device())
    for _ in range(epochs):
        for batch in batches(len(targets), batch_size, device()):
            optimizer.zero_grad()
            loss = cross_entropy(network(to_pixels(inputs[batch])), targets[batch])
            loss.backward()
            optimizer.step()
            total_loss += loss.detach() * len(batch)
    return total_loss.item() / (epochs * len(targets))


@torch.inference_mode()
def evaluate(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return mean loss and accuracy; arguments as for `train`."""
    network.eval()
    totals = torch.zeros(2, device=device())
    for start in range(0, len(labels), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        # Copied: a mapped file is read-only, and a batch at a time is enough.
        target = torch.tensor(labels[part]).to(device())
        logits = network(to_pixels(torch.tensor(images[part])))
        totals[0] += cross_entropy(logits, target, reduction="sum")
        totals[1] += (logits.argmax(1) == target).sum()
    loss, accuracy = (totals / len(labels)).tolist()
    return loss, accuracy
