"""A model that people bring, in the place of ours, in the pool's workers and in this process."""

import numpy as np
import pytest
from gpu_scaling import task
from gpu_scaling.kit.testing import copy, in_process, offline, only_run, results, run, simulation
from safetensors.numpy import load_file
from torch import nn

LAYERS = """    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(392, num_classes),
    )
"""
SETTINGS = {"num_server_rounds": 3, "clients_to_train": 4, "clients_to_evaluate": 4}


def check(folder) -> None:
    losses = [entry["evaluate_metrics_serverapp"]["loss"] for entry in results(folder)]
    assert np.isfinite(losses).all()
    assert min(losses[1:]) < losses[0]
    arrays = load_file(only_run(folder) / "model.safetensors")
    assert (arrays["1.running_var"] > 0).all()
    assert arrays["1.num_batches_tracked"].dtype == np.int64
    assert arrays["1.num_batches_tracked"].shape == ()


def test_batch_norm_and_server_momentum_go_together(tmp_path, monkeypatch, caplog):
    def build(num_classes, seed):
        named = {"nn": nn, "num_classes": num_classes}
        exec("if True:\n" + LAYERS, named)
        return named["network"]

    monkeypatch.setattr(task, "build", build)
    in_process(tmp_path, 4, executor="inline", server_momentum=0.5, **SETTINGS)
    assert "left out" not in caplog.text
    check(tmp_path)


@pytest.mark.thorough
def test_another_network_goes_into_task_py_alone(tmp_path):
    app = copy(tmp_path)
    path = app / "gpu_scaling" / "task.py"
    text = path.read_text()
    begin, end = (
        text.index("    network = nn.Sequential("),
        text.index("    # On the CPU this layout"),
    )
    path.write_text(text[:begin] + LAYERS + text[end:])
    done = run(simulation(app, offline(server_momentum=0.5, **SETTINGS), 4), tmp_path)
    assert done.returncode == 0, done.stdout
    assert "left out" not in done.stdout
    check(tmp_path)
