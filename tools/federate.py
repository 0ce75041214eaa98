"""Make an app from a training script: its own functions, called by a federation.

The script is read, and copied into the app byte for byte. What makes the model and the data, what
trains and what tests is found in it, or named: MODEL=, TRAIN=, TEST=, DATA=, each `function` or
`module:function`. Then the app is asked whether one client with all the data trains as the script
does: the same weights, bit for bit, or where they part. docs/federate.md says what a script needs.
"""

import argparse
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

from new_app import PUBLISHER, check, refuse
from repository import ROOT
from script_reader import Script
from syntax import CannotBeConverted
from task_writer import Task

TEMPLATE, OLD, OLD_PACKAGE = ROOT / "tools" / "federated_app", "federated-app", "federated_app"
BASE = "pytorch-from-centralized-to-federated"
KINDS = ("model", "train", "test", "data")


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
    for name in sorted(found - set(sys.stdlib_module_names) - {script.path.stem, *script.modules}):
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
            shutil.copy(file, app / package / "own")
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


def ask(app: Path, script: Path) -> int:
    """Ask the centralised question, where the script lies: its data may be named from there."""
    package = app.name.replace("-", "_")
    paths = f"{app}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    command = [sys.executable, "-m", f"{package}.centralised"]
    return subprocess.run(
        command, cwd=script.parent, env=os.environ | {"PYTHONPATH": paths}
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", type=Path, help="the training script")
    parser.add_argument("target", help="where the app goes, ../my-app for instance")
    parser.add_argument("--model", default="", help="class or function that makes the model")
    parser.add_argument("--train", default="", help="function that trains")
    parser.add_argument("--test", default="", help="function that tests")
    parser.add_argument("--data", default="", help="function that returns the data; or two: a,b")
    parser.add_argument("--publisher", default=PUBLISHER, help="of the app, in its pyproject.toml")
    arguments = parser.parse_args()
    path, target = arguments.script.resolve(), Path(arguments.target).resolve()
    check(BASE, target)
    if not path.is_file() or path.suffix != ".py":
        refuse(f"SCRIPT={arguments.script}: there is no such Python file")
    if not path.stem.isidentifier():
        refuse(f"{path.name} cannot be imported: give it a name of letters, digits and underscores")
    try:
        script = Script(path, {kind: getattr(arguments, kind) for kind in KINDS})
        task = Task(script.training(), target.name.replace("-", "_"))
    except SyntaxError as error:
        refuse(f"{path.name} is no Python that {sys.version.split()[0]} reads: {error}")
    except CannotBeConverted as why:
        refuse(f"{path.name}: {why}")
    told = "\n".join(f"    {line}" for line in task.told())
    make(script, task, target, arguments.publisher)
    print(f"Found in {path.name} (name others by MODEL=, TRAIN=, TEST=, DATA=):\n\n{told}\n")
    print(f"{target} is yours; its task.py says how {path.name} is called.\n")
    print("Does one client with all the data train as the script does?", flush=True)
    status = ask(target, path)
    print(
        f"\nNow:\n\n    cd {arguments.target}\n    pip install -e .\n"
        "    flwr run . --run-config offline.toml\n"
        f"    python -m {target.name.replace('-', '_')}.kit.exam"
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
