"""Runs in one process: with bad clients, privacy, interrupts, and other strategies."""

import math
from functools import partial

import numpy as np
import pytest
from flwr.app import Array, MessageType
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from pytorch_example import server_app
from pytorch_example.kit.flower import RunFailed
from pytorch_example.kit.testing import Faulty, in_process, only_run, results, stop_at

SMALL = {"num_server_rounds": 3, "fraction_train": 1.0, "min_partition_size": 8}
PRIVATE = {"dp__noise_multiplier": 0.1, "dp__clipping_norm": 0.2, "dp__repeatable_noise": True}
FAULTS = ("raise", "nan", "infinity", "shape", "metric", "weight")
PROBLEMS = {
    "raise": "the disk is full",
    "nan": "head.weight holds NaN or infinity",
    "infinity": "head.weight holds NaN or infinity",
    "shape": "head.weight has shape (9, 64), not (10, 64)",
    "metric": "train_loss = nan",
    "weight": "num-examples = 0",
}


def misbehave(message, context, answer):
    """Let the first six clients misbehave from round 2 on, each in its own way."""
    partition, reply = context.node_config["partition-id"], answer()
    training = message.metadata.message_type == MessageType.TRAIN
    if not training or partition >= len(FAULTS) or message.content["config"]["server-round"] < 2:
        return reply
    fault, arrays, metrics = FAULTS[partition], reply.content["arrays"], reply.content["metrics"]
    if fault == "raise":
        raise OSError("the disk is full")
    weights = arrays["head.weight"].numpy().copy()
    if fault in ("nan", "infinity"):
        weights[3, 7] = float(fault)
    arrays["head.weight"] = Array(weights[:-1] if fault == "shape" else weights)
    if fault == "metric":
        metrics["train_loss"] = math.nan
    if fault == "weight":
        metrics["num-examples"] = 0
    return reply


def test_bad_clients_cost_only_their_own_contribution(tmp_path, caplog):
    settings = SMALL | {"num_server_rounds": 2, "wandb__mode": "offline"}
    history = in_process(tmp_path, 8, Faulty(misbehave), **settings)
    for partition, fault in enumerate(FAULTS):
        line = f"Partition {partition} left out of training: "
        [told] = [r.getMessage() for r in caplog.records if r.getMessage().startswith(line)]
        assert PROBLEMS[fault] in told
    assert list(only_run(tmp_path).glob("wandb/offline-run-*/*.wandb"))
    assert history[2]["evaluate_metrics_serverapp"]["loss"] < 10


def test_too_few_replies_end_the_run_and_lose_nothing(tmp_path, caplog):
    with pytest.raises(RunFailed, match="round 2: 2 of 8 training replies can be used"):
        in_process(tmp_path, 8, Faulty(misbehave), **SMALL, min_replies=3)
    folder = only_run(tmp_path)
    assert f"round 1 is safe: resume-from='{folder}'" in caplog.text
    again = SMALL | {"min_replies": 2, "resume_from": str(folder)}
    assert len(in_process(tmp_path, 8, Faulty(misbehave), **again)) == 4


@pytest.mark.parametrize("privacy", [{}, PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("stop", [3, 21, 29])  # while asking, training and testing
def test_interrupted_and_resumed_gives_the_same_results(privacy, stop, tmp_path, caplog):
    """Eight clients are asked once, then train and test in each round; heads come back."""
    settings = SMALL | privacy | {"fraction_evaluate": 0.5}
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


def test_bad_value_ends_the_run_before_it_starts(tmp_path):
    with pytest.raises(ValueError, match=r"momentum = 2\.0 is not valid; allowed: a number in"):
        in_process(tmp_path, 4, momentum=2.0)
    assert not (tmp_path / "outputs").exists()


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
