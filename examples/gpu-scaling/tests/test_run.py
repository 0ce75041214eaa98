"""The README's command on Ray, with the number that it promises; and runs in one process."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
from flwr.app import Array, MessageType
from gpu_scaling import client_app, executors, task
from gpu_scaling.dataset import Source
from gpu_scaling.kit.flower import RunFailed
from gpu_scaling.kit.testing import (
    APP,
    BIN,
    Faulty,
    copy,
    in_process,
    kill,
    offline,
    only_run,
    posix_only,
    results,
    run,
    run_as_the_readme_says,
    simulation,
    start,
    without_wing,
)

# The number that the README promises, of digits offline.
OFFLINE_ACCURACY, OFFLINE_TOLERANCE = 0.947, 0.015

pytestmark = posix_only


def processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_FOLDER") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def nothing_left(folder: Path, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while processes_of(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The offline run as the README has it, uninterrupted: where it stood, and its log."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_as_the_readme_says(folder, "model.safetensors")


def test_run_leaves_what_the_readme_says_and_no_process(finished):
    folder, log = finished
    path = only_run(folder)
    assert "Asking 4 of 100 nodes for their partition" in log
    assert re.search(r"Pool: \d+ workers?, each takes up to \d+ MiB of", log)
    history = results(folder)
    assert [len(entry["clients"]) >= 20 for entry in history] == [False] + [True] * 10
    accuracy = history[-1]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(OFFLINE_ACCURACY, abs=OFFLINE_TOLERANCE)
    model = task.build(10, 0)
    model.load_state_dict(safetensors.torch.load_file(path / "model.safetensors"))
    best = max(entry["evaluate_metrics_serverapp"]["accuracy"] for entry in history)
    test = Source("digits", 0, "iid", 1.0, 1, 0).load("test")
    assert task.evaluate(model, *test)[1] == pytest.approx(best, abs=1e-6)
    assert nothing_left(folder)


@pytest.mark.thorough
def test_killed_and_resumed_gives_the_same_results(finished, tmp_path):
    """SIGKILL in the middle of a round: the pool ends, too. Then resume."""
    command = simulation(APP, APP / "offline.toml")
    kill(start(command, tmp_path, until=lambda log: "[ROUND 3/10]" in log))
    assert nothing_left(tmp_path)
    assert len(results(tmp_path)) in (3, 4)

    config = offline(resume_from=str(only_run(tmp_path)), num_server_rounds=5)
    done = run(simulation(APP, config), tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Resuming after round" in done.stdout
    assert results(tmp_path) == results(finished[0])[:6]


SMALL = {"num_server_rounds": 2, "clients_to_train": 5, "clients_to_evaluate": 4}


@pytest.fixture(autouse=True)
def own_pool(monkeypatch):
    """Have the pool of a run in this process end soon after it."""
    monkeypatch.setattr(executors, "owner_here", 0)


def test_executors_and_waves_change_no_result(tmp_path):
    inline = SMALL | {"executor": "inline"}
    whole = in_process(tmp_path / "whole", 9, **inline)
    for entry in whole[1:]:
        assert sum("train_examples" in client for client in entry["clients"]) == 5
        assert sum("eval_examples" in client for client in entry["clients"]) == 4
    pool = {"pool_idle": 1.0, "messages_at_once": 2}
    assert in_process(tmp_path / "pool", 9, **SMALL, **pool) == whole


def test_population_gives_the_results_of_as_many_nodes(tmp_path):
    """Two nodes play nine clients; then ten of a million, which draw their own examples."""
    inline = SMALL | {"executor": "inline"}
    nodes = in_process(tmp_path / "nodes", 9, **inline)
    assert in_process(tmp_path / "played", 2, **inline, population=9) == nodes
    million = {"population": 1_000_000, "examples_per_client": 20, "partitioning": "dirichlet"}
    history = in_process(tmp_path / "million", 2, **inline, **million)
    assert len({client["partition"] for entry in history for client in entry["clients"]}) == 18
    losses = [entry["evaluate_metrics_serverapp"]["loss"] for entry in history]
    assert losses[2] < losses[0]


def test_a_population_that_cannot_be_is_refused_before_anything_is_written(tmp_path):
    settings = SMALL | {"executor": "inline", "population": 1000}
    with pytest.raises(RunFailed, match="360 test images are too few for 1000 clients"):
        in_process(tmp_path, 2, **settings)
    assert not (tmp_path / "outputs").exists()


def test_a_round_waits_for_min_clients(tmp_path):
    with pytest.raises(RunFailed, match=r"3 nodes connected .*, min-clients = 4, min-replies = 2"):
        in_process(tmp_path, 3, executor="inline", min_clients=4, round_timeout=0.6)


def misbehave(message, context, answer):
    """Of the clients 1 loses its worker, 2 asks for too much memory, 3 sends NaN."""
    partition = context.node_config["partition-id"]
    if message.metadata.message_type != MessageType.TRAIN:
        return answer()
    if partition == 1:
        client_app.run(context, signal.raise_signal, signal.SIGKILL)
    if partition == 2:
        client_app.run(context, bytearray, 2**60)
    reply = answer()
    if partition == 3:
        arrays = reply.content["arrays"]
        arrays["0.weight"] = Array(arrays["0.weight"].numpy() * np.nan)
    return reply


def test_workers_that_die_cost_their_clients_step_only(tmp_path, caplog):
    history = in_process(tmp_path, 6, Faulty(misbehave), num_server_rounds=2, pool_idle=1.0)
    for partition, problem in enumerate(
        [
            "partition 1: the worker that ran this step was killed by SIGKILL: out of memory",
            "partition 2: MemoryError",
            "0.weight holds NaN or infinity",
        ],
        start=1,
    ):
        line = f"Partition {partition} left out of training: "
        told = [r.getMessage() for r in caplog.records if r.getMessage().startswith(line)]
        assert [problem in text for text in told] == [True, True]
    assert [c["partition"] for c in history[2]["clients"] if "train_loss" in c] == [0, 4, 5]


@pytest.mark.parametrize(
    "wings",
    [
        ["executors"],
        ["supernodes"],
        pytest.param(["executors", "supernodes"], marks=pytest.mark.thorough),
    ],
)
def test_the_app_runs_without_its_wings(wings, tmp_path):
    """As their docstrings say: the folder goes, and the lines that are marked."""
    app = copy(tmp_path, "run.sh")
    for wing in wings:
        without_wing(app, wing, f"# {wing}")
    command = [BIN / "python", "-m", "gpu_scaling.kit.in_process", "--num-supernodes", "3"]
    changes = "num-server-rounds=1 clients-to-train=2 clients-to-evaluate=0"
    done = run([*command, "--run-config", "offline.toml", "--run-config", changes], app)
    assert done.returncode == 0, done.stdout
    assert results(app)[1]["evaluate_metrics_serverapp"]["accuracy"] > 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("0", "NBCLIENTS = 0: a whole number of at least 1 is needed"),
        ("2 3", "NBMINCLIENTS = 3: only NBCLIENTS = 2 are to be started"),
        ("4 2 5", "NBFITCLIENTS = 5: only NBCLIENTS = 4 are to be started"),
        ("2 2 2 many", "NBROUNDS = many: a whole number of at least 1 is needed"),
        ("2 --run-config epochs=1", "--run-config 'epochs=1': no such key: epochs; pyproject.toml"),
    ],
)
def test_run_sh_says_in_a_line_what_is_wrong(words, line, tmp_path):
    done = run([APP / "run.sh", *words.split()], tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith(f"run.sh: {line}")
    assert done.stdout.count("\n") == 1


@pytest.mark.thorough
def test_run_sh_through_a_proxy_that_is_not_there(tmp_path):
    """Two SuperNodes, as by default; local connections go past the proxy."""
    command = [APP / "run.sh", 2, 2, 2, 2, "--run-config", APP / "offline.toml"]
    done = run(command, tmp_path, https_proxy="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout
    assert "SuperNodes: 2 of 2 connected" in done.stdout
    assert re.search(r"Run \d+: finished:completed$", done.stdout.strip())
    assert len(results(tmp_path)) == 3
    assert nothing_left(tmp_path)


def test_run_sh_leaves_nothing_after_ctrl_c(tmp_path):
    command = [APP / "run.sh", 2, 2, 2, 50, "--run-config", APP / "offline.toml"]
    process = start(command, tmp_path, until=lambda log: "[ROUND 1/50]" in log)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, (tmp_path / "log").read_text()
    assert "interrupted; everything is taken down" in (tmp_path / "log").read_text()
    assert nothing_left(tmp_path)
