"""FedAvg with server momentum; what a round is made of is in rounds.py."""

from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, Message, MetricRecord

from centralized_to_federated.checkpoint import RunState
from centralized_to_federated.config import Config
from centralized_to_federated.momentum import step
from centralized_to_federated.replies import to_numpy, to_record
from centralized_to_federated.rounds import Rounds


class MomentumFedAvg(Rounds):
    """FedAvg with server momentum (Hsu et al. 2019).

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

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the good models and step towards the average."""
        average, metrics = super().aggregate_train(server_round, replies)
        server, momentum = self.state.server, self.config.server_momentum
        moved = step(self.state.arrays, to_numpy(average), server, momentum)
        return to_record(moved), metrics
