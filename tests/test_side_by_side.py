"""What benchmarks/side_by_side.py compares is the same work."""

import ast
import json
import os
import subprocess
import sys

import pytest
from measured import result
from repository import ROOT, flatten, flower_settings

sys.path.append(str(ROOT / "benchmarks"))
import side_by_side
from common import declared_config


@pytest.mark.parametrize("name", [name for name in side_by_side.JOBS if name != "flowertune-llm"])
def test_jobs_set_keys_that_there_are(name, tmp_path):
    check_keys(side_by_side.JOBS[name](tmp_path))


def test_language_job_sets_keys_that_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr("flowertune_llm.smollm2.model_folder", lambda: tmp_path)
    check_keys(side_by_side.flowertune_llm(tmp_path))


def check_keys(job: side_by_side.Job):
    for app, config in ((job.app, job.config), job.rival):
        assert config.keys() <= flatten(flower_settings(app)["app"]["config"]).keys()


def test_every_example_is_a_job():
    assert sorted(side_by_side.JOBS) == sorted(path.name for path in (ROOT / "examples").iterdir())


@pytest.mark.thorough
def test_plain_loop_learns(tmp_path):
    app = ROOT / "examples" / "pytorch-from-centralized-to-federated"
    config = declared_config(app, offline=True) | {"partitioning": "iid", "num-server-rounds": 2}
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps({"job": app.name, "clients": 2, "config": config}))
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "rivals" / "plain.py", asked],
        env=os.environ | {"PYTHONPATH": str(app)},
        stdout=subprocess.PIPE,
        check=True,
    )
    first, last = map(json.loads, done.stdout.splitlines())
    assert (first["round"], last["round"]) == (1, 2)
    assert first["score"] < last["score"]
    assert last["score"] > 0.8


def test_plain_loops_do_without_flower():
    """They are installed without it; so what they import of the examples must not need it."""
    loops = ast.parse((ROOT / "benchmarks" / "rivals" / "plain.py").read_text())
    imports = [node for node in ast.walk(loops) if isinstance(node, ast.ImportFrom)]
    lines = [
        "import sys",
        "sys.modules |= dict.fromkeys(('flwr', 'ray'))",
        *map(ast.unparse, imports),
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "examples").iterdir()))},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_plain_loops_reach_what_the_examples_reach():
    """In points of accuracy, or in nats; threads differ, so sums do in their last bits."""
    for ways in result("side-by-side")["jobs"].values():
        assert abs(ways["plain"]["score"] - ways["example"]["score"]) < 0.02
