"""The server's step, and the personal heads in messages."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from pytorch_example.heads import PERSONAL_HEAD, WithPersonalHeads
from pytorch_example.kit.clients import Drawn
from pytorch_example.kit.strategies import take_all
from pytorch_example.strategy import CustomFedAvg


def record(value: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.float32([value]))})


def reply(value: float, node: int = 1, head: float | None = None) -> Message:
    metrics = MetricRecord({"train_loss": 0.5, "num-examples": 10})
    content = RecordDict({"arrays": record(value), "metrics": metrics})
    if head is not None:
        content[PERSONAL_HEAD] = record(head)
    return Message(content, reply_to=Message(RecordDict(), node, "train"))


def configure(strategy, server_round: int, model: float) -> list[Message]:
    take_all(strategy)
    grid = Drawn(None, [1, 2])
    return list(strategy.configure_train(server_round, record(model), ConfigRecord(), grid))


def test_step_follows_its_formula():
    strategy = CustomFedAvg(0.1, server_momentum=0.5)
    model = 1.0
    for server_round, average, expected in ((1, 3.0, 3.0), (2, 4.0, 5.0)):
        configure(strategy, server_round, model)  # velocities 2, and 0.5 * 2 + 1 = 2
        arrays, _ = strategy.aggregate_train(server_round, [reply(average)])
        [model] = arrays["w"].numpy()
        assert model == expected
    assert arrays["w"].numpy().dtype == np.float32

    half = CustomFedAvg(0.1, server_learning_rate=0.5)
    configure(half, 1, 1.0)
    assert half.aggregate_train(1, [reply(3.0)])[0]["w"].numpy() == [2.0]


def test_learning_rate_decays_by_the_round():
    strategy = CustomFedAvg(0.1, learning_rate_decay=0.5)
    for server_round, rate in ((1, 0.1), (2, 0.05), (4, 0.0125)):
        [first, _] = configure(strategy, server_round, 0.0)
        assert first.content["config"]["learning-rate"] == pytest.approx(rate)


def test_heads_are_kept_and_come_back_once():
    def wrapped() -> WithPersonalHeads:
        return WithPersonalHeads(FedAvg(), {1: 10, 2: 20}.__getitem__)

    first = wrapped()
    assert PERSONAL_HEAD not in configure(first, 1, 0.0)[0].content
    arrays, _ = first.aggregate_train(1, [reply(1.0, 1, head=7.0), reply(3.0, 2)])
    assert arrays["w"].numpy() == [2.0]
    assert PERSONAL_HEAD not in configure(first, 2, 0.0)[0].content

    resumed = wrapped()
    resumed.load_state_dict(first.state_dict())
    sent = {m.metadata.dst_node_id: m.content for m in configure(resumed, 2, 0.0)}
    assert sent[1][PERSONAL_HEAD]["w"].numpy() == [7.0]
    assert PERSONAL_HEAD not in sent[2]
    resumed.aggregate_evaluate(2, [reply(1.0, 1)])
    assert not any(PERSONAL_HEAD in m.content for m in configure(resumed, 3, 0.0))
