# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Rounds of a tiny app: draws, replies that are left out, stops and resumes."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM
from safetensors.numpy import load_file

from .. import clients
from ..clients import Clients, CommonFault, Draw, TooFewReplies
from ..in_process import InProcessGrid, make_nodes
from ..processes import cores
from ..replies import cause
from ..run import CHECKPOINT, CONFIG, CURVES, MODEL, RESULTS
from .tiny import CLIENT, RUN_CONFIG, Config, play


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Troubled(ClientApp):
    """The tiny ClientApp, of which some partitions answer training badly."""

    def __init__(self, **faults: str) -> None:
        super().__init__()
        self.faults = {int(name[1:]): fault for name, fault in faults.items()}

    def __call__(self, message, context):
        fault = self.faults.get(context.node_config["partition-id"])
        reply = CLIENT(message, context)
        if fault is None or message.metadata.message_type != MessageType.TRAIN:
            return reply
        if fault == "raise":
            raise OSError("the disk is full")
        arrays, metrics = reply.content["arrays"], reply.content["metrics"]
        weight = arrays["weight"].numpy()
        match fault:
            case "nan" | "infinity":
                arrays["weight"] = Array(weight * np.float32(fault))
            case "shape":
                arrays["weight"] = Array(weight[1:])
            case "name":
                arrays["other"] = arrays.pop("weight")
            case "enormous":
                arrays["weight"] = Array(weight + np.float32(1e9))
            case "loss":
                metrics["train_loss"] = float("nan")
            case "examples":
                metrics["num-examples"] = 0
            case "words":
                arrays["weight"] = Array(np.full((2, 3), "a"))
            case "garbage":
                arrays["weight"] = Array("float32", (2, 3), "numpy.ndarray", b"garbage")
            case "integers":
                arrays["weight"] = Array(weight.astype(np.int64))
            case "surprise":
                metrics["surprise"] = 1.0
        return reply


def test_the_number_of_partitions_is_checked_once():
    config, seen = Config.from_run_config(RUN_CONFIG), []
    grid = InProcessGrid(CLIENT, make_nodes(4, 1, RUN_CONFIG), 1, 1)
    all_clients = Clients(grid, config, check=seen.append)
    for _ in range(2):
        assert sorted(all_clients.connected()) == [0, 1, 2, 3]
    assert seen == [4]


PROBLEMS = {
    "raise": "the disk is full",
    "nan": "weight holds NaN or infinity",
    "infinity": "weight holds NaN or infinity",
    "shape": "weight has shape (1, 3), not (2, 3)",
    "name": "its arrays are not named like the global model's",
    "enormous": "times as long as the median",
    "words": "weight is <U1, not float32",
    "garbage": "its arrays cannot be read",
    "integers": "weight is int64, not float32",
    "loss": "train_loss = nan",
    "examples": "num-examples = 0",
    "surprise": "its metrics are ['num-examples', 'surprise', 'train_loss'], the others'",
}


def test_a_run_leaves_its_files_and_says_where(folder, caplog):
    caplog.set_level(logging.INFO, "flwr")
    run = play()
    assert {path.name for path in run.folder.iterdir()} == {
        *(CONFIG, RESULTS, CURVES, CHECKPOINT, MODEL)
    }
    logged = [record.getMessage() for record in caplog.records]
    told = [line for line in logged if line.startswith("Outputs: ")]
    assert told == [f"Outputs: {run.folder}"] * 2
    assert logged[-1] == told[-1]
    history = json.loads((run.folder / RESULTS).read_text())
    assert [entry["round"] for entry in history] == [0, 1, 2, 3, 4]
    assert history[1] == {
        "round": 1,
        "train_metrics": {"train_loss": 2.0},  # (0 * 1 + 1 * 2 + 2 * 3 + 3 * 4) / 10
        "evaluate_metrics_clientapp": {"eval_loss": 1.5},
        "evaluate_metrics_serverapp": {"accuracy": 0.1, "loss": 9.0},  # six of 0.5 * 3
        "clients": [
            {"partition": p, "train_loss": p, "train_examples": p + 1}
            | {"eval_loss": p, "eval_examples": 1}
            for p in range(4)
        ],
    }


@pytest.mark.parametrize("fault", PROBLEMS)
def test_a_bad_client_costs_only_its_own_contribution(fault, caplog):
    run = play(client_app=Troubled(p1=fault), num_server_rounds=1)
    line = "Partition 1 left out of training: "
    [told] = [r.getMessage() for r in caplog.records if r.getMessage().startswith(line)]
    assert PROBLEMS[fault] in told
    trained = [c["partition"] for c in run.history[1]["clients"] if "train_loss" in c]
    assert trained == [0, 2, 3]
    # Without it: 0.5 * (1 * 1 + 3 * 3 + 4 * 4) / 8, six times
    assert run.history[1]["evaluate_metrics_serverapp"]["loss"] == pytest.approx(9.75)


