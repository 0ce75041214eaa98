"""The README's command on Ray reaches the promised accuracy; a killed run resumes exactly."""

from pathlib import Path

import pytest
import safetensors.torch
from pytorch_example import task
from pytorch_example.kit.testing import (
    APP,
    kill,
    offline,
    only_run,
    posix_only,
    results,
    run,
    run_as_the_readme_says,
    simulation,
    start,
)

# The number that the README promises after 10 rounds on the digits, seed 42.
OFFLINE_ACCURACY, OFFLINE_TOLERANCE = 0.95, 0.03

pytestmark = posix_only


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder where the offline run was made as the README has it, uninterrupted."""
    folder = tmp_path_factory.mktemp("finished")
    run_as_the_readme_says(folder, "model.safetensors")
    return folder


def test_run_leaves_what_the_readme_says(finished):
    history = results(finished)
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
    model = task.Net()
    model.load_state_dict(safetensors.torch.load_file(only_run(finished) / "model.safetensors"))
    [(_, accuracy)] = task.evaluate(model, task.load_test("digits"), model.head)
    best = max(entry["evaluate_metrics_serverapp"]["accuracy"] for entry in results(finished))
    assert accuracy == pytest.approx(best, abs=1e-6)


@pytest.mark.thorough
def test_killed_and_resumed_gives_the_same_results(finished, tmp_path):
    """Killed in the middle of a round, then resumed in the same folder."""
    command = simulation(APP, APP / "offline.toml")
    kill(start(command, tmp_path, until=lambda log: "[ROUND 3/10]" in log))
    assert len(results(tmp_path)) in (3, 4)

    config = offline(resume_from=str(only_run(tmp_path)), num_server_rounds=5)
    done = run(simulation(APP, config), tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Resuming after round" in done.stdout
    assert results(tmp_path) == results(finished)[:6]
