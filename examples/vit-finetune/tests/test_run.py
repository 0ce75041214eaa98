"""The commands that a user runs, with the offline settings, to the end and through trouble."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from vit_finetune import dataset
from vit_finetune.models import Backbone

from .running import (
    APP,
    BIN,
    as_run_config,
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

# The numbers that the README promises: digits offline, and flowers with the real weights.
OFFLINE_ACCURACY, OFFLINE_TOLERANCE = 0.94, 0.03
FLOWERS_ACCURACY, FLOWERS_TOLERANCE = 0.845, 0.02

pytestmark = posix_only


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> Iterator[None]:
    """A folder for features that the runs of this module share, empty at first."""
    hub = os.environ.get("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", hub)
        yield


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
    assert re.search(r"Features of \d+ images on 20 clients ready in .*; 1437 computed", log)
    assert json.loads((path / "config.json").read_text())["dataset"] == "digits"
    history = results(folder)
    assert [entry["round"] for entry in history] == list(range(21))
    assert history[1].keys() == {
        *("round", "train_metrics", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"),
        *("traffic", "clients"),
    }
    accuracy = history[20]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(OFFLINE_ACCURACY, abs=OFFLINE_TOLERANCE)


def test_every_client_has_its_own_accuracy(finished):
    history = results(finished[0])
    clients = history[20]["clients"]
    assert [client["partition"] for client in clients] == list(range(20))
    assert sum("train_loss" in client for client in clients) == 10
    weights = [client["eval_examples"] for client in clients]
    correct = sum(c["eval_acc"] * n for c, n in zip(clients, weights, strict=True))
    mean = history[20]["evaluate_metrics_clientapp"]["eval_acc"]
    assert correct / sum(weights) == pytest.approx(mean, rel=1e-6)
    assert {client["skipped_images"] for client in clients} == {0}


def test_only_the_head_travels(finished):
    traffic = results(finished[0])[5]["traffic"]
    head = 10 * 192 * 4
    statistics = 2 * 192 * 4
    assert head < traffic["up_bytes"] < head + 1000
    assert head + statistics < traffic["down_bytes"] < head + statistics + 1000


def test_model_file_fits_torchvision(finished):
    """The saved head, put on the backbone as torchvision names it, gives the best accuracy."""
    path = only_run(finished[0])
    backbone = Backbone("vit_tiny", "none", "imagenet", 64, seed=42)
    model = backbone.module
    head = safetensors.torch.load_file(path / "model.safetensors")
    model.heads = torch.nn.Sequential()
    model.heads.add_module("head", torch.nn.Linear(192, 10))
    assert model.load_state_dict(head, strict=False).unexpected_keys == []
    model.heads.float()
    model.heads.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    images = dataset.load_test("digits")
    crops = torch.stack([backbone.central_crop(images.decode(i)) for i in range(len(images))])
    predicted = backbone.features(crops).argmax(1)
    accuracy = (predicted.cpu() == images.labels).float().mean().item()
    best = max(e["evaluate_metrics_serverapp"]["accuracy"] for e in results(finished[0]))
    assert accuracy == pytest.approx(best, abs=0.003)  # one image: bfloat16 differs by batch


@pytest.mark.thorough
def test_killed_and_resumed_gives_the_same_results(finished, tmp_path):
    """SIGKILL in the middle of a round; then resume, in the same folder."""
    command = simulation(APP, str(APP / "offline.toml"))
    kill(start(command, tmp_path, until=lambda log: "[ROUND 3/20]" in log))
    assert len(results(tmp_path)) in (3, 4)

    config = offline(resume_from=str(only_run(tmp_path)), num_server_rounds=5)
    done = run(simulation(APP, config), tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Resuming after round" in done.stdout
    assert re.search(r"on 20 clients ready in .*; 0 computed", done.stdout), done.stdout
    assert results(tmp_path) == results(finished[0])[:6]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 2.0}, "momentum = 2.0 is not valid; allowed: a number in [0, 1)"),
        ({"model.weights": str(APP / "offline.toml")}, "not a state dict that can be read safely"),
        (
            {"cache-dir": "/dev/null/cache"},
            "cache-dir = '/dev/null/cache': features cannot be kept",
        ),
    ],
)
def test_bad_value_ends_the_run_before_it_starts(tmp_path, changes, message):
    done = run(simulation(APP, offline(**changes)), tmp_path)
    assert done.returncode != 0
    assert message in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_bad_clients_cost_their_contribution_and_too_few_end_the_run(tmp_path, monkeypatch):
    """Of six clients five misbehave: with min-replies 2 the run goes on, with 3 it ends.

    The head starts in closed form, so that sums of every class are on the way, too.
    """
    app = faulty_copy(tmp_path)
    for partition, fault in enumerate(("raise", "nan", "shape", "extract", "sums")):
        monkeypatch.setenv(f"FAULT_{partition}", fault)
    settings = {"num_server_rounds": 3, "fraction_train": 1.0, "head_start": "closed-form"}
    config = offline(**settings, min_replies=3)
    done = run(simulation(app, config, nodes=6), tmp_path)
    assert done.returncode != 0
    assert "Partition 3: " in done.stdout
    assert "the camera is broken" in done.stdout
    assert "Partition 4: its sums over features hold NaN or infinity: ['sum']" in done.stdout
    assert results(tmp_path)[0]["evaluate_metrics_serverapp"]["accuracy"] > 0.8
    assert "round 2: 2 of 6 training replies can be used, min-replies = 3" in done.stdout
    folder = only_run(tmp_path)
    assert f"round 1 is safe: resume-from='{folder}'" in done.stdout

    config = offline(**settings, min_replies=2, resume_from=str(folder))
    done = run(simulation(app, config, nodes=6), tmp_path)
    assert done.returncode == 0, done.stdout
    for partition, problem in enumerate(
        [
            "the disk is full",
            "weight holds NaN or infinity",
            r"weight has shape \(9, 192\), not \(10, 192\)",
            "no features, or no reply",
        ]
    ):
        assert re.search(f"Partition {partition} left out of training: .*{problem}", done.stdout)
    history = results(tmp_path)
    assert [client["partition"] for client in history[3]["clients"]] == [0, 1, 2, 4, 5]
    assert history[3]["evaluate_metrics_serverapp"]["loss"] < 10


def test_real_flowers_with_real_weights(real_data, tmp_path):
    config = {
        "dataset": str(real_data / "oxford-flowers"),
        "model.name": "vit_tiny",
        "model.weights": str(real_data / "vit-tiny" / "vit_tiny_patch16_224_torchvision.pth"),
        "model.normalization": "half",
        "test-fraction": 0.0,
    }
    done = run(simulation(APP, as_run_config(config)), tmp_path)
    assert done.returncode == 0, done.stdout
    accuracy = results(tmp_path)[20]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(FLOWERS_ACCURACY, abs=FLOWERS_TOLERANCE)
