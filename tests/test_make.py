"""The make targets: each has a line of help, and fails if the app fails."""

import os
import re
import subprocess

import pytest
from on_this_machine import BIN
from repository import ROOT


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_help_lists_every_target_with_one_line():
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE)
    listed = [line.split(None, 1) for line in make("help").stdout.splitlines()]
    assert [name for name, _ in listed] == targets
    assert all(explanation for _, explanation in listed)
    assert len(targets) >= 14


def test_unknown_example_is_named():
    done = make("run", "EXAMPLE=nope")
    assert done.returncode != 0
    assert "EXAMPLE=nope: no such example; there are pytorch-from-centralized-to-" in done.stderr


def test_new_takes_from_and_to():
    assert "make new FROM=vit-finetune TO=../my-app" in make("new").stderr
    assert "there is no example 'nope'" in make("new", "FROM=nope", "TO=../my-app").stderr
    command = make("-n", "new", "FROM=vit-finetune", "TO=../my-app", "PUBLISHER=me").stdout
    assert command.split()[1:] == [
        "tools/new_app.py",
        '"vit-finetune"',
        '"../my-app"',
        "--publisher",
        '"me"',
    ]


def test_federate_takes_script_and_to():
    assert "make federate SCRIPT=train.py TO=../my-app" in make("federate").stderr
    assert "there is no such Python file" in make("federate", "SCRIPT=no.py", "TO=../my-app").stderr


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("nope=3", "Key 'nope' is not present"),
        pytest.param(
            "min-replies=3 learning-rate=-1.0",
            "learning-rate = -1.0 is not valid",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_failing_app_makes_run_fail(config, error):
    """It is refused before the simulation starts, or by the app."""
    done = make("run", f"CONFIG={config}")
    assert done.returncode != 0
    assert error in done.stdout + done.stderr
    assert "advanced-pytorch: FAILED" in done.stdout


@pytest.mark.thorough
def test_check_gpu_says_why_it_is_skipped():
    done = make("check-gpu")
    assert done.returncode == 0, done.stderr
    assert "skipped: no CUDA device" in done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("gpu_scaling_gpu.py", "workers 2, steps_a_second"),
        ("population_gpu.py", "clients 1000000, start_seconds"),
        ("vit_finetune_gpu.py", "vit_b_16, precision bfloat16, batch 4, images_a_second"),
        ("flowertune_llm_gpu.py", "precision 8-bit, tokens_a_second"),
    ],
)
def test_gpu_check_runs_small_without_a_gpu(script, line):
    command = [BIN / "python", ROOT / "benchmarks" / script, "--on-cpu"]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert line in done.stdout
