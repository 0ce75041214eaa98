"""Every command in every page works: its options, files and settings exist."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from on_this_machine import BIN, PINNED
from repository import ROOT, example_folder, example_names, flatten, flower_settings

# Words of the shell, and programs of the system.
LEFT_OUT = ("cd", "export", "source", "git")
SUBCOMMANDS = ("run", "build", "log", "ls", "stop", "supernode", "register", "unregister", "list")
SUBCOMMANDS += ("start", "install", "server", "node", "sync", "login")


def pages() -> list[Path]:
    listed = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    of_examples = [
        path
        for example in example_names()
        for path in sorted(example_folder(example).rglob("*.md"))
        if not any(
            part == "outputs" or part.startswith(".") for part in path.relative_to(ROOT).parts
        )
    ]
    return [*listed, *sorted(ROOT.glob("docs/*.md")), *of_examples]


def commands(page: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield folder and words of each command in a page's shell blocks; `cd` changes the folder.

    Commands in docs/ and benchmarks/ are for the root of the repository, those of an example, its
    wings' too, for its folder.
    """
    text = page.read_text()
    start = ROOT
    if ROOT / "examples" in page.parents:
        start = example_folder(page.relative_to(ROOT / "examples").parts[0])
    for block in re.findall(r"```(?:bash|shell|sh)\n(.*?)```", text, re.DOTALL):
        folder = start
        for line in re.split(r"\n| && ", block.replace("\\\n", " ")):
            words = shlex.split(re.sub(r"^\s*(\w+=\S* )+", "", line), comments=True)
            if words[:1] == ["cd"]:
                folder = folder / words[1]
            if words and words[0] not in LEFT_OUT:
                yield folder, words
    for rows in re.findall(
        r"^\| \| flwr 1.25 \| the newest \|\n.*\n((?:\|.*\n)+)", text, re.MULTILINE
    ):
        yield from ((ROOT, words) for words in column(rows))


def column(rows: str) -> list[list[str]]:
    """Return the commands, with their options, in the installed release's column of a table."""
    found = []
    for row in rows.splitlines():
        _, _, pinned, newest, _ = row.split("|")
        cell = pinned if PINNED or newest.startswith(" the same") else newest
        for code in re.findall(r"`([^`]+)`", cell):
            if code.startswith(("flwr ", "flower-", "python -m ")):
                found.append(shlex.split(code))
            elif code.startswith("--"):
                found[-1] += shlex.split(code)
    return found


@cache
def help_text(folder: Path, *words: str) -> str:
    """Return a program's --help; an unknown program or subcommand fails."""
    done = subprocess.run(
        [*words, "--help"],
        cwd=folder,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def all_commands() -> list[pytest.param]:
    return [
        pytest.param(folder, words, id=f"{page.relative_to(ROOT)}: {shlex.join(words)}"[:150])
        for page in pages()
        for folder, words in commands(page)
    ]


@pytest.mark.parametrize(("folder", "words"), all_commands())
def test_command(folder, words):
    program, *rest = words
    if "flower-supernode" in rest:  # its arguments are another command
        inner = rest.index("flower-supernode")
        test_command(folder, rest[inner:])
        rest = rest[:inner]
    app = next((folder / w for w in [*rest, "."] if (folder / w / "offline.toml").is_file()), None)
    if program == "make":
        app = check_make(folder, rest)
    else:
        program = program.removeprefix(".venv/bin/")
        named = 2 if rest[:1] == ["-m"] else 1
        lead = rest[:named] if program == "python" else []
        lead += takewhile(SUBCOMMANDS.__contains__, rest[len(lead) :])
        where = folder if program.startswith(("python", "./")) else ROOT
        if ".kit." in " ".join(lead):  # a copy of the one in the root
            package, lead[1] = lead[1].split(".", 1)
            assert (folder / package / "kit").is_dir()
            where = ROOT
        known = help_text(where, program, *lead)
        for option in (word for word in rest if word.startswith("--")):
            assert re.search(rf"{option}(?![\w-])", known), option
    files = {word for word in rest if re.fullmatch(r"[\w./-]+\.(py|toml|txt)", word)}
    files |= {word.split("[")[0] for word in rest if word.startswith("examples/")}
    assert not [word for word in files if not (folder / word).exists()]
    for federation in (word for word in rest if word.startswith("local-")):
        assert federation in flower_settings(app)["federations"]
    for option, value in pairwise(rest):
        if option == "--run-config":
            check_run_config(app, str(folder / value) if value.endswith(".toml") else value)


def check_run_config(app: Path, given: str) -> None:
    known = flatten(flower_settings(app)["app"]["config"])
    changes = parse_config_args([given])
    assert changes
    for key, value in changes.items():
        assert key in known, f"{key} is not a run-config key of {app.name}"
        assert type(value) is type(known[key]) or (type(value), type(known[key])) == (int, float)


def check_make(folder: Path, rest: list[str]) -> Path:
    """Return the folder of the example that is named."""
    done = subprocess.run(["make", "-n", *rest], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    variables = dict(word.split("=", 1) for word in rest if "=" in word)
    app = ROOT / "examples" / variables.get("EXAMPLE", variables.get("FROM", "advanced-pytorch"))
    assert app.is_dir()
    if "CONFIG" in variables:
        check_run_config(app, variables["CONFIG"])
    return app


def dangling(page: Path) -> list[str]:
    """Return the links of a page that lead to no file, or to no section of it."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, section = link.partition("#")
        target = page.parent / path if path else page
        if not link.startswith("http") and not (
            target.exists() and (not section or section in sections(target))
        ):
            found.append(link)
    return found


def sections(page: Path) -> list[str]:
    """Return what links to a page's sections call them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not dangling(page)


def test_commands_are_found():
    for page in pages():
        least = 2 if page.parent.name == "docs" or page.name == "README.md" else 0
        assert len(list(commands(page))) >= least, page
