# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Clients of a population are played by any node, and give what nodes of their own would give."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, MessageType
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from ..clients import CommonFault, Draw
from ..flower import partition_id
from ..population import Everyone
from ..population import play as plays
from .tiny import CLIENT, play


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Counting(ClientApp):
    """The tiny app's ClientApp; counts messages by the node that gets them."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[int, str]] = []

    def __call__(self, message, context):
        self.got.append((context.node_id, message.metadata.message_type))
        return CLIENT(message, context)


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam])
@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_population_gives_the_results_of_as_many_nodes(strategy, nodes):
    shares = {"fraction_train": 0.7, "fraction_evaluate": 0.5}
    each = play(strategy, nodes=20, **shares)
    app = Counting()
    played = play(strategy, nodes=nodes, client_app=app, population=20, **shares)
    assert played.history == each.history
    assert all(np.array_equal(played.arrays[name], each.arrays[name]) for name in each.arrays)
    assert {kind for _, kind in app.got} == {MessageType.TRAIN, MessageType.EVALUATE}
    # The first messages of a kind go to a few clients before the others.
    assert len(app.got) <= 4 * 2 * nodes + 2 * 4
    assert len({node for node, _ in app.got}) == nodes


def test_a_million_clients_are_numbers_until_they_are_drawn():
    run = play(nodes=2, population=1_000_000, fraction_train=1e-5, fraction_evaluate=1e-5)
    drawn = [client["partition"] for entry in run.history[1:] for client in entry["clients"]]
    assert len(set(drawn)) == len(drawn) == 4 * 2 * 10
    assert 0.2e6 < np.mean(drawn) < 0.8e6
    assert run.num_partitions == 1_000_000


def test_draw_of_many_repeats_and_varies():
    draw, everyone = Draw(100, 0, at_least=2, seed=42), Everyone(1_000_000)
    first = draw(everyone, 1, MessageType.TRAIN)
    assert first == sorted(set(first)) == draw(everyone, 1, MessageType.TRAIN)
    assert len(first) == 100
    assert first != draw(everyone, 2, MessageType.TRAIN)
    with pytest.raises(KeyError):
        everyone[1_000_000]


def test_a_clients_fault_costs_its_own_contribution(caplog):
    class Failing(ClientApp):
        def __call__(self, message, context):
            return plays(message, context, self.answer)

        def answer(self, message, context):
            if partition_id(context) in (3, 11):
                raise OSError(f"no disk {partition_id(context)}")
            return CLIENT(message, context)

    run = play(nodes=2, client_app=Failing(), population=12, fraction_evaluate=0.0)
    clients = [[c["partition"] for c in entry["clients"]] for entry in run.history[1:]]
    assert clients == [[i for i in range(12) if i not in (3, 11)]] * 4
    assert "Partition 11 left out of training: OSError: no disk 11" in caplog.text


def keeps_a_state(message, context, app):
    context.state["head"] = ConfigRecord({"a": 1})
    return CLIENT(message, context)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda m, c: plays(m, c, lambda m, c: keeps_a_state(m, c, CLIENT)), "the app keeps head"),
        (lambda m, c: CLIENT(without_names(m), c), "plays no clients of a population"),
    ],
)
def test_an_app_that_cannot_play_is_told_why(answer, told):
    class Other(ClientApp):
        def __call__(self, message, context):
            return answer(message, context)

    with pytest.raises(CommonFault, match=f"4 of 4 clients fail alike: .*{told}"):
        play(nodes=2, client_app=Other(), population=12)


def without_names(message):
    message.content.pop("played", None)
    return message


def test_another_population_is_another_run():
    run = play(nodes=2, population=12)
    with pytest.raises(ValueError, match=r"resume-from: population was 12 .* and is 13 now"):
        play(nodes=2, population=13, resume_from=str(run.folder))
    resumed = play(nodes=3, population=12, num_server_rounds=5, resume_from=str(run.folder))
    assert resumed.history == play(nodes=1, population=12, num_server_rounds=5).history
