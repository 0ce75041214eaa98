"""A client's training in one round: of the global adapter, or of the whole global model."""

import math
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from flowertune_llm import models, task, transport
from flowertune_llm.checkpoint import Arrays
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_partition
from flowertune_llm.serving import Order

Report = dict[str, float]


def adapter(config: Config, received: Arrays, order: Order) -> tuple[Arrays, Report]:
    """Train the global adapter on the local examples; the base model stays as it is.

    Returns:
        the change, which is small and needs few bits, however large the adapter has become; and
        the loss.
    """
    data = load_partition(config, order.partition, order.partitions)
    model = models.load_model(config)
    models.set_adapter(model, received)
    loss = trained(task.train(model, data, config, order.learning_rate, seed_of(config, order)))
    change = {name: value - received[name] for name, value in models.get_adapter(model).items()}
    return change, {"train_loss": loss, "num-examples": len(data)}


def save_adapter_change(config: Config, received: Arrays, order: Order, folder: Path) -> Report:
    """Train the adapter, and write its change as it is to travel."""
    change, report = adapter(config, received, order)
    tensors = {
        name: torch.from_numpy(value).to(transport.DTYPES[config.transport_dtype])
        for name, value in change.items()
    }
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return report


def save_whole_model(config: Config, start: Path, order: Order, folder: Path) -> Report:
    """Train all weights of the model in one folder, and write them to another."""
    data = load_partition(config, order.partition, order.partitions)
    model = models.load_whole(config, start)
    loss = trained(task.train(model, data, config, order.learning_rate, seed_of(config, order)))
    model.save_pretrained(folder)
    models.load_tokenizer(config).save_pretrained(folder)
    return {"train_loss": loss, "num-examples": len(data)}


def trained(loss: float) -> float:
    if not math.isfinite(loss):
        raise RuntimeError(f"training loss is {loss}; try a smaller train.learning-rate-max")
    return loss


def seed_of(config: Config, order: Order) -> int:
    """Return an independent seed for each client and round."""
    parts = (config.seed, order.server_round, order.partition)
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
