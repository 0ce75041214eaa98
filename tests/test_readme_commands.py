"""Every command in every README is one that works: it parses, its files and keys exist."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from flowertune_llm.profile_report import parser as profile_parser
from flwr.cli.app import app as flwr_cli
from flwr.common.config import parse_config_args
from flwr.server.app import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from gpu_scaling.launch import parse as parse_run_sh
from ray.scripts.scripts import cli as ray_cli
from repository import ROOT, flatten, flower_settings
from typer.main import get_command

PROGRAMS = ("flwr", "flower-simulation", "flower-superlink", "flower-supernode", "ray")
PROGRAMS += ("flwr-profile", "make", "pip", "uv", "python", "python3", "wandb", "run.sh")


def pages() -> list[Path]:
    listed = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/*/README.md")]
    return sorted([*listed, ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/*.md")])


def commands(page: Path) -> list[tuple[Path, list[str]]]:
    """Return the (folder, words) of each command in a page's shell blocks, `cd` followed.

    The pages in docs/ and benchmarks/ are to be followed from the root of the repository.
    """
    found = []
    for block in re.findall(r"```(?:bash|shell|sh)\n(.*?)```", page.read_text(), re.DOTALL):
        folder = ROOT if page.parent.name in ("docs", "benchmarks") else page.parent
        for line in block.replace("\\\n", " ").splitlines():
            for words in split_list(shlex.split(line, comments=True)):
                while words and re.match(r"\w+=", words[0]):
                    words = words[1:]
                if words[:1] == ["cd"]:
                    folder = folder / words[1]
                elif words and Path(words[0]).name in PROGRAMS:
                    found.append((folder, [Path(words[0]).name, *words[1:]]))
    return found


def split_list(words: list[str]) -> list[list[str]]:
    """Split `a && b` into its commands."""
    parts = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def all_commands() -> list[pytest.param]:
    return [
        pytest.param(folder, words, id=f"{page.relative_to(ROOT)}: {shlex.join(words)}"[:150])
        for page in pages()
        for folder, words in commands(page)
    ]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_found(page):
    assert len(commands(page)) >= 2


@pytest.mark.parametrize(("folder", "words"), all_commands())
def test_command(folder: Path, words: list[str]):
    program, *rest = words
    {
        "flwr": check_flwr,
        "flower-superlink": lambda folder, rest: _parse_args_run_superlink().parse_args(rest),
        "flower-supernode": lambda folder, rest: _parse_args_run_supernode().parse_args(rest),
        "ray": lambda folder, rest: parse_with_click(ray_cli, rest),
        "flower-simulation": check_simulation,
        "flwr-profile": check_profile,
        "make": check_make,
        "pip": check_pip,
        "uv": lambda folder, rest: check_pip(folder, rest[1:]),
        "python": check_python,
        "python3": check_python,
        "wandb": lambda folder, rest: None,
        "run.sh": check_run_sh,
    }[program](folder, rest)


def parse_with_click(command: Any, words: list[str]) -> None:
    """Have a command line parsed by the program's own parser, that of the last subcommand."""
    while hasattr(command, "commands"):
        assert words[0] in command.commands
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


def check_flwr(folder: Path, rest: list[str]):
    parse_with_click(get_command(flwr_cli), rest)
    if rest[0] not in ("run", "build"):
        return
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("command", choices=["run", "build"])
    parser.add_argument("app", nargs="?", default=".")
    parser.add_argument("federation", nargs="?")
    parser.add_argument("--run-config", "-c")
    parser.add_argument("--federation-config")
    parser.add_argument("--stream", action="store_true")
    arguments = parser.parse_args(rest)
    app = folder / arguments.app
    if arguments.federation and arguments.federation != "production":  # the reader's own
        assert arguments.federation in flower_settings(app)["federations"]
    check_run_config(folder, app, arguments.run_config)


def check_simulation(folder: Path, rest: list[str]):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--app", required=True)
    parser.add_argument("--num-supernodes", type=int, required=True)
    parser.add_argument("--backend-config", type=json.loads, default={})
    parser.add_argument("--run-config")
    arguments = parser.parse_args(rest)
    assert arguments.backend_config.keys() <= {"client_resources", "init_args"}
    check_run_config(folder, folder / arguments.app, arguments.run_config)


def check_run_sh(folder: Path, rest: list[str]):
    assert (folder / "run.sh").is_file()
    if "--run-config" in rest and (config := rest[-1]).endswith(".toml"):
        rest = [*rest[:-1], str(folder / config)]
    assert parse_run_sh(rest).clients >= 1  # exits where something is wrong


def check_run_config(folder: Path, app: Path, run_config: str | None):
    known = flatten(flower_settings(app)["app"]["config"])
    if run_config and run_config.endswith(".toml"):
        run_config = str(folder / run_config)
    changes = parse_config_args([run_config] if run_config else None)
    assert changes or not run_config
    for key, value in changes.items():
        assert key in known, f"{key} is not a run-config key of {app.name}"
        assert type(value) is type(known[key]) or (type(value), type(known[key])) == (int, float)


def check_profile(folder: Path, rest: list[str]):
    arguments = profile_parser().parse_args(rest)
    assert arguments.federation in {None, *flower_settings(folder)["federations"]}


def check_make(folder: Path, rest: list[str]):
    done = subprocess.run(["make", "-n", *rest], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    variables = dict(word.split("=", 1) for word in rest if "=" in word)
    named = variables.get("EXAMPLE") or variables.get("FROM") or "advanced-pytorch"
    app = ROOT / "examples" / named
    assert app.is_dir()
    if "CONFIG" in variables:
        check_run_config(folder, app, variables["CONFIG"])


def check_pip(folder: Path, rest: list[str]):
    assert rest[0] == "install"
    if "-e" in rest:
        target = rest[rest.index("-e") + 1].split("[")[0]
        assert (folder / target / "pyproject.toml").is_file()


def check_python(folder: Path, rest: list[str]):
    """A script or module exists, and its --help knows the subcommand and options given."""
    named = 2 if rest[0] == "-m" else 1
    program, words = rest[:named], rest[named:]
    if program[-1] in ("venv", "pytest"):
        return
    if named == 1:
        assert (folder / program[0]).is_file()
    subcommand = [word for word in words[:1] if not word.startswith("-")]
    text = help_text(folder, *program, *subcommand)
    for option in (word for word in words if word.startswith("--")):
        assert option in text


@cache
def help_text(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words, "--help"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
