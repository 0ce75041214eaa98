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
from pytorch_example import task

APP = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# One worker of Ray, not one a core: each imports PyTorch, the larger part of a short run.
ONE_WORKER = '{"init_args": {"num_cpus": 1}, "client_resources": {"num_cpus": 1}}'
# The number that the README promises after 10 rounds on the digits, seed 42.
PROMISED_ACCURACY, TOLERANCE = 0.93, 0.03

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills processes by their POSIX group")


def simulation(app: Path, run_config: str, nodes: int = 50) -> list[str]:
    command = [BIN / "flower-simulation", "--app", app, "--num-supernodes", nodes]
    command += ["--backend-config", ONE_WORKER, "--run-config", run_config]
    return [str(part) for part in command]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        command,
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,
    )


def offline(**changes: object) -> str:
    """Return offline.toml's settings, changed, in the form key=value."""
    settings = re.findall(r"^([\w.-]+) = (.*)$", (APP / "offline.toml").read_text(), re.MULTILINE)
    changed = {key.replace("_", "-"): json.dumps(value) for key, value in changes.items()}
    return " ".join(f"{key}={value}" for key, value in (dict(settings) | changed).items())


def only_run(folder: Path) -> Path:
    [path] = folder.glob("outputs/????-??-??/??-??-??")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """One uninterrupted run by `flower-simulation`: its folder and its log."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(simulation(APP, str(APP / "offline.toml")), folder)
    assert done.returncode == 0, done.stdout
    return only_run(folder), done.stdout


def test_run_leaves_what_the_readme_says(finished):
    folder, log = finished
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "results.json", "curves.png"),
        *("checkpoint.safetensors", "model.safetensors"),
    }
    logged = re.findall(r"INFO.*?:\s+(\S.*)", log)
    assert logged[0] == f"Outputs: {folder}" == logged[-1]
    assert json.loads((folder / "config.json").read_text())["dataset"] == "digits"
    results = json.loads((folder / "results.json").read_text())
    assert [entry["round"] for entry in results] == list(range(11))
    assert results[0].keys() == {
        *("round", "train_metrics"),
        *("evaluate_metrics_clientapp", "evaluate_metrics_serverapp"),
    }
    assert results[1]["train_metrics"].keys() == {"train_loss"}
    assert results[1]["evaluate_metrics_clientapp"].keys() == {
        *("eval_loss", "eval_acc", "personal_eval_loss", "personal_eval_acc")
    }
    accuracy = results[10]["evaluate_metrics_serverapp"]["accuracy"]
    assert accuracy == pytest.approx(PROMISED_ACCURACY, abs=TOLERANCE)


def test_model_file_is_the_best_global_model(finished):
    folder, _ = finished
    model = task.Net()
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    [(_, accuracy)] = task.evaluate(model, task.load_test("digits"), model.head)
    results = json.loads((folder / "results.json").read_text())
    best = max(entry["evaluate_metrics_serverapp"]["accuracy"] for entry in results)
    assert accuracy == pytest.approx(best, abs=1e-6)


def test_flwr_run_gives_the_same_results(finished, tmp_path):
    run([BIN / "flwr", "run", APP, "--run-config", APP / "offline.toml"], tmp_path)
    results = (only_run(tmp_path) / "results.json").read_text()
    assert results == (finished[0] / "results.json").read_text()


def test_killed_and_resumed_gives_the_same_results(finished, tmp_path):
    """SIGKILL in the middle of a round; then resume, in the same folder, to the end."""
    log = (tmp_path / "log").open("w+")
    killed = subprocess.Popen(
        simulation(APP, str(APP / "offline.toml")),
        cwd=tmp_path,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while "[ROUND 5/10]" not in (tmp_path / "log").read_text():
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    folder = only_run(tmp_path)
    assert len(json.loads((folder / "results.json").read_text())) in (5, 6)

    done = run(simulation(APP, offline(resume_from=str(folder))), tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Resuming after round" in done.stdout
    assert only_run(tmp_path) == folder
    results = (folder / "results.json").read_text()
    assert results == (finished[0] / "results.json").read_text()


def test_bad_value_ends_the_run_before_it_starts(tmp_path):
    done = run(simulation(APP, offline(momentum=2.0)), tmp_path)
    assert done.returncode != 0
    assert "momentum = 2.0 is not valid; allowed: a number in [0, 1)" in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_resume_with_another_config_names_the_key(finished, tmp_path):
    folder, _ = finished
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = run(simulation(APP, offline(resume_from=str(folder), dataset="nowhere")), tmp_path)
    assert done.returncode != 0
    assert f"dataset was 'digits' in {folder} and is 'nowhere' now; set it back" in done.stdout
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_private_run_repeats_and_resumes(tmp_path):
    """A run in one go and one in two: same noise, same clipping, same heads, same results."""
    privacy = {"dp.noise-multiplier": 0.1, "dp.clipping-norm": 0.2, "dp.repeatable-noise": True}
    results = []
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
        results.append((only_run(tmp_path / name) / "results.json").read_text())
    assert len(json.loads(results[0])) == 4
    assert results[0] == results[1]


FAULTY_CLIENT = """
import os, signal
from flwr.app import ArrayRecord, Array, MessageType
from flwr.clientapp import ClientApp
from pytorch_example import client_app

