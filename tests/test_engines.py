"""Three engines give the same result: one process, Ray, and two SuperNodes over TLS."""

import sys

import pytest
from on_this_machine import CIFAR, posix_only
from repository import ROOT, example_folder

from kit.settings import as_run_config
from kit.testing import run

# Each client its own part of the data, so that a mistaken partition would be seen.
EXAMPLES = {
    "advanced-pytorch": {"dp.noise-multiplier": 0.01, "dp.repeatable-noise": True},
    CIFAR.name: {"partitioning": "dirichlet"},
}


@posix_only
@pytest.mark.parametrize(
    "example",
    ["advanced-pytorch", pytest.param(CIFAR.name, marks=pytest.mark.thorough)],
)
def test_engines_give_the_same_results(example, tmp_path):
    command = [sys.executable, ROOT / "tools" / "exam.py", example_folder(example), "--deploy"]
    command += ["--only", "engines", "--run-config", as_run_config(EXAMPLES[example])]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "in one process, over TLS, simulated: the same files" in done.stdout
