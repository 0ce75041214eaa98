"""FedAvg of adapters: only changes travel, in the dtype asked for."""

from collections.abc import Callable, Iterable
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid

from flowertune_llm import profiling, transport
from flowertune_llm.checkpoint import RunState
from flowertune_llm.config import Config
from flowertune_llm.replies import to_numpy, to_record
from flowertune_llm.rounds import Rounds


class AdapterFedAvg(Rounds):
    """FedAvg over adapters. Testing is central only.

    The global adapter is kept in float32. Clients get it rounded to `strategy.transport-dtype`
    and answer with the change that training made, rounded likewise.

    Args:
        config, state, on_round_end: as for `Rounds`.
    """

    section = "strategy."

    def __init__(self, config: Config, state: RunState, on_round_end: Callable[[], None]) -> None:
        settings = {"fraction_train": config.fraction_train, "fraction_evaluate": 0.0}
        super().__init__(config, state, on_round_end, **settings)
        self.traffic: dict[str, int] = {}  # bytes of arrays, the most of any client in this round

    def remarks(self, server_round: int) -> dict[str, Any]:
        if self.traffic:
            log(INFO, "A client gets %(down_bytes)d bytes and sends %(up_bytes)d", self.traffic)
        traffic, self.traffic = self.traffic, {}
        return {"traffic": traffic} | super().remarks(server_round)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global adapter and this round's learning rate to a sample of the clients."""
        config["learning-rate"] = self.config.learning_rate(server_round)
        sent = transport.encode(to_numpy(arrays), self.config.transport_dtype)
        self.traffic["down_bytes"] = transport.size(sent)
        return super().configure_train(server_round, sent, config, grid)

    def sample(self, partitions: list[int], server_round: int, kind: str) -> list[int]:
        """Draw with a seed of (seed, round): there is but one kind of phase."""
        count = max(self.sample_size(len(partitions), kind), self.config.min_replies)
        rng = np.random.default_rng((self.config.seed, server_round))
        return sorted(rng.permutation(partitions)[:count].tolist())

    @profiling.task("aggregate")
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the good adapters, weighted by their numbers of examples."""
        replies = list(replies)
        for reply in replies:
            self.restore(reply)
        return super().aggregate_train(server_round, replies)

    def restore(self, reply: Message) -> None:
        """Replace the change that a client sent by the adapter that it means, in float32."""
        if reply.has_error() or "arrays" not in reply.content.array_records:
            return
        received = reply.content.array_records["arrays"]
        self.traffic["up_bytes"] = max(self.traffic.get("up_bytes", 0), transport.size(received))
        try:
            adapter = transport.decode(received)
        except (RuntimeError, TypeError, ValueError):  # no numbers: found and named as unlike ours
            adapter = {}
        for name, value in self.state.arrays.items():
            if name in adapter and adapter[name].shape == value.shape:
                adapter[name] += value
        reply.content["arrays"] = to_record(adapter)
