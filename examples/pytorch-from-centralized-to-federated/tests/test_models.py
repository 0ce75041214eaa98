"""A user's model in the place of ours: any state dict trains, and stays a model."""

import numpy as np
import pytest
import torch
from centralized_to_federated import task
from centralized_to_federated.kit import models
from centralized_to_federated.kit.testing import in_process, only_run
from safetensors.numpy import load_file
from torch import nn


class Brought(nn.Module):
    """Batch norm, weights that are tied, a number without dimensions, a head in bfloat16."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8)
        self.inner = nn.Linear(392, 392, bias=False)
        self.again = self.inner
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(392, num_classes, dtype=torch.bfloat16)

    def forward(self, pixels):
        values = torch.relu(self.norm(self.convolution(pixels))).flatten(1)
        values = self.scale * torch.tanh(self.again(torch.tanh(self.inner(values))))
        return self.head(values.to(torch.bfloat16)).float()


def resnet(num_classes: int) -> nn.Module:
    return pytest.importorskip("torchvision").models.resnet18(num_classes=num_classes)


@pytest.mark.parametrize(
    ("make", "nodes", "settings"),
    [
        (Brought, 4, {"server_momentum": 0.5}),
        (resnet, 2, {"num_server_rounds": 2, "batch_size": 32}),
    ],
)
def test_any_model_trains(make, nodes, settings, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(task.NETWORKS, "compact", make)
    settings = settings | {"partitioning": "iid", "fraction_evaluate": 0.0}
    history = in_process(tmp_path, nodes, **settings)
    assert "left out" not in caplog.text
    losses = [entry["evaluate_metrics_serverapp"]["loss"] for entry in history]
    assert np.isfinite(losses).all()
    assert min(losses[1:]) < losses[0]
    arrays = load_file(only_run(tmp_path) / "model.safetensors")
    models.load(make(10), arrays)
    for name, value in arrays.items():
        assert (value > 0).all() or not name.endswith("running_var")
        assert value.dtype == np.int64 or not name.endswith("num_batches_tracked")
