# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""A strategy's state between rounds is found, saved, and restored."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
)

from ..strategies import Keeper, layers, pack, take_all, unpack, weight_key
from .tiny import CLIENT, CLIPPED_CLIENT, play

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def same(one: object, other: object) -> bool:
    """Compare values that hold arrays."""
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict | ArrayRecord):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 0.1, "text", b"bytes", np.float32(2.5), np.array(7), ARRAY),
        ARRAY.astype(np.float16)[:, ::2],
        [ARRAY, {"a": (ARRAY, 1)}],
        {3: ARRAY, "b": []},
        ArrayRecord({"z": Array(ARRAY), "a": Array(np.array(1.0))}),
    ],
    ids=str,
)
def test_values_come_back_as_they_were(value):
    tensors = {}
    packed = pack(value, tensors)
    found = unpack(packed, tensors)
    assert type(found) is type(value)
    assert same(found, value)


def test_only_what_changes_or_holds_arrays_is_kept():
    strategy = DifferentialPrivacyServerSideFixedClipping(FedAvgM(server_momentum=0.5), 0.0, 1.0, 2)
    keeper = Keeper(strategy)
    assert keeper.state() == {
        "strategy": "DifferentialPrivacyServerSideFixedClipping around FedAvgM",
        "kept": {"": {"current_arrays": ArrayRecord()}, "strategy.": {}},
    }
    strategy.strategy.momentum_vector = [ARRAY]
    strategy.clipping_norm = 0.5
    state = keeper.state()
    assert state["kept"][""].keys() == {"current_arrays", "clipping_norm"}
    assert state["kept"]["strategy."].keys() == {"momentum_vector"}

    fresh = DifferentialPrivacyServerSideFixedClipping(FedAvgM(server_momentum=0.5), 0.0, 1.0, 2)
    Keeper(fresh).restore(state)
    assert fresh.clipping_norm == 0.5
    assert same(fresh.strategy.momentum_vector, [ARRAY])


def test_what_cannot_be_saved_is_told_of_once(caplog):
    class Unsaved(FedAvg):
        def aggregate_train(self, server_round, replies):
            self.opened = {server_round}
            return super().aggregate_train(server_round, replies)

    assert play(Unsaved).kept["kept"] == {"": {}}
    told = [r.getMessage() for r in caplog.records if "is not saved" in r.getMessage()]
    assert told == [
        "Unsaved.opened is a set, which is not saved: a resumed run begins it anew; see state_dict"
    ]


def test_a_strategy_may_say_itself_what_it_keeps():
    class Counting(FedAvg):
        def __init__(self) -> None:
            super().__init__()
            self.count, self.of_this_process = 0, 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state.get("count", 0)

        def aggregate_train(self, server_round, replies):
            self.count, self.of_this_process = self.count + 1, self.of_this_process + 1
            return super().aggregate_train(server_round, replies)

    first = play(Counting, num_server_rounds=2)
    assert first.kept["kept"] == {"": {"count": 2}}
    made = []
    resumed = play(lambda: made.append(Counting()) or made[-1], resume_from=str(first.folder))
    assert resumed.kept["kept"] == {"": {"count": 4}}
    assert made[0].of_this_process == 2


def test_another_strategy_is_another_run():
    first = play(FedAvg, num_server_rounds=1)
    with pytest.raises(ValueError, match="the strategy was FedAvg and is FedAdam now; set it back"):
        play(FedAdam, resume_from=str(first.folder))


def test_every_layer_takes_all_nodes_and_federated_testing_stays_off():
    inner = FedAdam(fraction_evaluate=0.0, min_train_nodes=5)
    strategy = DifferentialPrivacyClientSideFixedClipping(inner, 0.1, 1.0, 2)
    take_all(strategy)
    assert [path for path, _ in layers(strategy)] == ["", "strategy."]
    assert (inner.fraction_train, inner.fraction_evaluate, inner.min_train_nodes) == (1.0, 0.0, 1)
    assert weight_key(strategy) == "num-examples"
    assert (
        weight_key(DifferentialPrivacyClientSideFixedClipping(FedAvg(weighted_by_key="n"), 1, 1, 1))
        == "n"
    )


@pytest.mark.parametrize(
    ("wrapper", "client_app"),
    [
        (DifferentialPrivacyServerSideFixedClipping, CLIENT),
        (DifferentialPrivacyClientSideFixedClipping, CLIPPED_CLIENT),
    ],
)
def test_privacy_wrappers_of_flower_run_and_resume(wrapper, client_app):
    """Noise is drawn from NumPy's global generator, seeded here by the round."""

    class Repeatable(wrapper):
        def aggregate_train(self, server_round, replies):
            np.random.seed(server_round)
            return super().aggregate_train(server_round, replies)

    def make():
        return Repeatable(FedAvgM(server_momentum=0.5), 0.1, 0.5, 4)

    whole = play(make, client_app=client_app)
    part = play(make, client_app=client_app, num_server_rounds=2)
    resumed = play(make, client_app=client_app, resume_from=str(part.folder))
    assert resumed.history == whole.history
