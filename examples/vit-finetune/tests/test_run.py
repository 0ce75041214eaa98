"""The commands that a user runs, with the offline settings, to the end and through trouble."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from vit_finetune import dataset
from vit_finetune.models import Backbone

APP = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# One worker of Ray, not one a core: each imports PyTorch, the larger part of a short run.
ONE_WORKER = '{"init_args": {"num_cpus": 1}, "client_resources": {"num_cpus": 1}}'
# The numbers that the README promises: digits offline, and flowers with the real weights.
OFFLINE_ACCURACY, OFFLINE_TOLERANCE = 0.94, 0.03
FLOWERS_ACCURACY, FLOWERS_TOLERANCE = 0.845, 0.02

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills processes by their POSIX group")


def simulation(app: Path, run_config: str, nodes: int = 20) -> list[str]:
    command = [BIN / "flower-simulation", "--app", app, "--num-supernodes", nodes]
    command += ["--backend-config", ONE_WORKER, "--run-config", run_config]
    return [str(part) for part in command]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A folder for features that the runs of this module share, empty at first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def environment(cache) -> dict[str, str]:
    path = f"{BIN}:{os.environ['PATH']}"
    own = {"FLWR_TELEMETRY_ENABLED": "0", "PATH": path, "XDG_CACHE_HOME": str(cache)}
    hub = os.environ.get("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))
    return os.environ | own | {"HF_HOME": hub}


@pytest.fixture(scope="module")
def run(environment):
    def run(command: list, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
        )

    return run


def offline(**changes: object) -> str:
    """Return offline.toml's settings, changed, in the form key=value."""
    settings = re.findall(r"^([\w.-]+) = (.*)$", (APP / "offline.toml").read_text(), re.MULTILINE)
    changed = {key.replace("_", "-"): json.dumps(value) for key, value in changes.items()}
    return " ".join(f"{key}={value}" for key, value in (dict(settings) | changed).items())


def only_run(folder: Path) -> Path:
    [path] = folder.glob("outputs/????-??-??/??-??-??")
    return path


def results(folder: Path) -> list[dict]:
    return json.loads((only_run(folder) / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run) -> tuple[Path, str]:
    """One uninterrupted run by `flower-simulation`: where it stood, and its log."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(simulation(APP, str(APP / "offline.toml")), folder)
    assert done.returncode == 0, done.stdout
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


def test_flwr_run_gives_the_same_results_from_the_cache(finished, run, tmp_path):
    done = run([BIN / "flwr", "run", APP, "--run-config", APP / "offline.toml"], tmp_path)
    assert re.search(r"on 20 clients ready in .*; 0 computed", done.stdout), done.stdout
    assert results(tmp_path) == results(finished[0])


def test_killed_and_resumed_gives_the_same_results(finished, run, environment, tmp_path):
    """SIGKILL in the middle of a round; then resume, in the same folder, to the end."""
    log = (tmp_path / "log").open("w+")
    killed = subprocess.Popen(
        simulation(APP, str(APP / "offline.toml")),
        cwd=tmp_path,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while "[ROUND 5/20]" not in (tmp_path / "log").read_text():
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert len(results(tmp_path)) in (5, 6)

    done = run(simulation(APP, offline(resume_from=str(only_run(tmp_path)))), tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Resuming after round" in done.stdout
    assert results(tmp_path) == results(finished[0])


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
def test_bad_value_ends_the_run_before_it_starts(run, tmp_path, changes, message):
    done = run(simulation(APP, offline(**changes)), tmp_path)
    assert done.returncode != 0
    assert message in done.stdout
    assert not (tmp_path / "outputs").exists()


FAULTY_CLIENT = """
import numpy as np
from flwr.app import Array, MessageType
from flwr.clientapp import ClientApp
from vit_finetune import client_app

FAULTS = {0: "raise", 1: "nan", 2: "shape", 3: "extract", 4: "sums"}

class FaultyClient(ClientApp):
    def __call__(self, message, context):
        kind = message.metadata.message_type
        fault = FAULTS.get(context.node_config["partition-id"])
        if fault == "extract" and kind.endswith("extract"):
            raise OSError("the camera is broken")
        reply = client_app.app(message, context)
        if fault == "sums" and "moments" in reply.content:
            moments = reply.content["moments"]
            moments["sum"] = Array(moments["sum"].numpy() * np.nan)
        if kind != MessageType.TRAIN or fault in (None, "sums"):
            return reply
        if message.content["config"]["server-round"] < 2:
            return reply
        if fault == "raise":
            raise OSError("the disk is full")
        arrays = reply.content["arrays"]
        weight = arrays["weight"].numpy().copy()
        if fault == "nan":
            weight[3, 7] = float("nan")
        if fault == "shape":
            weight = weight[:-1]
        arrays["weight"] = Array(weight)
        return reply

app = FaultyClient()
"""


def test_bad_clients_cost_their_contribution_and_too_few_end_the_run(run, tmp_path):
    """Of six clients five misbehave: with min-replies 2 the run goes on, with 3 it ends.

    The head starts in closed form, so that sums of every class are on the way, too.
    """
    app = tmp_path / "app"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("outputs", ".*"))
    (app / "vit_finetune" / "faulty_client.py").write_text(FAULTY_CLIENT)
    declared = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(
        declared.replace("vit_finetune.client_app:app", "vit_finetune.faulty_client:app")
    )
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


def test_real_flowers_with_real_weights(run, real_data, tmp_path):
    config = {
        "dataset": str(real_data / "oxford-flowers"),
        "model.name": "vit_tiny",
        "model.weights": str(real_data / "vit-tiny" / "vit_tiny_patch16_224_torchvision.pth"),
        "model.normalization": "half",
        "test-fraction": 0.0,
    }
    settings = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    done = run(simulation(APP, settings), tmp_path)
    assert done.returncode == 0, done.stdout
    accuracy = results(tmp_path)[20]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(FLOWERS_ACCURACY, abs=FLOWERS_TOLERANCE)