def test_too_few_replies_end_the_run_and_lose_nothing(caplog):
    bad = Troubled(p0="nan", p1="raise", p2="shape")
    with pytest.raises(TooFewReplies, match="round 1: 1 of 4 training replies can be used, min-re"):
        play(client_app=bad)
    [folder] = Path.cwd().glob("outputs/*/*")
    assert f"round 0 is safe: resume-from='{folder}'" in caplog.text
    run = play(client_app=bad, resume_from=str(folder), min_replies=1)
    assert run.round == 4
    assert run.folder == folder


def test_a_simulation_with_too_few_nodes_ends_and_says_what_to_set():
    with pytest.raises(TooFewReplies, match=r"1 nodes, min-replies = 2: .* or set min-replies=1"):
        play(nodes=1, round_timeout=3600.0)
    assert play(nodes=1, min_replies=1).round == 4


def test_real_nodes_are_waited_for_and_it_is_said_again(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "flwr")
    monkeypatch.setattr(clients, "is_simulated", lambda grid: False)
    monkeypatch.setattr(clients, "TELL_EVERY", 0.3)
    with pytest.raises(TooFewReplies, match=r"1 nodes connected within round-timeout = 2.5 s, min"):
        play(nodes=1, round_timeout=2.5)
    told = [r.getMessage() for r in caplog.records if "Waiting for nodes" in r.getMessage()]
    assert len(told) >= 3
    assert told[0] == "Waiting for nodes: 1 connected, min-replies = 2"


def test_another_number_of_partitions_is_refused_on_resume(folder):
    run = play(nodes=4, num_server_rounds=2)
    with pytest.raises(ValueError, match=r"4 partitions in .* and is in 5 now; start 4 SuperNodes"):
        play(nodes=5, resume_from=str(run.folder))
    assert play(nodes=4, resume_from=str(run.folder)).history == play(nodes=4).history


class Failing(ClientApp):
    """The tiny ClientApp, of which some partitions fail."""

    def __init__(self, kind: str, partitions: range, text: str = "no layer {0}") -> None:
        super().__init__()
        self.kind, self.partitions, self.text, self.asked = kind, partitions, text, []

    def __call__(self, message, context):
        partition = context.node_config["partition-id"]
        self.asked.append((message.metadata.message_type, partition))
        if message.metadata.message_type == self.kind and partition in self.partitions:
            raise OSError(self.text.format(partition))
        return CLIENT(message, context)


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_fault_that_all_clients_have_ends_the_run_after_a_few(kind, caplog):
    few, app = max(4, cores()), Failing(kind, range(100))
    with pytest.raises(CommonFault, match=rf"{few} of {few} clients fail alike: .*no layer \d+"):
        play(nodes=100, client_app=app)
    assert sum(asked == kind for asked, _ in app.asked) == few
    assert sum("Traceback" in record.getMessage() for record in caplog.records) == few


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_fault_that_some_clients_have_costs_only_their_contribution(kind):
    run = play(nodes=12, client_app=Failing(kind, range(6)), num_server_rounds=1)
    key = {"query": "train_loss", "train": "train_loss", "evaluate": "eval_loss"}[kind]
    assert [c["partition"] for c in run.history[1]["clients"] if key in c] == list(range(6, 12))


def test_different_faults_of_all_clients_are_no_common_fault():
    app = Failing("train", range(12), "{1[0]}")
    app.text = type("Text", (), {"format": lambda self, p: "abcdefghijkl"[p]})()
    with pytest.raises(TooFewReplies, match=r"0 of 12 training .* most often: OSError: a"):
        play(nodes=12, client_app=app)


def test_the_draw_repeats_varies_and_knows_shares_and_numbers():
    draw, nodes = Draw(0.25, 25, at_least=2, seed=42), list(range(50))
    first = draw(nodes, 1, MessageType.TRAIN)
    assert first == draw(nodes, 1, MessageType.TRAIN)
    assert len(set(first)) == 12
    assert first != draw(nodes, 2, MessageType.TRAIN)
    assert len(draw(nodes, 1, MessageType.EVALUATE)) == 25
    assert draw([4, 7], 1, MessageType.TRAIN) == [4, 7]


