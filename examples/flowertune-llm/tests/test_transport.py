"""Adapters on the wire: encodings, error feedback, and the outer step."""

import numpy as np
import pytest
import torch
from flowertune_llm.client_files import LeftOut
from flowertune_llm.encoding import BLOCK, LEVELS, decode, encode, rounded, size
from flowertune_llm.kit.replies import to_numpy, to_record
from flowertune_llm.strategy import DiLoCo
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg


def arrays(seed: int = 0, size: float = 1.0) -> dict[str, np.ndarray]:
    """Matrices of an adapter, some of which do not fill their last block."""
    draw = np.random.default_rng(seed)
    shapes = {"A": (16, 576), "B": (577, 3), "short": (5,), "number": ()}
    return {n: np.asarray(size * draw.standard_normal(s), np.float32) for n, s in shapes.items()}


def test_sixteen_bits_halve_the_bytes():
    full = encode(arrays(), "float32")
    assert all((decode(full)[name] == value).all() for name, value in arrays().items())
    for dtype, error in (("bfloat16", 2**-8), ("float16", 2**-11)):
        half = encode(arrays(), dtype)
        assert size(half) == pytest.approx(size(full) / 2, rel=0.05)
        for name, value in decode(half).items():
            np.testing.assert_allclose(value, arrays()[name], rtol=error, atol=1e-7)


@pytest.mark.parametrize(("dtype", "bits"), [("int8", 8.25), ("int4", 4.25)])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-5, 1.0, 1e30])
def test_whole_numbers_are_off_by_half_a_scale_at_most(dtype, bits, magnitude):
    sent = arrays(size=magnitude)
    record = encode(sent, dtype)
    assert size(ArrayRecord({"A": record["A"]})) * 8 == bits * sent["A"].size
    for name, value in decode(record).items():
        assert (value.shape, value.dtype) == (sent[name].shape, np.float32)
        flat = np.pad(sent[name].ravel(), (0, -sent[name].size % BLOCK)).reshape(-1, BLOCK)
        most = np.abs(flat).max(axis=1).repeat(BLOCK)[: sent[name].size]
        error = np.abs(value - sent[name]).ravel()
        assert (error <= most / LEVELS[dtype] / 2 * 1.01).all()


@pytest.mark.parametrize("dtype", LEVELS)
def test_zeros_nothing_and_no_numbers(dtype):
    """NaN and infinity make their whole block NaN, so the server leaves the reply out."""
    odd = {"zeros": np.zeros((3, 70), np.float32), "empty": np.zeros((0, 4), np.float32)}
    odd |= {name: np.ones(BLOCK, np.float32) for name in ("nan", "inf")}
    odd["nan"][3], odd["inf"][3] = np.nan, np.inf
    got = decode(encode(odd, dtype))
    for name in ("zeros", "empty"):
        assert np.array_equal(got[name], odd[name])
    assert np.isnan(got["nan"]).all()
    assert np.isnan(got["inf"]).all()


@pytest.mark.parametrize("dtype", LEVELS)
def test_too_few_bytes_are_refused(dtype):
    good = encode(arrays(), dtype)["A"]
    for shape, data in (((17, 576), good.data), (good.shape, good.data[:-1]), (good.shape, b"")):
        with pytest.raises(ValueError):  # noqa: PT011
            decode(ArrayRecord({"A": Array(dtype, shape, "blocks", data)}))


@pytest.mark.parametrize("dtype", LEVELS)
def test_nothing_that_rounding_leaves_out_is_lost(dtype):
    """Without feedback, fifty small changes beside a large one would be rounded to 0."""
    change = {"A": np.full(BLOCK, 0.001, np.float32)}
    change["A"][0] = 1.0
    total, left_out, alone = 0.0, {}, 0.0
    for _ in range(50):
        record, left_out = rounded(change, left_out, dtype)
        total += decode(record)["A"]
        alone += decode(encode(change, dtype))["A"]
    step = 1.0 / LEVELS[dtype]
    np.testing.assert_allclose(total, 50 * change["A"], atol=0.6 * step)
    np.testing.assert_allclose(total + left_out["A"], 50 * change["A"], rtol=1e-5)
    assert not alone[1:].any()


def test_interrupted_round_finds_what_was_left_out_before_it(tmp_path):
    left = LeftOut(tmp_path / "client")
    assert left.before(1) == {}
    for server_round in (1, 4, 4, 6):
        left.keep(server_round, {"A": np.full(2, server_round, np.float32)})
        assert left.before(server_round + 1)["A"][0] == server_round
    assert left.before(6)["A"][0] == 4
    assert left.rounds() in ([4, 6], [6, 4])


def reply(values: dict[str, np.ndarray], weight: int) -> Message:
    content = {"arrays": to_record(values), "metrics": MetricRecord({"num-examples": weight})}
    return Message(RecordDict(content), 1, "train")


class TwoNodes:
    """A grid with two node ids, which is all that the strategy asks for."""

    def get_node_ids(self) -> list[int]:
        return [1, 2]


@pytest.mark.parametrize(("rate", "momentum"), [(1.0, 0.0), (0.7, 0.9)])
def test_outer_step_is_sgd_with_nesterov_momentum(rate, momentum):
    """It equals PyTorch's, on the negative of FedAvg's mean change, with a resume in between.

    With a rate of 1 and no momentum it is FedAvg.
    """
    ours, fedavg = DiLoCo(rate, momentum), FedAvg()
    current = to_record(arrays())
    parameter = torch.nn.Parameter(torch.from_numpy(arrays()["A"].copy()))
    sgd = torch.optim.SGD([parameter], rate, momentum, nesterov=momentum > 0)
    for server_round in range(1, 5):
        list(ours.configure_train(server_round, current, ConfigRecord(), TwoNodes()))
        replies = [
            reply({n: v + moved[n] for n, v in to_numpy(current).items()}, weight)
            for weight, moved in ((1, arrays(server_round)), (3, arrays(-server_round % 99)))
        ]
        mean, _ = fedavg.aggregate_train(server_round, replies)
        parameter.grad = parameter.detach() - torch.from_numpy(mean["A"].numpy())
        sgd.step()
        current, _ = ours.aggregate_train(server_round, replies)
        np.testing.assert_allclose(current["A"].numpy(), parameter.detach(), rtol=1e-5, atol=1e-6)
        if momentum == 0:
            np.testing.assert_allclose(current["A"].numpy(), mean["A"].numpy(), atol=1e-6)
        resumed = DiLoCo(rate, momentum)
        resumed.load_state_dict(ours.state_dict())
        ours = resumed
