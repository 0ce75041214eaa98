"""FedAvg with server momentum and a decaying learning rate."""

from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg


class CustomFedAvg(FedAvg):
    """FedAvg with server momentum (Hsu et al. 2019) and a learning rate that decays by the round.

    velocity = momentum * velocity + (average - model)
    model    = model + server_learning_rate * velocity

    Source: https://arxiv.org/abs/1909.06335

    Args:
        learning_rate: the clients', in the first round.
        learning_rate_decay: factor for each further round.
        server_momentum: in [0, 1); 0 is plain FedAvg.
        server_learning_rate: with 1, and no momentum, the new model is the average.
    """

    def __init__(
        self,
        learning_rate: float,
        learning_rate_decay: float = 1.0,
        server_momentum: float = 0.0,
        server_learning_rate: float = 1.0,
    ) -> None:
        super().__init__()
        self.learning_rate, self.learning_rate_decay = learning_rate, learning_rate_decay
        self.server_momentum, self.server_learning_rate = server_momentum, server_learning_rate
        self.model = ArrayRecord()
        self.velocity: dict[str, np.ndarray] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global model and this round's learning rate."""
        self.model = arrays
        decay = self.learning_rate_decay ** (server_round - 1)
        config["learning-rate"] = self.learning_rate * decay
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the clients' models and step towards the average."""
        average, metrics = super().aggregate_train(server_round, replies)
        if average is None:
            return average, metrics
        return ArrayRecord({name: self.step(name, average[name]) for name in average}), metrics

    def step(self, name: str, average: Array) -> Array:
        """Return an array of the model, moved by its velocity."""
        value = self.model[name].numpy()
        velocity = average.numpy() - value
        if name in self.velocity:
            velocity += self.server_momentum * self.velocity[name]
        self.velocity[name] = velocity
        return Array((value + self.server_learning_rate * velocity).astype(value.dtype))