def test_waves_change_nothing_but_the_pace():
    assert play(nodes=9, waves=2).history == play(nodes=9).history


def test_no_federated_evaluation_leaves_the_central_one():
    run = play(fraction_evaluate=0.0)
    assert run.history[2]["evaluate_metrics_clientapp"] == {}
    assert run.history[2]["evaluate_metrics_serverapp"]["loss"] > 0


@pytest.mark.parametrize(("name", "sign"), [("accuracy", 1), ("loss", -1)])
def test_rounds_without_a_better_score_end_the_run_on_resume_too(name, sign, caplog):
    caplog.set_level(logging.INFO, "flwr")
    scores = [0.1, 0.3, 0.3, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4]

    def test(server_round, arrays):
        return MetricRecord({name: sign * scores[server_round]})

    run = play(evaluate=test, num_server_rounds=8, stop_after=2)
    logged = [record.getMessage() for record in caplog.records]
    told = "Stopped after round 3 of 8: no better score in stop-after = 2 rounds"
    assert logged[-2:] == [told, f"Outputs: {run.folder}"]
    again = {"evaluate": test, "num_server_rounds": 8, "resume_from": str(run.folder)}
    assert play(**again, stop_after=2).round == 3
    assert play(**again, stop_after=3).round == 7
    assert play(**again, stop_after=0).round == 8


class Stop(BaseException):
    """A kill, which no `except Exception` sees."""


@pytest.mark.parametrize("strategy", [FedAvg, lambda: FedAvgM(server_momentum=0.5), FedAdam])
@pytest.mark.parametrize("at", ["training", "testing", "central", "before the first round"])
def test_stopped_anywhere_and_resumed_is_the_same_run(strategy, at):
    whole = play(strategy)

    class Killed(ClientApp):
        def __call__(self, message, context):
            kind, content = message.metadata.message_type, message.content
            round_now = content["config"]["server-round"] if "config" in content else 0
            if round_now == 3 and kind == {"training": "train", "testing": "evaluate"}.get(at):
                raise Stop
            return CLIENT(message, context)

    def evaluate(server_round, arrays):
        if server_round == {"central": 3, "before the first round": 0}.get(at):
            raise Stop

    with pytest.raises(Stop):
        play(strategy, client_app=Killed(), evaluate=evaluate)
    [folder] = {path.parent for path in Path.cwd().glob("outputs/*/*/config.json")} - {whole.folder}
    resumed = play(strategy, resume_from=str(folder))
    assert resumed.history == whole.history
    assert all(np.array_equal(resumed.arrays[name], whole.arrays[name]) for name in whole.arrays)
    assert (folder / RESULTS).read_bytes() == (whole.folder / RESULTS).read_bytes()
    model, expected = (load_file(run.folder / MODEL) for run in (resumed, whole))
    assert all(np.array_equal(model[name], expected[name]) for name in expected)


def test_a_strategys_own_share_of_the_clients_is_refused():
    with pytest.raises(ValueError, match=r"FedAvg\(fraction_train=0.5\): the loop draws"):
        play(lambda: FedAvg(fraction_train=0.5))


def test_a_strategy_that_aggregates_nothing_keeps_the_model():
    class Nothing(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, None

    assert play(Nothing).history[4]["evaluate_metrics_serverapp"]["loss"] == 0.0


def test_a_strategy_sees_only_good_replies_by_partition():
    seen = []

    class Watching(FedAvg):
        def aggregate_train(self, server_round, replies):
            seen.append([reply.content["metrics"]["num-examples"] for reply in replies])
            return super().aggregate_train(server_round, replies)

    play(Watching, nodes=6, client_app=Troubled(p2="nan"), num_server_rounds=1)
    assert seen == [[1, 2, 4, 5, 6]]


RAY = """<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'ray::ClientAppActor.run()
  File "task.py", line 82, in train
    raise ValueError("no layer 7")
ValueError: no layer 7
in net

The above exception was the direct cause of the following exception:

  File "ray_actor.py", line 65, in run
    raise ClientAppException(str(ex)) from ex
flwr.clientapp.client_app.ClientAppException:\x20
Exception ClientAppException occurred. Message: no layer 7
in net'>"""


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (RAY, "ValueError: no layer 7 in net"),
        ("<class 'OSError'>:<'the disk\nis full'>", "OSError: the disk is full"),
        ("Node Unavailable", "Node Unavailable"),
    ],
)
def test_a_clients_error_is_told_in_a_line(reason, expected):
    reply = Message(Error(0, reason), reply_to=Message(RecordDict(), 1, "train"))
    assert cause(reply) == expected
