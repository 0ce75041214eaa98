"""FedAvg with server momentum, a decaying learning rate, and heads that come back to clients."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from pytorch_example.checkpoint import Arrays, RunState
from pytorch_example.config import PERSONAL_HEAD, Config
from pytorch_example.momentum import step
from pytorch_example.replies import to_numpy, to_record
from pytorch_example.rounds import Rounds

HEADS = "personal-heads"  # in what the server keeps, beside the velocities


class CustomFedAvg(Rounds):
    """FedAvg with server momentum (Hsu et al. 2019), over clients that keep a head of their own.

    Source: https://arxiv.org/abs/1909.06335

    Args:
        config, state, on_round_end: as for `Rounds`.
    """

    def __init__(self, config: Config, state: RunState, on_round_end: Callable[[], None]) -> None:
        super().__init__(
            config,
            state,
            on_round_end,
            fraction_train=config.fraction_train,
            fraction_evaluate=config.fraction_evaluate,
        )
        self.heads_to_return = personal_heads(state)  # after a resume, clients start empty
        self.new_heads: dict[int, Arrays] = {}  # by partition, of this round

    def remarks(self, server_round: int) -> dict[str, Any]:
        return {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global model and this round's learning rate to a sample of the clients."""
        decay = self.config.learning_rate_decay ** (server_round - 1)
        config["learning-rate"] = self.config.learning_rate * decay
        return super().configure_train(server_round, arrays, config, grid)

    def content(self, partition: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        content = super().content(partition, arrays, config)
        if partition in self.heads_to_return:
            content[PERSONAL_HEAD] = to_record(self.heads_to_return[partition])
        return content

    def note(self, partition: int, phase: str, content: RecordDict) -> None:
        """Take a client's head out of its reply: FedAvg averages one record of arrays for each."""
        self.heads_to_return.pop(partition, None)
        if PERSONAL_HEAD in content:
            self.new_heads[partition] = to_numpy(content.pop(PERSONAL_HEAD))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the good updates and step towards the average."""
        self.new_heads = {}
        average, metrics = super().aggregate_train(server_round, replies)
        for partition, head in self.new_heads.items():
            self.state.server |= {f"{HEADS}/{partition}/{k}": v for k, v in head.items()}
        server, momentum = self.state.server, self.config.server_momentum
        moved = step(
            self.state.arrays, to_numpy(average), server, momentum, self.config.server_learning_rate
        )
        return to_record(moved), metrics


def personal_heads(state: RunState) -> dict[int, Arrays]:
    """Return the clients' heads by partition, as far as they have sent them."""
    heads: dict[int, Arrays] = {}
    for name, value in state.server.items():
        if name.startswith(f"{HEADS}/"):
            _, partition, key = name.split("/")
            heads.setdefault(int(partition), {})[key] = value
    return heads
