"""The folder of an app that is made from a script: the template, the script, the kit, task.py."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path

from new_app import PUBLISHER
from repository import ROOT

from .script import Script
from .task_file import Task

TEMPLATE, OLD, OLD_PACKAGE = Path(__file__).parent / "app", "federated-app", "federated_app"
BASE = "pytorch-from-centralized-to-federated"


def requirements(script: Script) -> Iterator[str]:
    """Yield what the script imports as requirements, at the versions that are installed here."""
    trees = [script.tree, *script.modules.values()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    found = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    found |= {
        n.module.split(".")[0]
        for n in nodes
        if isinstance(n, ast.ImportFrom) and n.module and not n.level
    }
    installed = packages_distributions()
    for name in sorted(
        found - set(sys.stdlib_module_names) - {script.path.stem, *script.modules, *script.folders}
    ):
        for distribution in sorted(set(installed.get(name, ())))[:1]:
            major, minor = f"{version(distribution)}.0".split(".")[:2]
            extra = "[torch]" if name == "transformers" else ""  # as its Trainer needs
            yield f"{distribution}{extra}>={major}.{minor},<{int(major) + 1}"


def make(script: Script, task: Task, target: Path, publisher: str) -> None:
    """Make the app, whole or not at all; the arguments as `new_app.make` has them."""
    name, package = target.name, target.name.replace("-", "_")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as folder:
        app = Path(folder, name)
        shutil.copytree(TEMPLATE, app, ignore=shutil.ignore_patterns("__pycache__"))
        (app / OLD_PACKAGE).rename(app / package)
        for path in app.rglob("*.*"):
            if path.is_file():
                text = path.read_text().replace(OLD_PACKAGE, package).replace(OLD, name)
                text = text.replace("the-script", script.path.name)
                path.write_text(text.replace(f'"{PUBLISHER}"', f'"{publisher}"'))
        for file in (script.path, *script.beside):
            copy = app / package / "own" / file.relative_to(script.path.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        shutil.copytree(
            ROOT / "kit", app / package / "kit", ignore=shutil.ignore_patterns("__pycache__")
        )
        for part in (".gitignore", "federations"):
            source = ROOT / "examples" / BASE / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, app / part)
        shutil.copy(ROOT / "LICENSE", app)
        if not task.has_epochs:
            without_lines(app, "local.epochs")
        if not task.reads_command_line:
            without_lines(app, "arguments")
            edit(app / package / "config.py", "anything, ", "")
        require(app / "pyproject.toml", requirements(script))
        path = app / package / "task.py"
        path.write_text(task.text())
        formatted(path)
        app.rename(target)


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def without_lines(app: Path, pattern: str) -> None:
    """Leave a setting out: the lines that declare it, and tell of it."""
    for path in [*app.glob("*/config.py"), app / "pyproject.toml", app / "README.md"]:
        lines = path.read_text().splitlines(keepends=True)
        key = re.compile(rf"(\s*|\| `|settings\.){pattern}\b(`|:| *=)")
        path.write_text("".join(line for line in lines if not key.match(line)))


def require(pyproject: Path, wanted: Iterator[str]) -> None:
    """Add what the script imports to the app's dependencies."""
    text = pyproject.read_text()
    before, names, after = re.split(
        r"(?<=dependencies = \[\n)(.*?)(?=\]\n)", text, maxsplit=1, flags=re.S
    )
    known = set(re.findall(r'"([\w.-]+)', names))
    more = [line for line in wanted if re.match(r"[\w.-]+", line)[0] not in known]
    listed = sorted([*names.splitlines(), *(f'    "{line}",' for line in more)])
    pyproject.write_text("\n".join([before.rstrip("\n"), *listed, after]))


def formatted(path: Path) -> None:
    """Break long lines, where ruff is installed."""
    ruff = shutil.which(
        "ruff", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if ruff:
        options = ["--quiet", "--isolated", "--line-length", "100"]
        subprocess.run([ruff, "format", *options, path], check=True)
