"""Differential privacy of whole clients: clipped updates, noise on their average.

Source: McMahan et al. 2018, https://arxiv.org/abs/1710.06963
"""

import math
from collections.abc import Collection, Iterable
from logging import INFO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg, Strategy

from pytorch_example.config import Config
from pytorch_example.kit.buffers import completed, floats

WEIGHT = "num-examples"
FIXED = "fixed-arrays"  # names in a message's config
# Endings of PyTorch's names of running statistics: these come from data, as gradients do.
MEAN, VARIANCE = "running_mean", "running_var"


def epsilon(rounds: int, noise_multiplier: float, delta: float) -> float:
    """Return the privacy loss of a number of rounds, each counted in full.

    Rounds of the Gaussian mechanism add up to a single one, whose loss is known exactly.

    Source: Balle and Wang 2018, theorem 8, https://arxiv.org/abs/1805.06530
    """
    ratio = math.sqrt(rounds) / noise_multiplier  # a client's longest update by the noise

    def log_delta(loss: float) -> float:
        ends = torch.tensor([ratio / 2, -ratio / 2], dtype=torch.float64) - loss / ratio
        first, second = torch.special.log_ndtr(ends).tolist()
        gap = loss + second - first
        return first + math.log1p(-math.exp(gap)) if gap < 0 else -math.inf

    low, high = 0.0, 1.0
    while log_delta(high) > math.log(delta):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if log_delta(middle) > math.log(delta) else (low, middle)
    return high


def spent(config: Config, rounds: int) -> dict[str, Any]:
    """Return the privacy loss after a number of rounds for results.json, and log it."""
    if not (config.private and rounds):
        return {}
    loss = epsilon(rounds, config.dp_noise_multiplier, config.dp_delta)
    log(INFO, "Privacy so far: epsilon = %.2f at delta = %g", loss, config.dp_delta)
    return {"privacy": {"epsilon": loss, "delta": config.dp_delta}}


def clip_update(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Shorten the client's update to `dp.clipping-norm` by Flower's clipping, if privacy is on.

    Counters and fixed arrays go back as they came.
    """
    if not Config.from_run_config(context.run_config).private:
        return call_next(message, context)
    sent = message.content["arrays"]
    fixed = message.content["config"].get(FIXED, [])

    def train(message: Message, context: Context) -> Message:
        message.content["arrays"] = sent
        reply = call_next(message, context)
        if reply.has_content():
            reply.content["arrays"] = without(floats(reply.content["arrays"]), fixed)
        return reply

    message.content["arrays"] = without(floats(sent), fixed)
    reply = fixedclipping_mod(message, context, train)
    if reply.has_error():
        # Flower addresses its own error to the reply, not to the message, so nobody would get it.
        return Message(reply.error, reply_to=message)
    reply.content["arrays"] = completed(reply.content["arrays"], sent)
    return reply


def without(arrays: ArrayRecord, names: Collection[str]) -> ArrayRecord:
    return ArrayRecord({name: array for name, array in arrays.items() if name not in names})


class WithPrivacy(DifferentialPrivacyClientSideFixedClipping):
    """Flower's wrapper for differential privacy, around the average instead of the strategy.

    The strategy gets a single reply: the average of all clients, with noise added. Whatever it
    computes from that, with momentum for instance, is private as well.

    Args:
        strategy: any that averages.
        noise_multiplier, clipping_norm: as in Flower's wrapper.
        seed: of noise that repeats, and that whoever knows the seed can undo; None: secret noise.
        buffers: names of arrays that are not trained. Running statistics get noise like the
            trained ones; others, a mask for instance, stay as they are.
    """

    def __init__(
        self,
        strategy: Strategy,
        noise_multiplier: float,
        clipping_norm: float,
        seed: int | None,
        buffers: Iterable[str] = (),
    ) -> None:
        super().__init__(strategy, noise_multiplier, clipping_norm, num_sampled_clients=1)
        self.seed = seed
        self.fixed = sorted(name for name in buffers if not name.endswith((MEAN, VARIANCE)))
        self.sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the strategy configure the round; send the clipping norm and names, too."""
        self.sent = arrays
        config[FIXED] = self.fixed
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average with equal weights, add noise for this number of replies, and pass it on."""
        replies = list(replies)
        for reply in replies:  # the noise hides a share of 1 / replies and no larger one
            reply.content["metrics"][WEIGHT] = 1
            reply.content["arrays"] = without(reply.content["arrays"], self.fixed)
        average, metrics = self.noisy_average(server_round, replies)
        if average is None or metrics is None:
            return None, None
        metrics[WEIGHT] = 1
        noisy = {name: self.repaired(name, average[name]) for name in average}
        average = ArrayRecord(dict(self.sent) | noisy)
        replies[0].content = RecordDict({"arrays": average, "metrics": metrics})
        return self.strategy.aggregate_train(server_round, replies[:1])

    def repaired(self, name: str, average: Array) -> Array:
        """Return an array with the old value of each variance that noise has made negative."""
        if not name.endswith(VARIANCE):
            return average
        noisy = average.numpy()
        return Array(np.where(noisy > 0, noisy, self.sent[name].numpy()))

    def noisy_average(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        seed = None  # system entropy for NumPy's global generator, which Flower draws from
        if self.seed is not None:
            seed = np.random.SeedSequence((self.seed, server_round)).generate_state(8)
        np.random.seed(seed)
        around_average = DifferentialPrivacyClientSideFixedClipping(
            FedAvg(), self.noise_multiplier, self.clipping_norm, len(replies)
        )
        return around_average.aggregate_train(server_round, replies)
