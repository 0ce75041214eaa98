"""Start a SuperLink and SuperNodes on this machine, run the app, take everything down.

What ./run.sh calls. SuperNodes start one after the other; each holds a part of the data of its
own. --run-config takes what `flwr run` takes, offline.toml for instance.
"""

import argparse
import shutil
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click
import typer
from flwr.common.config import flatten_dict, parse_config_args

from ..config import Config
from ..kit.federation import Federation, exit_on_signals
from ..kit.processes import cores
from ..kit.settings import as_run_config

APP = Path(__file__).resolve().parents[2]
DEFAULT_CLIENTS, DEFAULT_ROUNDS = 2, 3
# Each starts a process, which takes seconds of a core; Flower gives it up after 30 s.
MESSAGES_A_CORE = 3
ARGUMENTS = {
    "NBCLIENTS": f"SuperNodes to start; {DEFAULT_CLIENTS} by default",
    "NBMINCLIENTS": f"of them, connected before a round starts; {DEFAULT_CLIENTS} by default",
    "NBFITCLIENTS": f"of them, sampled in each round; {DEFAULT_CLIENTS} by default",
    "NBROUNDS": f"rounds to train for; {DEFAULT_ROUNDS} by default",
}


@dataclass(frozen=True)
class Launch:
    """What to start: how many SuperNodes, and what is set differently from pyproject.toml."""

    clients: int
    changes: dict[str, Any]
    config: Config


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with an error in one line."""
        self.exit(2, f"run.sh: {message}\n")


def parse(words: list[str] | None = None) -> Launch:
    """Read and check the command line; exit with one line if something is wrong with it."""
    parser = Parser(
        prog="./run.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, what in ARGUMENTS.items():
        parser.add_argument(name, nargs="?", help=what)
    parser.add_argument("--run-config", default="", help="'key=value key=value', or a TOML file")
    given = parser.parse_args(words)

    def number(name: str, default: int) -> int:
        text = getattr(given, name) or str(default)
        if not text.isdecimal() or int(text) < 1:
            parser.error(f"{name} = {text}: a whole number of at least 1 is needed")
        return int(text)

    clients, rounds = number("NBCLIENTS", DEFAULT_CLIENTS), number("NBROUNDS", DEFAULT_ROUNDS)
    sizes = {n: number(n, min(DEFAULT_CLIENTS, clients)) for n in ("NBMINCLIENTS", "NBFITCLIENTS")}
    for name, size in sizes.items():
        if size > clients:
            parser.error(f"{name} = {size}: only NBCLIENTS = {clients} are to be started")
    try:
        return settings(clients, *sizes.values(), rounds, given.run_config)
    except typer.Exit:  # Flower has named the fault
        sys.exit(2)
    except (OSError, ValueError, click.ClickException) as error:
        parser.error(f"--run-config {given.run_config!r}: {error}")


def settings(clients: int, connected: int, sampled: int, rounds: int, run_config: str) -> Launch:
    """Turn the arguments into the run config's keys, checked as the app will check them."""
    declared = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    changes = parse_config_args([run_config])
    if unknown := sorted(changes.keys() - flatten_dict(declared).keys()):
        raise ValueError(f"no such key: {', '.join(unknown)}; pyproject.toml lists all")
    defaults = {
        "min-replies": min(connected, sampled, declared["min-replies"]),
        "messages-at-once": MESSAGES_A_CORE * cores(),
    }
    changes = defaults | changes
    changes |= {"num-server-rounds": rounds, "min-clients": connected}
    changes |= {"clients-to-train": sampled, "clients-to-evaluate": sampled}
    return Launch(clients, changes, Config.from_run_config(declared | changes))


def run(launch: Launch, folder: Path) -> str:
    """Start everything, follow the run, take everything down; return the run's status."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)

    launch.config.source(launch.clients).prepare()  # here, before many clients want it at once
    with Federation(APP, folder, secure=False, database=False, verbose=False) as federation:
        say(f"SuperLink: {federation.apis['fleet']}; logs until it ends well: {folder / 'logs'}")
        federation.start_supernodes(
            launch.clients, lambda n: say(f"SuperNodes: {n} of {launch.clients} connected")
        )
        run_id = federation.run(as_run_config(launch.changes))
        status = federation.follow(run_id)
        say(f"Run {run_id}: {status}")
    return status


def main() -> int:
    launch = parse()
    exit_on_signals()
    folder = Path(tempfile.mkdtemp(prefix="gpu-scaling-"))
    try:
        status = run(launch, folder)
    except RuntimeError as error:
        print(f"run.sh: {error}", file=sys.stderr)
        status = "failed"
    except KeyboardInterrupt:
        print("run.sh: interrupted; everything is taken down", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    if status != "finished:completed":
        if any(folder.iterdir()):
            print(f"run.sh: logs are in {folder / 'logs'}", file=sys.stderr)
        else:
            folder.rmdir()
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
