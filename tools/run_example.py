"""Run an example with its offline settings by the kit's simulation, and say how long it took."""

import argparse
import os
import signal
import subprocess
import sys
import time

from measured import offline_seconds, result
from repository import ROOT, example_folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", help="a folder in examples/")
    parser.add_argument("--run-config", default="", help="'key=value key=value'")
    arguments = parser.parse_args()
    folder = example_folder(arguments.example)
    command = [sys.executable, "-m", "kit.simulation", "--app", os.path.relpath(folder)]
    command += ["--run-config", str(folder / "offline.toml")]
    command += ["--run-config", arguments.run_config] if arguments.run_config else []
    if not arguments.run_config and arguments.example in result("offline")["examples"]:
        print(f"This will take about {offline_seconds(arguments.example)}.", flush=True)
    began = time.monotonic()
    status = run(command)
    seconds = time.monotonic() - began
    ending = {0: "ok", 130: "interrupted", 143: "interrupted"}.get(status, "FAILED")
    print(f"{arguments.example}: {ending} after {seconds:.0f} s")
    return status


def run(command: list[str]) -> int:
    """Run a command to its end, also when this process is told to end, and pass that on to it."""
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
