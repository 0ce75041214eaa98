"""The README's command on Ray reaches the promised accuracy; and runs in one process."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Array
from torch import nn
from torchvision import models
from vit_finetune import dataset
from vit_finetune.kit.flower import RunFailed
from vit_finetune.kit.testing import (
    APP,
    Faulty,
    in_process,
    only_run,
    posix_only,
    results,
    run_as_the_readme_says,
)
from vit_finetune.models import Backbone

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
    return folder, run_as_the_readme_says(folder, "model.safetensors")


def test_run_leaves_what_the_readme_says(finished):
    folder, log = finished
    assert re.search(r"Features of \d+ images on 20 clients ready in .*; 1437 computed", log)
    history = results(folder)
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
    """The saved head gives the best accuracy, when torchvision's model loads it."""
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


def test_another_backbone_by_its_name(tmp_path, caplog):
    """The saved head gives the run's best accuracy, when torchvision's ResNet loads it."""
    settings = {"model__name": "resnet18", "image_size": 32, "precision": "float32"}
    settings |= {"num_server_rounds": 3, "model__normalization": "half"}
    history = in_process(tmp_path, 4, **settings)
    assert history[1]["traffic"]["up_bytes"] > 10 * 512 * 4
    torch.manual_seed(42)
    model = models.resnet18().eval()
    model.fc = nn.Linear(512, 10)
    head = safetensors.torch.load_file(only_run(tmp_path) / "model.safetensors")
    assert head.keys() == {"fc.weight", "fc.bias"}
    assert model.load_state_dict(head, strict=False).unexpected_keys == []
    backbone = Backbone("resnet18", "none", "half", 32, "float32", seed=42)
    images = dataset.load_test("digits")
    crops = torch.stack([backbone.central_crop(images.decode(i)) for i in range(len(images))])
    with torch.inference_mode():
        right = model(crops / 127.5 - 1).argmax(1) == images.labels
    best = max(entry["evaluate_metrics_serverapp"]["accuracy"] for entry in history)
    assert right.float().mean().item() == pytest.approx(best, abs=0.003)
    assert best > 0.8

    assert "Features are computed anew" not in caplog.text
    in_process(tmp_path / "again", 4, **settings | {"num_server_rounds": 1})
    assert "Features are computed anew" not in caplog.text
    in_process(tmp_path / "other", 4, **settings | {"num_server_rounds": 1, "image_size": 40})
    assert re.search(r"computed anew: those in \S+/resnet18-\w{16} have other", caplog.text)


@pytest.mark.parametrize(("normalization", "told"), [("half", True), ("imagenet", False)])
def test_normalization_is_doubted_where_another_suits(
    tmp_path, caplog, bright, normalization, told
):
    settings = {"model__name": "bright", "model__weights": bright(1.1), "precision": "float32"}
    in_process(tmp_path, 2, **settings, model__normalization=normalization, num_server_rounds=1)
    [text] = re.findall("Backbone: .*", caplog.text)
    path = tmp_path / "bright.pth"
    assert text.startswith(f"Backbone: bright, 64 features, weights {path}, ")
    assert text.endswith(f"normalization '{normalization}'")
    better = (
        r"'imagenet' suits model.weights better: .* for 0\.[78]\d of them, with 'half' for 0\.1\d"
    )
    assert bool(re.search(better, caplog.text)) == told
    assert ("suits" in caplog.text) == told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__weights": str(APP / "offline.toml")},
            "not a state dict that can be read safely",
        ),
        (
            {"cache_dir": "/dev/null/cache"},
            "cache-dir = '/dev/null/cache': features cannot be kept",
        ),
    ],
)
def test_bad_value_ends_the_run_before_it_starts(tmp_path, changes, message):
    with pytest.raises((RunFailed, ValueError), match=message):
        in_process(tmp_path, 4, **changes)
    assert not (tmp_path / "outputs").exists()


def misbehave(message, context, answer):
    """Have client 0 fail to extract, and client 1 send sums that are NaN."""
    kind, partition = message.metadata.message_type, context.node_config["partition-id"]
    if partition == 0 and kind.endswith("extract"):
        raise OSError("the camera is broken")
    reply = answer()
    if partition == 1 and reply.has_content() and "moments" in reply.content:
        moments = reply.content["moments"]
        moments["sum"] = Array(moments["sum"].numpy() * np.nan)
    return reply


def test_clients_without_features_or_sums_are_left_out_of_the_closed_form(tmp_path, caplog):
    settings = {"num_server_rounds": 1, "fraction_train": 1.0, "head_start": "closed-form"}
    history = in_process(tmp_path, 4, Faulty(misbehave), **settings)
    assert "the camera is broken" in caplog.text
    assert "Partition 0 left out of training: it is not ready" in caplog.text
    assert "Partition 1: its sums over features hold NaN or infinity: ['sum']" in caplog.text
    assert history[0]["evaluate_metrics_serverapp"]["accuracy"] > 0.8
    assert [client["partition"] for client in history[1]["clients"]] == [1, 2, 3]


def test_real_flowers_with_real_weights(real_data, tmp_path):
    changes = {
        "dataset": str(real_data / "oxford-flowers"),
        "model__weights": str(real_data / "vit-tiny" / "vit_tiny_patch16_224_torchvision.pth"),
        "model__normalization": "half",
        "image_size": 224,
        "test_fraction": 0.0,
    }
    accuracy = in_process(tmp_path, 20, **changes)[20]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(FLOWERS_ACCURACY, abs=FLOWERS_TOLERANCE)
