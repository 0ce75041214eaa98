"""Seconds and outcome of each example's offline run, as `make run` does it."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, SEED, history, measurement
from repository import example_names


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with measurement("offline", seeds=(SEED,)) as result:
        examples = result["examples"] = {}
        for name in example_names():
            command = [sys.executable, ROOT / "tools" / "run_example.py", name]
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                done = subprocess.run(
                    command,
                    cwd=folder,
                    env=os.environ | {"XDG_CACHE_HOME": folder},  # as the first time: empty caches
                    stderr=subprocess.PIPE,
                    text=True,
                )
                seconds = time.monotonic() - began
                if done.returncode != 0:
                    raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
                rounds = history(Path(folder))
            first, last = (rounds[i]["evaluate_metrics_serverapp"] for i in (0, -1))
            examples[name] = {"seconds": seconds, "first": first, "last": last}
            print(name, examples[name])


if __name__ == "__main__":
    main()
