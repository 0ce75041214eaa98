"""Runs in one process: private, interrupted, with other strategies in place of ours."""

from functools import partial

import numpy as np
import pytest
from flwr.app import MessageType
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from pytorch_example import server_app
from pytorch_example.kit.testing import Faulty, in_process, only_run, results, stop_at

SMALL = {"num_server_rounds": 3, "fraction_train": 1.0, "min_partition_size": 8}
PRIVATE = {"dp__noise_multiplier": 0.1, "dp__clipping_norm": 0.2, "dp__repeatable_noise": True}


@pytest.mark.parametrize("stop", [3, 21, 29])  # while asking, training and testing
def test_private_run_interrupted_and_resumed_is_the_same(stop, tmp_path, caplog):
    """Eight clients, asked once, then trained and tested in each round; heads come back."""
    settings = SMALL | PRIVATE | {"fraction_evaluate": 0.5}
    whole = in_process(tmp_path / "whole", 8, **settings)
    with pytest.raises(KeyboardInterrupt):
        in_process(tmp_path / "stopped", 8, stop_at(stop), **settings)
    folder = str(only_run(tmp_path / "stopped"))
    assert in_process(tmp_path / "stopped", 8, **settings, resume_from=folder) == whole
    assert "left out" not in caplog.text


def test_private_noise_fits_what_is_told(tmp_path, caplog):
    caplog.set_level("INFO", "flwr")
    in_process(tmp_path, 8, **SMALL | PRIVATE | {"fraction_train": 0.5})
    assert "central DP noise with 0.0050 stdev added" in caplog.text  # 0.1 * 0.2 / 4


def test_resume_with_another_config_names_the_key(tmp_path):
    in_process(tmp_path, 4, **SMALL | {"num_server_rounds": 1})
    folder = only_run(tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    message = f"dataset was 'digits' in {folder} and is 'nowhere' now; set it back"
    with pytest.raises(ValueError, match=message):
        in_process(tmp_path, 4, **SMALL, resume_from=str(folder), dataset="nowhere")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def repeatable(wrapper: type[Strategy]) -> Strategy:
    """Return one of Flower's privacy wrappers, with noise that repeats."""

    class Repeatable(wrapper):
        def aggregate_train(self, server_round, replies):
            np.random.seed(server_round)
            return super().aggregate_train(server_round, replies)

    return Repeatable(flower.FedAvgM(server_momentum=0.5), 0.01, 1.0, 6)


def clip(message, context, answer):
    """Clip an update by Flower's mod, if its wrapper asks for it."""
    if message.metadata.message_type != MessageType.TRAIN:
        return answer()
    return fixedclipping_mod(message, context, lambda message, context: answer())


STRATEGIES = {
    "FedAvg": flower.FedAvg,
    "FedAvgM": partial(flower.FedAvgM, server_momentum=0.5),
    "FedAdam": partial(flower.FedAdam, eta=0.01, beta_1=0.9, beta_2=0.99),
    "FedYogi": partial(flower.FedYogi, eta=0.01, beta_1=0.9, beta_2=0.99),
    "FedMedian": flower.FedMedian,
    "FedTrimmedAvg": flower.FedTrimmedAvg,
    "Krum": partial(flower.Krum, num_malicious_nodes=1),
    "FedProx": partial(flower.FedProx, proximal_mu=0.1),
    "server-side": partial(repeatable, flower.DifferentialPrivacyServerSideFixedClipping),
    "client-side": partial(repeatable, flower.DifferentialPrivacyClientSideFixedClipping),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_flowers_strategies_run_and_resume_in_place_of_ours(name, tmp_path, monkeypatch):
    monkeypatch.setattr(server_app, "CustomFedAvg", lambda *arguments: STRATEGIES[name]())
    client_app = Faulty(clip) if name == "client-side" else None
    settings = SMALL | {"personal_head": name != "client-side"}
    whole = in_process(tmp_path / "whole", 6, client_app, **settings)
    assert [entry["round"] for entry in whole] == [0, 1, 2, 3]
    losses = [entry["evaluate_metrics_serverapp"]["loss"] for entry in whole]
    assert losses[3] < losses[0] or name == "Krum"  # Krum takes one client's model

    part = tmp_path / "part"
    in_process(part, 6, client_app, **settings | {"num_server_rounds": 2})
    resume = {"resume_from": str(only_run(part))}
    assert in_process(part, 6, client_app, **settings, **resume) == whole
    assert results(part) == whole
