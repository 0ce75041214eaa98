# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Arrays of any model: sent and loaded, moved by a strategy, averaged, or kept."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower
from torch import nn

from .. import models
from ..batches import batches
from ..replies import to_numpy
from .tiny import CLIENT, CLIPPED_CLIENT, MODEL, play

STRATEGIES = {
    "FedAvg": flower.FedAvg,
    "FedAvgM": partial(flower.FedAvgM, server_momentum=0.9),
    "FedAdam": partial(flower.FedAdam, eta=0.3),
    "FedYogi": partial(flower.FedYogi, eta=0.3),
    "FedAdagrad": partial(flower.FedAdagrad, eta=0.3),
    "FedMedian": flower.FedMedian,
    "FedTrimmedAvg": flower.FedTrimmedAvg,
    "Krum": partial(flower.Krum, num_malicious_nodes=1),
    "Bulyan": partial(flower.Bulyan, num_malicious_nodes=0),
    "FedProx": partial(flower.FedProx, proximal_mu=0.1),
    "private": lambda: flower.DifferentialPrivacyServerSideFixedClipping(
        flower.FedAvgM(server_momentum=0.9), 1e-12, 1e6, 4
    ),
}
BUFFERS = {
    "mean": np.zeros(2, np.float32),
    "variance": np.array(1.0),
    "count": np.array(60),
    "seen": np.array([False, True]),
}
NUMBERS = {"scale": np.array(2.0, np.float32), "half": np.ones(3, np.float16)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", STRATEGIES)
def test_any_strategy_moves_what_is_trained_and_nothing_else(name):
    rounds = []
    run = play(
        STRATEGIES[name],
        model=MODEL | NUMBERS | BUFFERS,
        buffers=BUFFERS,
        evaluate=lambda server_round, arrays: rounds.append(to_numpy(arrays)),
        local__learning_rate=0.5,
    )
    for before, after in pairwise(rounds):
        # Four clients, with 1 to 4 examples, pull towards 1 to 4: their mean is half way to 3.
        assert after["mean"] == pytest.approx((before["mean"] + 3) / 2)
        assert after["variance"] == pytest.approx((before["variance"] + 3) / 2)
        assert after["count"] == before["count"] + 4
        assert after["count"].dtype == np.int64
        assert after["seen"].dtype == bool
        assert after["scale"] != before["scale"]
        assert after["half"].dtype == np.float32
    shapes = {name: value.shape for name, value in (MODEL | NUMBERS | BUFFERS).items()}
    assert {name: value.shape for name, value in run.arrays.items()} == shapes


def test_flowers_clipping_takes_numbers_without_dimensions():
    def strategy() -> flower.Strategy:
        wrapper = flower.DifferentialPrivacyClientSideFixedClipping
        return wrapper(flower.FedAvg(), 1e-12, 1e6, 4)

    run = play(strategy, client_app=CLIPPED_CLIENT, model=MODEL | {"scale": NUMBERS["scale"]})
    plain = play(client_app=CLIENT, model=MODEL | {"scale": NUMBERS["scale"]})
    assert run.arrays["scale"] == pytest.approx(3 - 0.5**4, abs=1e-5)
    assert plain.arrays["scale"].shape == run.arrays["scale"].shape == ()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("weight", np.array([1.0, np.nan], np.float32), "weight holds NaN or infinity before the"),
        ("words", np.array(["a"]), "words is <U1, which has no average"),
        ("phase", np.array([1j]), "phase is complex128, which has no average"),
    ],
)
def test_a_model_that_cannot_be_averaged_is_refused_by_name(name, value, problem):
    with pytest.raises(ValueError, match=problem):
        play(model=MODEL | {name: value})


class Everything(nn.Module):
    """A model with every kind of entry."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight  # tied
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.norm = nn.BatchNorm1d(3)
        self.half = nn.Linear(3, 2, dtype=torch.bfloat16)
        self.register_buffer("passing", torch.zeros(1), persistent=False)


def test_a_model_comes_back_as_it_was():
    torch.manual_seed(1)
    model, other = Everything(), Everything()
    record = models.to_record(model)
    assert "second.weight" not in record
    assert {array.dtype for array in record.values()} == {"float32", "int64"}
    models.load(other, record)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert other.second.weight is other.first.weight
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert models.buffers(model) == {f"norm.{name}" for name in statistics}
    record["scale"] = Array(np.float32([3.0]))  # with a dimension, as in messages
    models.load(other, record)
    assert other.scale.item() == 3.0
    with pytest.raises(RuntimeError, match=r"norm\.bias"):
        models.load(other, ArrayRecord({n: a for n, a in record.items() if n != "norm.bias"}))


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (nn.LazyLinear(3), "the model's weight has no shape yet"),
        (nn.Linear(2, 2, dtype=torch.complex64), "the model's weight is torch.complex64"),
        (nn.Linear(2, 2, device="meta"), "the model's weight is not an ordinary tensor"),
    ],
)
def test_entries_that_cannot_travel_are_named(model, problem):
    with pytest.raises(ValueError, match=problem):
        models.to_record(model)


def test_a_last_batch_is_never_a_single_row():
    assert [len(rows) for rows in batches(33, 16)] == [16, 17]
    assert [len(rows) for rows in batches(34, 16)] == [16, 16, 2]
    assert [len(rows) for rows in batches(1, 16)] == [1]
    assert [len(rows) for rows in batches(3, 1)] == [1, 1, 1]
    assert sorted(torch.cat(batches(33, 16)).tolist()) == list(range(33))
