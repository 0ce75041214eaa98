"""DiLoCo: many local steps, and a step of the server with momentum (Douillard et al. 2023)."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from flowertune_llm.kit.replies import Arrays, to_numpy, to_record


class DiLoCo(FedAvg):
    """FedAvg with a second step: the mean change is the gradient of SGD with Nesterov momentum.

    With a learning rate of 1 and no momentum it is FedAvg. Unlike in the paper, where workers keep
    the state of AdamW, clients begin it anew in each round.

    Source: https://arxiv.org/abs/2311.08105

    Args:
        learning_rate: of the outer step; 0.7 in the paper.
        momentum: of the outer step; 0.9 in the paper.
    """

    def __init__(self, learning_rate: float, momentum: float) -> None:
        super().__init__()
        self.learning_rate, self.momentum = learning_rate, momentum
        self.current: Arrays = {}  # the global arrays before the round
        self.velocity: Arrays = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.current = to_numpy(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        return to_record({n: self.step(n, mean) for n, mean in to_numpy(arrays).items()}), metrics

    def step(self, name: str, mean: np.ndarray) -> np.ndarray:
        """Return an array after the outer step, with the signs of changes, not of gradients."""
        change = mean - self.current[name]
        self.velocity[name] = self.momentum * self.velocity.get(name, 0) + change
        return self.current[name] + self.learning_rate * (
            change + self.momentum * self.velocity[name]
        )

    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self.velocity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.velocity = dict(state.get("velocity", {}))
