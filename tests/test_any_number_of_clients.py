"""The offline settings learn with few large clients and with many small ones, in one process."""

import pytest
from on_this_machine import offline, results, run_here
from repository import example_folder, example_names

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
    inline = {"executor": "inline"} if example == "gpu-scaling" else {}  # no worker is left here
    run_here(app, clients, offline(app, **inline), tmp_path)
    first, *_, last = [entry["evaluate_metrics_serverapp"] for entry in results(tmp_path)]
    reached = REACHED[example][clients]
    assert last["loss"] < first["loss"]
    assert reached is None or last["accuracy"] >= reached
