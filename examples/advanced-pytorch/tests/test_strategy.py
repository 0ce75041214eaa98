"""The server's step, its sampling and its judgement of replies, without any process."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MessageType, MetricRecord, RecordDict
from pytorch_example.checkpoint import RunState
from pytorch_example.config import Config
from pytorch_example.momentum import step
from pytorch_example.replies import problems
from pytorch_example.strategy import CustomFedAvg

SENT = ArrayRecord({"w": Array(np.zeros((2, 3), np.float32))})


@pytest.fixture
def strategy(run_config):
    config = run_config | {"server-momentum": 0.5, "server-learning-rate": 1.0}
    return CustomFedAvg(Config.from_run_config(config), RunState(config), lambda: None)


def reply(value: float = 1.0, shape=(2, 3), name="w", **metrics: float) -> Message:
    arrays = ArrayRecord({name: Array(np.full(shape, value, np.float32))})
    record = MetricRecord({"train_loss": 0.5, "num-examples": 10} | metrics)
    question = Message(RecordDict(), 1, MessageType.TRAIN)
    return Message(RecordDict({"arrays": arrays, "metrics": record}), reply_to=question)


def test_step_follows_its_formula():
    velocities = {}
    first = step({"w": np.float32([1.0])}, {"w": np.float32([3.0])}, velocities, momentum=0.5)
    assert first["w"] == 3.0  # velocity 2
    second = step(first, {"w": np.float32([4.0])}, velocities, momentum=0.5)
    assert second["w"] == 5.0  # velocity 0.5 * 2 + 1 = 2
    half = step({"w": np.float32([1.0])}, {"w": np.float32([3.0])}, {}, 0.5, learning_rate=0.5)
    assert half["w"] == 2.0
    assert second["w"].dtype == np.float32


def test_sampling_repeats_and_varies(strategy):
    nodes = list(range(50))
    first = strategy.sample(nodes, 1, MessageType.TRAIN)
    assert first == strategy.sample(nodes, 1, MessageType.TRAIN)
    assert len(set(first)) == 12
    assert first != strategy.sample(nodes, 2, MessageType.TRAIN)
    assert len(strategy.sample(nodes, 1, MessageType.EVALUATE)) == 25
    assert strategy.sample([4, 7], 1, MessageType.TRAIN) == [4, 7]  # min-replies


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (reply(float("nan")), "w holds NaN or infinity"),
        (reply(float("-inf")), "w holds NaN or infinity"),
        (reply(shape=(3, 2)), r"w has shape (3, 2), not (2, 3)"),
        (reply(name="v"), "its arrays are not named like the global model's"),
        (reply(train_loss=float("nan")), "train_loss = nan"),
        (reply(**{"num-examples": 0}), "num-examples = 0"),
        (reply(**{"num-examples": -5}), "num-examples = -5"),
        (reply(1e6), "its update is 1e+06 times as long as the median"),
        (reply(1e30), "its update is 1e+30 times as long as the median"),
        (reply(surprise=1.0), "its metrics are ['num-examples', 'surprise', 'train_loss'], "),
        (Message(Error(0, "it broke"), reply_to=Message(RecordDict(), 1, "train")), "it broke"),
    ],
)
def test_problems_are_named(bad, problem):
    good, found, also_good = problems([reply(), bad, reply()], "num-examples", SENT, 100.0)
    assert (good, also_good) == ("", "")
    assert problem in found
