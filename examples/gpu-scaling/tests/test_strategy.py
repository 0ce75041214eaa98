"""Rounds on a grid of stand-ins: who is sampled, how many are asked at once, who is waited for."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from gpu_scaling.checkpoint import RunState
from gpu_scaling.config import Config
from gpu_scaling.replies import to_numpy, to_record
from gpu_scaling.rounds import TooFewReplies
from gpu_scaling.strategy import ScalingFedAvg


class StandIns:
    """A grid whose nodes answer at once; a client adds its partition's number to the model."""

    def __init__(self, partitions: int) -> None:
        self.nodes = {1000 - partition: partition for partition in range(partitions)}
        self.waiting: dict[str, Message] = {}
        self.most, self.count = 0, 0

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: list[Message]) -> list[str]:
        ids = []
        for message in messages:
            self.count += 1
            ids.append(str(self.count))
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.waiting[ids[-1]] = self.answer(message)
        self.most = max(self.most, len(self.waiting))
        return ids

    def pull_messages(self, ids: set[str]) -> list[Message]:
        return [self.waiting.pop(message_id) for message_id in sorted(ids)[:1]]

    def answer(self, message: Message) -> Message:
        partition = self.nodes[message.metadata.dst_node_id]
        metrics = {"num-examples": 1, "loss": float(partition)}
        content = RecordDict({"metrics": MetricRecord(metrics)})
        if message.metadata.message_type == "query":
            content["node"] = MetricRecord({"partition-id": partition})
        if message.metadata.message_type == "train":
            arrays = to_numpy(message.content["arrays"])
            changed = {name: value + partition for name, value in arrays.items()}
            content["arrays"] = to_record(changed)
        return Message(content, reply_to=message)


def run(run_config, grid: StandIns, **changes) -> RunState:
    config = replace(Config.from_run_config(run_config), num_server_rounds=3, **changes)
    state = RunState(run_config)
    model = to_record({"weight": np.zeros(2, np.float32)})

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": 0.5, "loss": float(arrays["weight"].numpy().sum())})

    ScalingFedAvg(config, state, lambda: None).start(
        grid, model, num_rounds=3, timeout=5.0, evaluate_fn=evaluate
    )
    return state


def test_messages_at_once_change_nothing_but_the_pace(run_config):
    sizes = {"clients_to_train": 5, "clients_to_evaluate": 4}
    all_at_once, few_at_once = StandIns(9), StandIns(9)
    expected = run(run_config, all_at_once, **sizes)
    state = run(run_config, few_at_once, **sizes, messages_at_once=2)
    assert state.history == expected.history
    assert (all_at_once.most, few_at_once.most) == (9, 2)
    for entry in state.history[1:]:
        assert sum("train_examples" in client for client in entry["clients"]) == 5
        assert sum("eval_examples" in client for client in entry["clients"]) == 4


def test_no_federated_evaluation_is_no_reason_to_skip_the_central_one(run_config):
    state = run(run_config, StandIns(3), clients_to_evaluate=0)
    assert state.history[3]["evaluate_metrics_clientapp"] == {}
    assert state.history[3]["evaluate_metrics_serverapp"]["loss"] == 6.0


def test_a_round_waits_for_min_clients(run_config):
    with pytest.raises(TooFewReplies, match=r"3 nodes connected .*, min-clients = 4, min-replies"):
        run(run_config, StandIns(3), min_clients=4, round_timeout=0.6)
