# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Run an app on a real federation on this machine: a SuperLink and SuperNodes, over TLS.

The command makes a certificate authority, certificates and keys, starts every part, registers the
SuperNodes' keys, runs the app, follows its log, and takes everything down again. It prints each
step as a command, for doing the same by hand on several machines.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import click
import typer
from flwr.common.config import flatten_dict, parse_config_args

from .. import app_folder
from ..settings import as_run_config
from .federation import NAME, Federation, FederationError, exit_on_signals
from .releases import RELEASE

COMPLETED, INTERRUPTED = "finished:completed", "interrupted"  # after these, logs are not kept
OUTPUTS = r"Outputs: (.*)"  # line in the run's log


def load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def settings(app: Path, offline: bool, run_config: str) -> dict[str, Any]:
    """Return the changes to pyproject.toml's settings: offline.toml's, and those given."""
    overrides = flatten_dict(load(app / "offline.toml")) if offline else {}
    return overrides | parse_config_args([run_config])


def replies_needed(app: Path, changes: dict[str, Any]) -> int:
    """Return the app's `min-replies`; 1 if it has no such key."""
    declared = load(app / "pyproject.toml")["tool"]["flwr"]["app"].get("config", {})
    config = flatten_dict(declared) | changes
    return int(config.get("min-replies", config.get("strategy.min-replies", 1)))


def parse(words: list[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Read and check the command line; return it, and the settings that it changes.

    Raises:
        SystemExit: it is wrong; the text says how, in a line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("app", type=Path, nargs="?", default=app_folder(), help="an app's folder")
    parser.add_argument("--num-supernodes", type=int, default=2, metavar="N")
    parser.add_argument("--offline", action="store_true", help="with the app's offline.toml")
    parser.add_argument("--run-config", default="", help="'key=value key=value', or a TOML file")
    parser.add_argument("--insecure", action="store_true", help="no TLS and no authentication")
    parser.add_argument("--warm", action="store_true", help="import PyTorch once, not in each step")
    parser.add_argument("--keep", action="store_true", help="leave it up until Ctrl-C")
    parser.add_argument("--folder", type=Path, help="keep keys, database and logs, and use them")
    given = parser.parse_args(words)
    given.app, folder = given.app.resolve(), given.folder
    if given.num_supernodes < 1:
        parser.error(f"--num-supernodes {given.num_supernodes}: at least 1 is needed")
    if not (given.app / "pyproject.toml").is_file():
        parser.error(f"{given.app} holds no pyproject.toml; name an app's folder")
    if "app" not in load(given.app / "pyproject.toml").get("tool", {}).get("flwr", {}):
        parser.error(f"{given.app}/pyproject.toml is not that of a Flower app; name its folder")
    if folder and folder.resolve().is_relative_to(given.app):
        parser.error(f"--folder {folder} is inside the app, which is copied into it")
    if folder and folder.is_dir() and any(folder.iterdir()) and not (folder / "logs").is_dir():
        parser.error(f"--folder {folder} holds files that are not a federation's; name another")
    try:
        changes = settings(given.app, given.offline, given.run_config)
    except (OSError, ValueError, typer.Exit, click.ClickException) as error:
        parser.error(f"--run-config {given.run_config!r} cannot be read ({error})")
    needed = replies_needed(given.app, changes)
    if given.num_supernodes < needed:
        parser.error(
            f"--num-supernodes {given.num_supernodes}: this run waits for min-replies = "
            f"{needed}; start as many, or lower it with --run-config"
        )
    return given, changes


def run(federation: Federation, given: argparse.Namespace, changes: dict[str, Any]) -> str:
    """Start the SuperNodes and run the app; return the run's status when it has ended."""
    federation.start_supernodes(given.num_supernodes)
    run_id = federation.run(as_run_config(changes))
    status = federation.follow(run_id)
    print(f"Run {run_id}: {status}")
    return status


def keep(federation: Federation) -> None:
    """Leave the federation up until Ctrl-C."""
    more = RELEASE.to_run(federation.app, federation.home("cli"), NAME)
    print(f"Still up, until Ctrl-C. To run more:\n$ {more}", flush=True)
    while True:
        federation.check()
        time.sleep(0.5)


def main(words: list[str] | None = None) -> int:
    given, changes = parse(words)
    exit_on_signals()
    folder, status = given.folder or Path(tempfile.mkdtemp(prefix="federation-")), "not run"
    exit_status = 0
    try:
        with Federation(
            given.app, folder, secure=not given.insecure, warm=given.warm
        ) as federation:
            status = run(federation, given, changes)
            if given.keep:
                keep(federation)
    except FederationError as error:
        print(f"Error: {error}", file=sys.stderr)
    except (KeyboardInterrupt, SystemExit) as ending:
        print("Interrupted: taken down")
        if status == "not run":
            print(f"Interrupted; {what_is_safe(folder)}")
            status, exit_status = INTERRUPTED, getattr(ending, "code", 130)
    if status not in (COMPLETED, INTERRUPTED):
        print(f"Logs: {folder / 'logs'}", file=sys.stderr)
        return 1
    if not given.folder:
        shutil.rmtree(folder)
    return exit_status


def what_is_safe(folder: Path) -> str:
    """Return a line on the last round that the last run has saved."""
    logs = sorted(folder.glob("logs/run-*.log"), key=lambda log: log.stat().st_mtime)
    for outputs in re.findall(OUTPUTS, logs[-1].read_text(errors="replace")) if logs else []:
        results = Path(outputs) / "results.json"
        if results.is_file():
            last = json.loads(results.read_text("utf-8"))[-1]["round"]
            return f"round {last} is safe: resume-from='{outputs}'"
    return "no round is saved yet"


if __name__ == "__main__":
    sys.exit(main())
