"""A user's model in the place of ours, in one process; and heads of every kind."""

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.serverapp.strategy import FedAdam
from pytorch_example import client_app, server_app, task
from pytorch_example.kit import models
from pytorch_example.kit.flower import RunFailed
from pytorch_example.kit.processes import cores
from pytorch_example.kit.testing import in_process, only_run
from safetensors.numpy import load_file
from torch import nn

SETTINGS = {
    "num_server_rounds": 4,
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_partition_size": 8,
    "batch_size": 8,
    "server_momentum": 0.5,
}
PRIVATE = {"dp__noise_multiplier": 0.01, "dp__clipping_norm": 2.0, "dp__repeatable_noise": True}


class Brought(nn.Module):
    """A user's own model, in two parts as the README has it."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, pixels):
        return self.head(self.features(pixels))


def convolution(*more: nn.Module) -> nn.Sequential:
    layers = [nn.Conv2d(1, 8, 5, stride=2, padding=2), *more, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


WIDTH = 8 * 7 * 7


class Scaled(nn.Module):
    """A learnable number, and a mask with infinities in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, values):
        return values * self.scale + self.mask[0]


class Tied(nn.Module):
    """An encoder and a decoder with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, 32, bias=False), nn.Linear(32, 32, bias=False)
        self.again = self.up

    def forward(self, values):
        return self.again(torch.tanh(self.up(self.down(values))))


class Half(nn.Module):
    """A model in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = convolution().to(torch.bfloat16)

    def forward(self, pixels):
        return self.inner(pixels.to(torch.bfloat16))


class HalfHead(nn.Linear):
    """A head in bfloat16, and a subclass of `nn.Linear`."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes, dtype=torch.bfloat16)

    def forward(self, values):
        return super().forward(values).float()


def torchvisions(name: str) -> nn.Module:
    """A model of torchvision without its head, for images of one channel."""
    made = getattr(pytest.importorskip("torchvision").models, name)()
    first = made.conv1 if hasattr(made, "conv1") else made.features[0][0]
    first.weight = nn.Parameter(first.weight[:, :1].detach().clone())  # one channel
    first.in_channels = 1
    if hasattr(made, "fc"):
        made.fc = nn.Identity()
    else:
        made.classifier[3] = nn.Identity()
    return made


def linear(width: int = WIDTH, **more) -> nn.Linear:
    return nn.Linear(width, 10, **more)


BROUGHT = {
    "batch norm": lambda: Brought(convolution(nn.BatchNorm2d(8)), linear()),
    "scalar": lambda: Brought(convolution(Scaled()), linear()),
    "tied": lambda: Brought(nn.Sequential(convolution(), Tied()), linear(32)),
    "bfloat16": lambda: Brought(Half(), HalfHead(WIDTH, 10)),
    "float64": lambda: Brought(convolution(nn.BatchNorm2d(8)), linear()).double(),
    "mlp head": lambda: Brought(
        convolution(),
        nn.Sequential(nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.ReLU(), linear(32)),
    ),
    "no bias": lambda: Brought(convolution(), linear(bias=False)),
}


def bring(monkeypatch, make) -> None:
    monkeypatch.setattr(task, "Net", lambda num_classes=10: make())


def check(folder, history) -> dict[str, np.ndarray]:
    """Check that the loss falls and stays a number; return the best model's arrays."""
    losses = [entry["evaluate_metrics_serverapp"]["loss"] for entry in history]
    assert np.isfinite(losses).all()
    assert min(losses[1:]) < losses[0]
    return load_file(only_run(folder) / "model.safetensors")


@pytest.mark.parametrize("privacy", [{}, PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("name", BROUGHT)
def test_any_model_trains(name, privacy, tmp_path, monkeypatch, caplog):
    bring(monkeypatch, BROUGHT[name])
    if name == "float64":
        monkeypatch.setattr(task, "to_pixels", lambda b: b.to(torch.float64).div(255))
    arrays = check(tmp_path, in_process(tmp_path, 6, **SETTINGS, **privacy))
    assert "left out" not in caplog.text
    models.load(BROUGHT[name](), arrays)
    for entry, value in arrays.items():
        if entry.endswith("running_var"):
            assert (value > 0).all()
        if entry.endswith("num_batches_tracked"):
            assert value.dtype == np.int64
            assert value.shape == ()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvisions_models_train(name, tmp_path, monkeypatch, caplog):
    width = {"resnet18": 512, "mobilenet_v3_small": 1024}[name]
    bring(monkeypatch, lambda: Brought(torchvisions(name), linear(width)))
    settings = SETTINGS | {"num_server_rounds": 2, "fraction_evaluate": 0.0, "batch_size": 32}
    settings |= {"local_epochs": 1, "learning_rate": 0.01}
    check(tmp_path, in_process(tmp_path, 2, **settings))
    assert "left out" not in caplog.text


def test_variances_survive_adaptive_steps(tmp_path, monkeypatch):
    bring(monkeypatch, BROUGHT["batch norm"])
    monkeypatch.setattr(server_app, "CustomFedAvg", lambda *arguments: FedAdam(eta=0.05))
    arrays = check(tmp_path, in_process(tmp_path, 4, **SETTINGS))
    assert (arrays["features.1.running_var"] > 0).all()


@pytest.mark.parametrize(
    "head",
    [
        lambda: HalfHead(WIDTH, 10),
        lambda: linear(bias=False),
        lambda: nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), linear(32)),
    ],
    ids=["subclass", "no bias", "mlp"],
)
def test_personal_head_is_a_copy_of_the_models_own(head, run_config):
    model = Brought(convolution(), head())
    made = client_app.load_personal_head(Context(1, 1, {}, RecordDict(), {}), model)
    assert [type(module) for module in made.modules()] == [type(m) for m in model.head.modules()]
    for (name, own), (other, value) in zip(
        made.state_dict().items(), model.head.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(own, value)
        assert own.data_ptr() != value.data_ptr()


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        (lambda: nn.LazyBatchNorm2d(), "features.1.weight has no shape yet"),
        (lambda: Broken(torch.complex64), "is torch.complex64"),
        (lambda: Broken(torch.float32), "features.1.weight holds NaN or infinity before the first"),
    ],
    ids=["lazy", "complex", "nan"],
)
def test_what_cannot_be_averaged_is_refused_by_name(layer, problem, tmp_path, monkeypatch):
    bring(monkeypatch, lambda: Brought(convolution(layer()), linear()))
    with pytest.raises((ValueError, RunFailed), match=problem):
        in_process(tmp_path, 2, **SETTINGS)


class Broken(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), torch.nan, dtype=dtype))

    def forward(self, values):
        return values


def test_a_fault_that_all_have_ends_the_run_after_the_first_of_them(tmp_path, monkeypatch, caplog):
    def train(*arguments, **settings):
        raise ValueError("no layer 7 here")

    monkeypatch.setattr(task, "train", train)
    with pytest.raises(RunFailed, match=r"(\d) of \1 clients fail alike: .*no layer 7 here"):
        in_process(tmp_path, 40, **SETTINGS | {"fraction_evaluate": 0.0})
    assert sum("Traceback" in record.getMessage() for record in caplog.records) <= max(4, cores())
