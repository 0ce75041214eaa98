"""Wings: each can be deleted, with the lines that its mark ends, and the app runs without it."""

import compileall
import sys

import pytest
from flowertune_llm.kit.testing import as_run_config, copy, offline, results, run, without_wing

WINGS = {"layerwise": "# layerwise", "profiler": "# profiler"}


@pytest.mark.parametrize(
    "left_out",
    [("layerwise",), ("profiler",), pytest.param(tuple(WINGS), marks=pytest.mark.thorough)],
    ids="+".join,
)
def test_app_runs_without(left_out, small_model, tmp_path):
    app = copy(tmp_path, "tests")
    for wing in left_out:
        without_wing(app, wing, WINGS[wing])
    settings = offline(num_server_rounds=1, test_examples=8, train__evaluate_every_round=1)
    settings |= {"model.name": str(small_model), "train.seq-length": 64}
    settings |= {"train.training-arguments.max-steps": 1}
    command = [sys.executable, "-m", "flowertune_llm.kit.in_process", "--num-supernodes", 2]
    done = run([*command, "--run-config", as_run_config(settings)], app)
    assert done.returncode == 0, done.stdout
    assert results(app)[1]["evaluate_metrics_serverapp"]["loss"] > 0
    assert compileall.compile_dir(app / "flowertune_llm", quiet=1)
    for wing in left_out:
        assert not list((app / "flowertune_llm" / wing).glob("*.py"))
        assert WINGS[wing] not in (app / "flowertune_llm" / "server_app.py").read_text()
