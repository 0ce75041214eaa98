"""Run an example with its offline settings, as `flwr run` would, and fail when the app fails.

`flwr run` of the pinned release exits 0 whatever happens to the app, and takes either a TOML
file or key=value pairs. This takes both, and calls `flower-simulation`, which it wraps too.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from flwr.common.config import parse_config_args
from measured import offline_seconds, result
from repository import as_run_config, example_folder, flatten, flower_settings, load_toml


def simulation_command(folder: Path, overrides: dict[str, Any]) -> list[str]:
    """Return the command that runs the app in its default federation."""
    federations = flower_settings(folder)["federations"]
    options = federations[federations["default"]]["options"]
    return [
        "flower-simulation",
        *("--app", os.path.relpath(folder)),
        *("--num-supernodes", str(options["num-supernodes"])),
        *("--backend-config", json.dumps(options["backend"])),
        *("--run-config", as_run_config(overrides)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", help="a folder in examples/")
    parser.add_argument("--run-config", default="", help="'key=value key=value'")
    arguments = parser.parse_args()
    folder = example_folder(arguments.example)
    overrides = flatten(load_toml(folder / "offline.toml"))
    overrides |= parse_config_args([arguments.run_config])
    command = simulation_command(folder, overrides)
    print(f"$ {shlex.join(command)}", flush=True)
    if not arguments.run_config and arguments.example in result("offline")["examples"]:
        print(f"It took {offline_seconds(arguments.example)}.", flush=True)
    began = time.monotonic()
    status = run([str(Path(sys.executable).parent / command[0]), *command[1:]])
    seconds = time.monotonic() - began
    ending = {0: "ok", 130: "interrupted", 143: "interrupted"}.get(status, "FAILED")
    print(f"{arguments.example}: {ending} after {seconds:.0f} s")
    return status


def run(command: list[str]) -> int:
    """Run a command to its end, also when this process is told to end, and pass that on to it."""
    process = subprocess.Popen(command)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
