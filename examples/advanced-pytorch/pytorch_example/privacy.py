"""Differential privacy: noise on the average of clipped updates, by Flower's own wrapper."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg

from pytorch_example.checkpoint import RunState
from pytorch_example.config import Config
from pytorch_example.strategy import CustomFedAvg

CLIPPING_NORM = "clipping_norm"  # where Flower's fixedclipping_mod looks for it


class PrivateFedAvg(CustomFedAvg):
    """CustomFedAvg that sees its clients through clipping and noise (McMahan et al. 2018).

    The wrapper goes around the average, not around the whole strategy: momentum then works on
    what is noisy already, and carries nothing of a client into later rounds that is not.

    Source: https://arxiv.org/abs/1710.06963
    """

    def __init__(self, config: Config, state: RunState, on_round_end: Callable[[], None]) -> None:
        # Clipping bounds an update, and the median would let one client decide about another.
        super().__init__(replace(config, max_update_ratio=math.inf), state, on_round_end)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Tell the clients' mod, too, how long an update may be."""
        config[CLIPPING_NORM] = self.config.dp_clipping_norm
        return super().configure_train(server_round, arrays, config, grid)

    def average(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average with equal weights, and add noise that fits the number of replies."""
        for reply in replies:  # the noise hides a share of 1 / replies, not a larger one
            reply.content["metrics"][self.weighted_by_key] = 1
        # Flower draws from NumPy's global generator; None is the system's entropy.
        seed = np.random.SeedSequence((self.config.seed, server_round)).generate_state(8)
        np.random.seed(seed if self.config.dp_repeatable_noise else None)
        noise, norm = self.config.dp_noise_multiplier, self.config.dp_clipping_norm
        wrapper = DifferentialPrivacyClientSideFixedClipping(FedAvg(), noise, norm, len(replies))
        return wrapper.aggregate_train(server_round, replies)
