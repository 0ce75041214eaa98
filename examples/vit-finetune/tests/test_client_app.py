"""The client refuses a global head that its own data or backbone cannot serve."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from vit_finetune import task
from vit_finetune.client_app import app
from vit_finetune.task import Statistics


def context(run_config: dict, tmp_path) -> Context:
    changed = {
        "dataset": "digits",
        "model.name": "vit_tiny",
        "model.weights": "none",
        "image-size": 32,
        "cache-dir": str(tmp_path),
    }
    node = {"partition-id": 0, "num-partitions": 20}
    return Context(1, 1, node, RecordDict(), run_config | changed)


def train_message(width: int, num_classes: int) -> Message:
    statistics = Statistics(torch.zeros(width), torch.ones(width))
    head = task.Head(width, num_classes, statistics)
    content = {
        "arrays": ArrayRecord(head.linear.state_dict()),
        "statistics": ArrayRecord({"mean": head.mean.cpu(), "scale": head.scale.cpu()}),
        "config": ConfigRecord({"server-round": 1}),
    }
    return Message(RecordDict(content), dst_node_id=1, message_type=MessageType.TRAIN)


def test_client_trains_the_head(run_config, tmp_path):
    reply = app(train_message(192, 10), context(run_config, tmp_path))
    assert reply.content["arrays"]["weight"].shape == (10, 192)
    assert abs(reply.content["arrays"]["weight"].numpy()).max() > 0
    assert reply.content["metrics"]["num-examples"] == 64  # of 72, a tenth is held out


def test_other_number_of_classes_is_named(run_config, tmp_path):
    with pytest.raises(RuntimeError, match="'digits' has 10 classes here, the global head 102"):
        app(train_message(192, 102), context(run_config, tmp_path))


def test_other_width_is_named(run_config, tmp_path):
    with pytest.raises(RuntimeError, match=r"model\.name = 'vit_tiny' gives 192 features, not 768"):
        app(train_message(768, 10), context(run_config, tmp_path))


def test_node_without_a_partition_says_how_to_start_it(run_config, tmp_path):
    nameless = context(run_config, tmp_path)
    nameless.node_config.clear()
    with pytest.raises(RuntimeError, match='start it with --node-config "partition-id=0'):
        app(train_message(192, 10), nameless)
