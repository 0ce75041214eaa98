"""Seconds and outcome of each example's offline run, as `make run` does it, on both processors.

First with all instructions of the processor, then with AVX2 alone, as on most laptops. An example
that can profile itself runs once more, with full caches, to tell where the time goes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, SEED, declared_config, history, instructions, measurement
from repository import example_names

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with measurement("offline", seeds=(SEED,)) as result:
        for key, limits in {"examples": {}, "avx2": AVX2}.items():
            if limits and instructions() == "AVX2":
                continue  # measured already
            result[key] = {}
            for name in example_names():
                result[key][name] = measured(name, limits)
                print(key, name, result[key][name], flush=True)


def measured(name: str, limits: dict[str, str]) -> dict[str, Any]:
    """Return seconds and outcome of a run with empty caches, and the parts of a second run's time.

    Args:
        name: of the example.
        limits: on the processor, as environment variables.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"XDG_CACHE_HOME": cache} | limits
        with tempfile.TemporaryDirectory() as folder:
            seconds = run(name, environment, folder)
            rounds = history(Path(folder))
        first, last = (rounds[i]["evaluate_metrics_serverapp"] for i in (0, -1))
        outcome = {"seconds": seconds, "first": first, "last": last}
        if "profile.enabled" in declared_config(ROOT / "examples" / name):
            with tempfile.TemporaryDirectory() as folder:
                seconds = run(name, environment, folder, "--run-config", "profile.enabled=true")
                outcome["again"] = {"seconds": seconds} | tasks(Path(folder))
    return outcome


def run(name: str, environment: dict[str, str], folder: str, *words: str) -> float:
    """Run an example offline in a folder, and return the seconds that it took.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, ROOT / "tools" / "run_example.py", name, *words]
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return time.monotonic() - began


def tasks(folder: Path) -> dict[str, float]:
    """Return the seconds of a profiled run's rounds, and of the tasks in them.

    Clients work at the same time, so the slowest of each round counts.
    """
    [profile] = folder.glob("outputs/*/*/profile.json")
    seconds = {"rounds": 0.0}
    for entry in json.loads(profile.read_text())["rounds"]:
        seconds["rounds"] += entry["seconds"]
        for task in {row["task"] for row in entry["tasks"]}:
            slowest = max(row["seconds_max"] for row in entry["tasks"] if row["task"] == task)
            seconds[task] = seconds.get(task, 0.0) + slowest
    return seconds


if __name__ == "__main__":
    main()
