"""A client's training in one round."""

import math

from flowertune_llm import models, task
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_partition
from flowertune_llm.kit.replies import Arrays
from flowertune_llm.kit.seeds import derive_seed


def train_adapter(
    config: Config, received: Arrays, server_round: int, partition: int, num_partitions: int
) -> tuple[Arrays, dict[str, float]]:
    """Train the global adapter on the local examples; the base model does not change.

    Returns:
        the change of the adapter, which is small and needs few bits; and the metrics.
    """
    model = models.load_model(config)
    models.set_adapter(model, received)
    metrics = train(model, config, server_round, partition, num_partitions)
    change = {name: value - received[name] for name, value in models.get_adapter(model).items()}
    return change, metrics


def train(
    model: task.Model, config: Config, server_round: int, partition: int, num_partitions: int
) -> dict[str, float]:
    """Train a model in place on the local examples.

    Raises:
        RuntimeError: it diverges.
    """
    data = load_partition(config, partition, num_partitions)
    seed = derive_seed(config.seed, server_round, partition)
    loss = task.train(model, data, config, config.learning_rate(server_round), seed)
    if not math.isfinite(loss):
        raise RuntimeError(f"training loss is {loss}; try a smaller train.learning-rate-max")
    return {"train_loss": loss, "num-examples": len(data)}
