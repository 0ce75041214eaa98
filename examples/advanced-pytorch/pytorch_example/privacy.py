"""Differential privacy of whole clients: clipped updates, noise on their average.

Source: McMahan et al. 2018, https://arxiv.org/abs/1710.06963
"""

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg, Strategy

from pytorch_example.config import Config

WEIGHT = "num-examples"


def clip_update(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Have Flower shorten what training changed to `dp.clipping-norm`, where privacy is on."""
    if not Config.from_run_config(context.run_config).private:
        return call_next(message, context)
    reply = fixedclipping_mod(message, context, call_next)
    # Its own refusals answer the reply, not the message: the server would wait for round-timeout.
    return Message(reply.error, reply_to=message) if reply.has_error() else reply


class WithPrivacy(DifferentialPrivacyClientSideFixedClipping):
    """Flower's wrapper, around the average of the clients instead of the whole strategy.

    The strategy gets a single reply: the average of all, with noise added. So whatever it does
    with that, momentum for instance, is private as well.

    Args:
        strategy: any that takes averages.
        noise_multiplier, clipping_norm: as for Flower's wrapper.
        seed: of noise that repeats, and can be undone by whoever knows it; None for secret noise.
    """

    def __init__(
        self, strategy: Strategy, noise_multiplier: float, clipping_norm: float, seed: int | None
    ) -> None:
        super().__init__(strategy, noise_multiplier, clipping_norm, num_sampled_clients=1)
        self.seed = seed

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average with equal weights, add noise that fits the number of replies, and pass it on."""
        replies = list(replies)
        for reply in replies:  # the noise hides a share of 1 / replies, not a larger one
            reply.content["metrics"][WEIGHT] = 1
        average, metrics = self.noisy_average(server_round, replies)
        if average is None or metrics is None:
            return None, None
        metrics[WEIGHT] = 1
        replies[0].content = RecordDict({"arrays": average, "metrics": metrics})
        return self.strategy.aggregate_train(server_round, replies[:1])

    def noisy_average(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        seed = None  # the system's entropy, in NumPy's global generator, from which Flower draws
        if self.seed is not None:
            seed = np.random.SeedSequence((self.seed, server_round)).generate_state(8)
        np.random.seed(seed)
        around_average = DifferentialPrivacyClientSideFixedClipping(
            FedAvg(), self.noise_multiplier, self.clipping_norm, len(replies)
        )
        return around_average.aggregate_train(server_round, replies)
