"""`make plan`: a round's seconds and bytes, and what it refuses."""

import re
import subprocess
import sys

import pytest
from repository import ROOT


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "plan", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_link_takes_the_time_of_its_bits():
    """100 replies of 4 MB, and the model for each of 2 workers, at 100 MB a second."""
    done = run("CLIENTS=1000000", "DRAWN=100", "MODEL_MB=4", "LINK_MBIT=800", "TRAIN_SECONDS=0.1")
    assert done.returncode == 0, done.stderr
    parts = {name: float(x) for name, x in re.findall(r"^  (.+?) +([\d.]+) s ", done.stdout, re.M)}
    assert parts["training"] == pytest.approx(100 * 0.1 / 2)
    assert parts["the link"] == pytest.approx((8 + 400) / 100)
    assert parts["around it"] > 0
    [total] = re.findall(r"2 at once: ([\d.]+) s", done.stdout)
    assert float(total) == pytest.approx(sum(parts.values()), abs=0.02)
    assert "8.0 MB down, 400.0 MB up" in done.stdout


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ("DRAWN=2000", "--drawn = 2000 is more than --clients = 1000"),
        ("DRAWN=0", "argument --drawn: 0: must be above 0"),
        ("MODEL_MB=nan", "argument --model-mb: nan: must be above 0"),
        ("LINK_MBIT=-5", "argument --link-mbit: -5: must be above 0"),
        ("CLIENTS=", "argument --clients"),
    ],
)
def test_bad_input_is_refused_by_name(changed, error):
    done = run("CLIENTS=1000", "DRAWN=10", "MODEL_MB=1", changed)
    assert done.returncode != 0
    assert error in done.stderr
    assert "round of" not in done.stdout


def test_plan_needs_no_packages():
    """It answers before anything is installed."""
    words = ["--clients", "10", "--drawn", "5", "--model-mb", "1"]
    command = [sys.executable, "-S", ROOT / "tools" / "plan.py", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
