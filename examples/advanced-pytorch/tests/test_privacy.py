"""Privacy: clients clip, all have the same weight, and the average is noisy."""

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg
from pytorch_example import client_app, task
from pytorch_example.heads import PERSONAL_HEAD
from pytorch_example.kit.guard import length
from pytorch_example.kit.testing import in_process
from pytorch_example.privacy import WithPrivacy, clip_update, epsilon

NORM = 0.05


def train(run_config: dict, noise: float, head: ArrayRecord | None = None) -> tuple[Message, float]:
    """Train partition 0 as the app does; return its reply and the length of its update."""
    changes = {"dataset": "digits", "min-partition-size": 8, "dp.noise-multiplier": noise}
    node = {"partition-id": 0, "num-partitions": 50}
    context = Context(1, 1, node, RecordDict(), run_config | changes)
    sent = ArrayRecord(task.Net().state_dict())
    config = ConfigRecord({"learning-rate": 0.1, "server-round": 1, "clipping_norm": NORM})
    content = RecordDict({"arrays": sent, "config": config})
    if head:
        content[PERSONAL_HEAD] = head
    reply = client_app.app(Message(content, 1, MessageType.TRAIN), context)
    assert not reply.has_error()
    return reply, length(reply.content["arrays"], sent, sent)


def test_update_is_clipped_and_the_head_goes_round_it(run_config):
    reply, length = train(run_config, noise=0.0)
    assert length > 2 * NORM
    reply, length = train(run_config, noise=1.0)
    assert length == pytest.approx(NORM, rel=1e-4)
    reply, length = train(run_config, noise=1.0, head=reply.content[PERSONAL_HEAD])
    assert length == pytest.approx(NORM, rel=1e-4)
    assert PERSONAL_HEAD in reply.content


def test_refusal_by_flowers_mod_answers_the_message(run_config):
    context = Context(1, 1, {}, RecordDict(), run_config | {"dp.noise-multiplier": 1.0})
    content = {"arrays": ArrayRecord({"w": Array(np.zeros(3))})}
    config = ConfigRecord({"clipping_norm": NORM})
    message = Message(RecordDict(content | {"config": config}), 1, MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = "asked"
    renamed = RecordDict({"arrays": ArrayRecord({"v": Array(np.zeros(3))})})
    reply = clip_update(message, context, lambda m, c: Message(renamed, reply_to=m))
    assert "expects the keys" in reply.error.reason
    assert reply.metadata.reply_to_message_id == "asked"


def average(server_round: int = 1, seed: int | None = 42) -> np.ndarray:
    """Average a client with 1 example that sends zeros and one with 999 that sends ones."""
    replies = []
    for value, examples in ((0.0, 1), (1.0, 999)):
        arrays = ArrayRecord({"w": Array(np.full((100, 100), value, np.float32))})
        metrics = MetricRecord({"train_loss": value, "num-examples": examples})
        question = Message(RecordDict(), 1, MessageType.TRAIN)
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        replies.append(Message(content, reply_to=question))
    arrays, metrics = WithPrivacy(FedAvg(), 0.5, NORM, seed).aggregate_train(server_round, replies)
    assert metrics["train_loss"] == 0.5
    return arrays["w"].numpy()


def test_noise_fits_the_number_of_replies():
    noisy = average()
    assert noisy.mean() == pytest.approx(0.5, abs=0.01)
    assert noisy.std() == pytest.approx(0.5 * NORM / 2, rel=0.05)


def test_noise_repeats_only_where_it_is_asked_to():
    noisy = average()
    assert np.array_equal(noisy, average())
    assert not np.array_equal(noisy, average(server_round=2))
    secret = [average(seed=None) for _ in range(2)]
    assert not np.array_equal(*secret)


def test_a_strategy_sees_nothing_of_a_client_but_the_noisy_average():
    seen = []

    class Watching(FedAvg):
        def aggregate_train(self, server_round, replies):
            seen.extend(replies)
            return super().aggregate_train(server_round, replies)

    strategy = WithPrivacy(Watching(), 0.5, NORM, 42)
    replies = []
    for value in (0.0, 1.0):
        metrics = MetricRecord({"train_loss": value, "num-examples": 7})
        arrays = ArrayRecord({"w": Array(np.full(4, value, np.float32))})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        replies.append(Message(content, reply_to=Message(RecordDict(), 1, MessageType.TRAIN)))
    strategy.aggregate_train(1, replies)
    [only] = seen
    assert not set(only.content["arrays"]["w"].numpy().tolist()) & {0.0, 0.5, 1.0}
    assert only.content["metrics"]["num-examples"] == 1


@pytest.mark.parametrize(
    ("noise", "rounds", "delta"),
    [(1.0, 10, 1e-5), (0.3, 10, 1e-5), (3.0, 100, 1e-6), (50, 1, 1e-5)],
)
def test_epsilon_is_googles(noise, rounds, delta):
    dp_accounting = pytest.importorskip("dp_accounting")
    accountant = dp_accounting.pld.PLDAccountant()
    event = dp_accounting.GaussianDpEvent(noise)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    assert epsilon(rounds, noise, delta) == pytest.approx(accountant.get_epsilon(delta), rel=1e-3)


def test_epsilon_of_the_rounds_so_far_is_logged_and_in_results(tmp_path, caplog):
    caplog.set_level("INFO", "flwr")
    settings = {"dp__noise_multiplier": 1.0, "dp__clipping_norm": 0.001, "num_server_rounds": 2}
    first, *rest = in_process(tmp_path, 4, **settings, fraction_evaluate=0.0)
    assert "privacy" not in first
    spent = [entry["privacy"] for entry in rest]
    # Balle and Wang's theorem 8 at one and at two rounds, by Google's accountant
    assert spent == [
        {"epsilon": pytest.approx(4.377, abs=1e-3), "delta": 1e-5},
        {"epsilon": pytest.approx(6.572, abs=1e-3), "delta": 1e-5},
    ]
    assert "Privacy so far: epsilon = 6.57 at delta = 1e-05" in caplog.text