FAULTS = {0: "raise", 1: "nan", 2: "infinity", 3: "shape", 4: "metric", 5: "weight"}

class FaultyClient(ClientApp):
    def __call__(self, message, context):
        fault = FAULTS.get(context.node_config["partition-id"])
        reply = client_app.app(message, context)
        if message.metadata.message_type != MessageType.TRAIN or fault is None:
            return reply
        if message.content["config"]["server-round"] < FIRST_FAULTY_ROUND:
            return reply
        if fault == "raise":
            raise OSError("the disk is full")
        arrays = reply.content["arrays"]
        weights = arrays["head.weight"].numpy().copy()
        if fault in ("nan", "infinity"):
            weights[3, 7] = float(fault)
        if fault == "shape":
            weights = weights[:-1]
        arrays["head.weight"] = Array(weights)
        if fault == "metric":
            reply.content["metrics"]["train_loss"] = float("nan")
        if fault == "weight":
            reply.content["metrics"]["num-examples"] = 0
        return reply

app = FaultyClient()
"""


@pytest.fixture
def faulty_app(tmp_path) -> Path:
    """A copy of the app in which six of eight clients misbehave from round 2 on."""
    app = tmp_path / "app"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("outputs", ".*"))
    client = FAULTY_CLIENT.replace("FIRST_FAULTY_ROUND", "2")
    (app / "pytorch_example" / "faulty_client.py").write_text(client)
    settings = (app / "pyproject.toml").read_text()
    settings = settings.replace(
        "pytorch_example.client_app:app", "pytorch_example.faulty_client:app"
    )
    (app / "pyproject.toml").write_text(settings)
    return app


def test_bad_clients_cost_only_their_own_contribution(faulty_app, tmp_path):
    config = offline(num_server_rounds=2, fraction_train=1.0, min_replies=2)
    config = config.replace('wandb.mode="disabled"', 'wandb.mode="offline"')
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
    results = json.loads((only_run(tmp_path) / "results.json").read_text())
    assert len(results) == 3
    assert list(only_run(tmp_path).glob("wandb/offline-run-*/*.wandb"))
    assert results[2]["evaluate_metrics_serverapp"]["loss"] < 10


def test_too_few_replies_end_the_run_and_lose_nothing(faulty_app, tmp_path):
    config = offline(num_server_rounds=3, fraction_train=1.0, min_replies=3)
    done = run(simulation(faulty_app, config, nodes=8), tmp_path)
    assert done.returncode != 0
    assert "round 2: 2 of 8 training replies can be used, min-replies = 3" in done.stdout
    folder = only_run(tmp_path)
    assert f"round 1 is safe: resume-from='{folder}'" in done.stdout

    config = offline(
        num_server_rounds=3, fraction_train=1.0, min_replies=2, resume_from=str(folder)
    )
    done = run(simulation(faulty_app, config, nodes=8), tmp_path)
    assert done.returncode == 0, done.stdout
    assert len(json.loads((folder / "results.json").read_text())) == 4
