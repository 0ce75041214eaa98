"""The commands that a user runs, to the end and through trouble."""

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
import safetensors.torch
from gpu_scaling import task
from gpu_scaling.dataset import Source

from .running import (
    APP,
    BIN,
    faulty_copy,
    kill,
    offline,
    only_run,
    posix_only,
    results,
    run,
    simulation,
    start,
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
    done = run([BIN / "flwr", "run", APP, "--run-config", APP / "offline.toml"], folder)
    assert list(folder.glob("outputs/*/*/curves.png")), done.stdout
    return folder, done.stdout


def test_run_leaves_what_the_readme_says_and_no_process(finished):
    folder, log = finished
    path = only_run(folder)
    assert {file.name for file in path.iterdir()} == {
        *("config.json", "results.json", "curves.png"),
        *("checkpoint.safetensors", "model.safetensors"),
    }
    logged = re.findall(r"INFO.*?:\s+(\S.*)", log)
    assert logged[0] == f"Outputs: {path}" == logged[-1]
    assert re.search(r"Pool: \d+ workers?, each takes up to \d+ MiB of", log)
    history = results(folder)
    assert [entry["round"] for entry in history] == list(range(11))
    assert [len(entry["clients"]) >= 20 for entry in history] == [False] + [True] * 10
    accuracy = history[-1]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(OFFLINE_ACCURACY, abs=OFFLINE_TOLERANCE)
    model = task.build(10, 0)
    model.load_state_dict(safetensors.torch.load_file(path / "model.safetensors"))
    best = max(entry["evaluate_metrics_serverapp"]["accuracy"] for entry in history)
    test = Source("digits", 0, "iid", 1.0, 1, 0).load("test")
    assert task.evaluate(model, *test)[1] == pytest.approx(best, abs=1e-6)
    assert nothing_left(folder)


def test_inline_gives_the_same_results(finished, tmp_path):
    done = run(simulation(APP, offline(executor="inline", num_server_rounds=2)), tmp_path)
    assert done.returncode == 0, done.stdout
    assert results(tmp_path) == results(finished[0])[:3]


def test_killed_and_resumed_gives_the_same_results(finished, tmp_path):
    """SIGKILL in the middle of a round: the pool ends, too. Then resume."""
    command = simulation(APP, str(APP / "offline.toml"))
    kill(start(command, tmp_path, until=lambda log: "[ROUND 3/10]" in log))
    assert nothing_left(tmp_path)
    assert len(results(tmp_path)) in (3, 4)

    config = offline(resume_from=str(only_run(tmp_path)), num_server_rounds=5)
    done = run(simulation(APP, config), tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Resuming after round" in done.stdout
    assert results(tmp_path) == results(finished[0])[:6]


def test_workers_that_die_cost_their_clients_step_only(tmp_path, monkeypatch):
    """Of six clients one loses its worker, one asks for too much memory, one sends NaN."""
    app = faulty_copy(tmp_path)
    for partition, fault in enumerate(("kill", "memory", "nan"), start=1):
        monkeypatch.setenv(f"FAULT_{partition}", fault)
    done = run(simulation(app, offline(num_server_rounds=2), nodes=6), tmp_path)
    assert done.returncode == 0, done.stdout
    for partition, problem in enumerate(
        [
            "partition 1: the worker that ran this step was killed by SIGKILL: out of memory",
            "partition 2: MemoryError",
            r"0\.weight holds NaN or infinity",
        ],
        start=1,
    ):
        found = re.findall(f"Partition {partition} left out of training: .*{problem}", done.stdout)
        assert len(found) == 2, done.stdout
    trained = [c["partition"] for c in results(tmp_path)[2]["clients"] if "train_loss" in c]
    assert trained == [0, 4, 5]


@pytest.mark.thorough
def test_bad_value_ends_the_run_before_it_starts(tmp_path):
    done = run(simulation(APP, offline(memory_share=2.0), nodes=2), tmp_path)
    assert done.returncode != 0
    assert "memory-share = 2.0 is not valid; allowed: a number in (0, 1]" in done.stdout
    assert not (tmp_path / "outputs").exists()


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
