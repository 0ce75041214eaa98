"""The offline settings learn with few large clients and with many small ones, in one process."""

import pytest
from on_this_machine import results
from repository import example_folder, example_names, flatten, load_toml

from kit.in_process import run_app

# Least accuracy by number of clients; a language model's loss falls.
REACHED = {
    "vit-finetune": {2: 0.93, 100: 0.88},
    "advanced-pytorch": {2: 0.95, 100: 0.88},
    "pytorch-from-centralized-to-federated": {2: 0.97, 100: 0.97},
    "flowertune-llm": {2: None},
    "gpu-scaling": {2: 0.96, 100: 0.9},
}
SLOW = {
    ("flowertune-llm", 2),
    ("vit-finetune", 100),
    ("pytorch-from-centralized-to-federated", 100),
}
CASES = [
    pytest.param(example, clients, marks=[pytest.mark.thorough] * ((example, clients) in SLOW))
    for example in example_names()
    for clients in REACHED[example]
]


@pytest.mark.parametrize(("example", "clients"), CASES)
def test_offline_settings_learn_with(example, clients, tmp_path):
    app = example_folder(example)
    settings = flatten(load_toml(app / "offline.toml")) | {"output-dir": str(tmp_path / "outputs")}
    if example == "gpu-scaling":
        settings["executor"] = "inline"  # no worker is left in this process
    run_app(app, clients, settings)
    first, *_, last = [entry["evaluate_metrics_serverapp"] for entry in results(tmp_path)]
    reached = REACHED[example][clients]
    assert last["loss"] < first["loss"]
    assert reached is None or last["accuracy"] >= reached
