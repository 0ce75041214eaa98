"""Steps of a client on the device: NumPy arrays in, NumPy arrays out, all else given back.

An executor runs these functions, perhaps in another process. Only there is PyTorch imported, and
only there do the model and the data go to the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_scaling.dataset import CHANNELS, IMAGE_SIZE, Source

if TYPE_CHECKING:
    from torch import nn

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Training:
    """The settings of a client's training; `threads` are PyTorch's on the CPU."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    threads: int


def here(step: Callable[..., Any], *args: Any) -> Any:
    """Run a step in this process."""
    return step(*args)


def initial(num_classes: int, seed: int) -> Arrays:
    """Return the arrays of a new network."""
    from gpu_scaling import task

    return to_arrays(task.build(num_classes, seed))


def buffers(num_classes: int) -> set[str]:
    """Return the names of a network's arrays that are not trained."""
    from gpu_scaling import task
    from gpu_scaling.kit import models

    return models.buffers(task.build(num_classes, seed=0))


def train(
    arrays: Arrays, source: Source, partition: int, settings: Training, seed: int
) -> tuple[Arrays, float, int]:
    """Train on a client's data; return the new weights, the mean loss, the number of examples."""
    from gpu_scaling import task

    network = to_network(arrays, source, settings.threads)
    examples = source.load("train", partition)
    loss = task.train(
        network,
        *examples,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        seed=seed,
    )
    return to_arrays(network), loss, len(examples.labels)


def evaluate(
    arrays: Arrays, source: Source, partition: int | None, threads: int
) -> tuple[float, float, int]:
    """Test on a client's test data, or on all; return mean loss, accuracy, number of examples."""
    from gpu_scaling import task

    examples = source.load("test", partition)
    loss, accuracy = task.evaluate(to_network(arrays, source, threads), *examples)
    return loss, accuracy, len(examples.labels)


def warm_up() -> None:
    """Train once, on zeros: forks then share PyTorch's set-up of a first step."""
    import torch

    from gpu_scaling import task

    torch.set_num_threads(1)
    shape = (2, CHANNELS, IMAGE_SIZE, IMAGE_SIZE)
    nothing = np.zeros(shape, np.uint8), np.zeros(2, np.int64)
    network = task.build(2, seed=0)
    task.train(network, *nothing, epochs=1, batch_size=2, learning_rate=0.1, momentum=0.1, seed=0)
    task.evaluate(network, *nothing)


def to_network(arrays: Arrays, source: Source, threads: int) -> "nn.Module":
    import torch

    from gpu_scaling import task
    from gpu_scaling.kit import models

    torch.set_num_threads(threads)
    network = task.build(source.num_classes, seed=0)
    models.load(network, arrays)
    return network


def to_arrays(network: "nn.Module") -> Arrays:
    from gpu_scaling.kit import models

    return models.to_arrays(network)
