"""The commands that a user runs, to the end and through trouble."""

import re
import sys
from pathlib import Path

import pytest
import safetensors.numpy

from .running import (
    APP,
    BIN,
    as_run_config,
    kill,
    only_run,
    posix_only,
    results,
    run,
    simulation,
    start,
)

# The losses that the README promises for the offline run: before training, and after.
LOSS_BEFORE, LOSS_AFTER, TOLERANCE = 3.86, 3.06, 0.1

pytestmark = posix_only


def loss(entry: dict) -> float:
    return entry["evaluate_metrics_serverapp"]["loss"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The offline run as the README has it, uninterrupted: where it stood, and its log."""
    folder = tmp_path_factory.mktemp("finished")
    done = run([BIN / "flwr", "run", APP, "--run-config", APP / "offline.toml"], folder)
    assert list(folder.glob("outputs/*/*/curves.png")), done.stdout
    return folder, done.stdout


def test_offline_run_learns_as_the_readme_says(finished):
    folder, log = finished
    path = only_run(folder)
    files = {"config.json", "results.json", "curves.png", "checkpoint.safetensors"}
    assert {file.name for file in path.iterdir()} == files | {"peft_2", "peft_4"}
    logged = re.findall(r"INFO.*?:\s+(\S.*)", log)
    assert logged[0] == f"Outputs: {path}" == logged[-1]
    history = results(folder)
    assert [entry["round"] for entry in history] == list(range(5))
    assert loss(history[0]) == pytest.approx(LOSS_BEFORE, abs=TOLERANCE)
    assert loss(history[4]) == pytest.approx(LOSS_AFTER, abs=TOLERANCE)
    assert loss(history[4]) < 0.9 * loss(history[0])
    assert not history[1]["evaluate_metrics_serverapp"]
    assert history[1]["traffic"] == {"down_bytes": history[1]["traffic"]["up_bytes"]} | {
        "up_bytes": pytest.approx(3_686_400, rel=0.01)
    }
    assert len(history[1]["clients"]) == 2


def test_trained_adapter_answers(finished):
    adapter = only_run(finished[0]) / "peft_4"
    question = "In Python, what does os.path.join(path) do?"
    command = [sys.executable, APP / "test.py", "--peft-path", adapter, "--question", question]
    done = run([*command, "--max-new-tokens", 30], finished[0])
    assert done.returncode == 0, done.stdout
    assert re.search(r"(path|join|director)", done.stdout.splitlines()[-1])


def test_adapter_for_another_model_is_refused(finished, small_model):
    adapter = only_run(finished[0]) / "peft_4"
    command = [sys.executable, APP / "test.py", "--question", "Why?", "--peft-path"]
    done = run([*command, adapter, "--base-model", small_model], finished[0])
    assert done.returncode == 2
    assert f"does not fit {small_model}" in done.stdout
    done = run([*command, finished[0]], finished[0])
    assert "adapter_config.json is missing; give a folder peft_<round>" in done.stdout


@pytest.mark.thorough
def test_killed_and_resumed_gives_the_same_results(small, tmp_path):
    """SIGKILL in the middle of a round; then resume, in the same folder, to the end."""
    small |= {"num-server-rounds": 4, "train.evaluate-every-round": 1, "wandb.mode": "offline"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    command = simulation(APP, as_run_config(small))
    done = run(command, whole)
    assert done.returncode == 0, done.stdout
    assert list(only_run(whole).glob("wandb/offline-run-*/*.wandb"))

    kill(start(command, broken, until=lambda log: "[ROUND 3/4]" in log))
    assert len(results(broken)) in (3, 4)
    small |= {"resume-from": str(only_run(broken))}
    done = run(simulation(APP, as_run_config(small)), broken)
    assert done.returncode == 0, done.stdout
    assert "Resuming after round" in done.stdout
    assert results(broken) == results(whole)
    one, other = (
        safetensors.numpy.load_file(only_run(folder) / "peft_4" / "adapter_model.safetensors")
        for folder in (whole, broken)
    )
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.thorough
def test_bad_value_ends_the_run_before_it_starts(small, tmp_path):
    small |= {"model.prompt-template": "llama"}
    done = run(simulation(APP, as_run_config(small)), tmp_path)
    assert done.returncode != 0
    assert "allowed: one of vicuna, alpaca, chat" in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_real_alpaca_in_four_bits_and_sixteen_bit_transport(offline, real_data, tmp_path):
    """Two rounds on real rows of Alpaca-GPT4, base model in NF4, changes in bfloat16."""
    offline |= {"dataset": str(real_data / "alpaca-gpt4"), "model.quantization": 4}
    offline |= {"strategy.transport-dtype": "bfloat16", "num-server-rounds": 2}
    offline |= {"test-examples": 32, "train.training-arguments.max-steps": 6}
    done = run(simulation(APP, as_run_config(offline)), tmp_path)
    assert done.returncode == 0, done.stdout
    history = results(tmp_path)
    assert loss(history[2]) < loss(history[0])
    assert history[1]["traffic"]["up_bytes"] == pytest.approx(3_686_400 / 2, rel=0.02)
