"""The commands that a user runs, with the offline settings, to the end and through trouble."""

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
from pytorch_example import task

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

# The number that the README promises after 10 rounds on the digits, seed 42.
OFFLINE_ACCURACY, OFFLINE_TOLERANCE = 0.93, 0.03

pytestmark = posix_only


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The offline run as the README has it, uninterrupted: where it stood, and its log."""
    folder = tmp_path_factory.mktemp("finished")
    done = run([BIN / "flwr", "run", APP, "--run-config", APP / "offline.toml"], folder)
    assert list(folder.glob("outputs/*/*/curves.png")), done.stdout
    return folder, done.stdout


def test_run_leaves_what_the_readme_says(finished):
    folder, log = finished
    path = only_run(folder)
    assert {file.name for file in path.iterdir()} == {
        *("config.json", "results.json", "curves.png"),
        *("checkpoint.safetensors", "model.safetensors"),
    }
    logged = re.findall(r"INFO.*?:\s+(\S.*)", log)
    assert logged[0] == f"Outputs: {path}" == logged[-1]
    assert json.loads((path / "config.json").read_text())["dataset"] == "digits"
    history = results(folder)
    assert [entry["round"] for entry in history] == list(range(11))
    assert history[0].keys() == {
        *("round", "train_metrics"),
        *("evaluate_metrics_clientapp", "evaluate_metrics_serverapp"),
    }
    assert history[1]["train_metrics"].keys() == {"train_loss"}
    assert history[1]["evaluate_metrics_clientapp"].keys() == {
        *("eval_loss", "eval_acc", "personal_eval_loss", "personal_eval_acc")
    }
    accuracy = history[10]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(OFFLINE_ACCURACY, abs=OFFLINE_TOLERANCE)
    clients = history[10]["evaluate_metrics_clientapp"]
    assert clients["personal_eval_acc"] < clients["eval_acc"]  # with so few digits for each client


def test_model_file_is_the_best_global_model(finished):
    folder, _ = finished
    model = task.Net()
    model.load_state_dict(safetensors.torch.load_file(only_run(folder) / "model.safetensors"))
    [(_, accuracy)] = task.evaluate(model, task.load_test("digits"), model.head)
    best = max(entry["evaluate_metrics_serverapp"]["accuracy"] for entry in results(folder))
    assert accuracy == pytest.approx(best, abs=1e-6)


def test_killed_and_resumed_gives_the_same_results(finished, tmp_path):
    """SIGKILL in the middle of a round; then resume, in the same folder."""
    command = simulation(APP, str(APP / "offline.toml"))
    kill(start(command, tmp_path, until=lambda log: "[ROUND 3/10]" in log))
    assert len(results(tmp_path)) in (3, 4)

    config = offline(resume_from=str(only_run(tmp_path)), num_server_rounds=5)
    done = run(simulation(APP, config), tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Resuming after round" in done.stdout
    assert results(tmp_path) == results(finished[0])[:6]


def test_bad_value_ends_the_run_before_it_starts(tmp_path):
    done = run(simulation(APP, offline(momentum=2.0)), tmp_path)
    assert done.returncode != 0
    assert "momentum = 2.0 is not valid; allowed: a number in [0, 1)" in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_resume_with_another_config_names_the_key(finished, tmp_path):
    folder = only_run(finished[0])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = run(simulation(APP, offline(resume_from=str(folder), dataset="nowhere")), tmp_path)
    assert done.returncode != 0
    assert f"dataset was 'digits' in {folder} and is 'nowhere' now; set it back" in done.stdout
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_private_run_repeats_and_resumes(tmp_path):
    """A run in one go and one in two: same noise, same clipping, same heads, same results."""
    privacy = {"dp.noise-multiplier": 0.1, "dp.clipping-norm": 0.2, "dp.repeatable-noise": True}
    histories = []
    for name, stops in (("whole", [3]), ("resumed", [1, 3])):
        (tmp_path / name).mkdir()
        resume = {}
        for rounds in stops:
            config = offline(num_server_rounds=rounds, fraction_train=0.5, **privacy, **resume)
            done = run(simulation(APP, config, nodes=8), tmp_path / name)
            assert done.returncode == 0, done.stdout
            assert "left out" not in done.stdout
            assert "central DP noise with 0.0050 stdev added" in done.stdout  # 0.1 * 0.2 / 4
            resume = {"resume_from": str(only_run(tmp_path / name))}
        histories.append(results(tmp_path / name))
    assert len(histories[0]) == 4
    assert histories[0] == histories[1]


@pytest.fixture
def faulty_app(tmp_path, monkeypatch) -> Path:
    """A copy of the app in which six of eight clients misbehave from round 2 on."""
    faults = ("raise", "nan", "infinity", "shape", "metric", "weight")
    for partition, fault in enumerate(faults):
        monkeypatch.setenv(f"FAULT_{partition}", fault)
    return faulty_copy(tmp_path)


def test_bad_clients_cost_only_their_own_contribution(faulty_app, tmp_path):
    tracked = {"wandb.mode": "offline"}
    config = offline(num_server_rounds=2, fraction_train=1.0, min_replies=2, **tracked)
    done = run(simulation(faulty_app, config, nodes=8), tmp_path)
    assert done.returncode == 0, done.stdout
    for partition, problem in enumerate(
        [
            "the disk is full",
            "head.weight holds NaN or infinity",
            "head.weight holds NaN or infinity",
            r"head.weight has shape \(9, 64\), not \(10, 64\)",
            "train_loss = nan",
            "num-examples = 0",
        ]
    ):
        assert re.search(f"Partition {partition} left out of training: .*{problem}", done.stdout)
    history = results(tmp_path)
    assert len(history) == 3
    assert list(only_run(tmp_path).glob("wandb/offline-run-*/*.wandb"))
    assert history[2]["evaluate_metrics_serverapp"]["loss"] < 10


@pytest.mark.thorough
def test_too_few_replies_end_the_run_and_lose_nothing(faulty_app, tmp_path):
    settings = {"num_server_rounds": 3, "fraction_train": 1.0}
    config = offline(**settings, min_replies=3)
    done = run(simulation(faulty_app, config, nodes=8), tmp_path)
    assert done.returncode != 0
    assert "round 2: 2 of 8 training replies can be used, min-replies = 3" in done.stdout
    folder = only_run(tmp_path)
    assert f"round 1 is safe: resume-from='{folder}'" in done.stdout

    config = offline(**settings, min_replies=2, resume_from=str(folder))
    done = run(simulation(faulty_app, config, nodes=8), tmp_path)
    assert done.returncode == 0, done.stdout
    assert len(results(tmp_path)) == 4
