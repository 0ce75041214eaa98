"""FedAvg with a sample of so many clients, messages in waves, and server momentum."""

import time
from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid

from gpu_scaling.checkpoint import RunState
from gpu_scaling.config import Config
from gpu_scaling.momentum import step
from gpu_scaling.replies import to_numpy, to_record
from gpu_scaling.rounds import Rounds


class ScalingFedAvg(Rounds):
    """FedAvg with server momentum (Hsu et al. 2019) over a few of many clients.

    Source: https://arxiv.org/abs/1909.06335

    Args:
        config, state, on_round_end: as for `Rounds`.
    """

    def __init__(self, config: Config, state: RunState, on_round_end: Callable[[], None]) -> None:
        evaluate = float(config.clients_to_evaluate > 0)
        super().__init__(config, state, on_round_end, fraction_evaluate=evaluate)
        self.needed = {"min-clients": config.min_clients} | self.needed
        self.waves: list[list[Message]] = []  # messages that wait for others to be answered

    def sample_size(self, connected: int, kind: str) -> int:
        training = kind == MessageType.TRAIN
        return self.config.clients_to_train if training else self.config.clients_to_evaluate

    def send(self, grid: Grid, messages: Iterable[Message]) -> list[str]:
        """Send no more than `messages-at-once`; the others follow while `receive` waits.

        SuperNodes of one machine start a process for each message, and only so many of those can
        start in the time that Flower gives them.
        """
        messages = list(messages)
        size = self.config.messages_at_once or max(1, len(messages))
        self.waves = [messages[first : first + size] for first in range(size, len(messages), size)]
        return super().send(grid, messages[:size])

    def receive(self, grid: Grid, sent: Iterable[str], timeout: float) -> list[Message]:
        """Return the replies to all waves that come within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        replies, asked = super().receive(grid, sent, timeout), self.asked
        for wave in self.waves:
            if (left := deadline - time.monotonic()) > 0:
                replies += super().receive(grid, super().send(grid, wave), left)
                asked |= self.asked
        self.asked = asked
        return replies

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the good models and step towards the average."""
        average, metrics = super().aggregate_train(server_round, replies)
        server, momentum = self.state.server, self.config.server_momentum
        moved = step(self.state.arrays, to_numpy(average), server, momentum)
        return to_record(moved), metrics
