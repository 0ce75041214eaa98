"""Make an app from a training script: its own functions, called by a federation.

The script is read, and copied into the app byte for byte. What makes the model and the data, what
trains and what tests is found in it, or named: MODEL=, TRAIN=, TEST=, DATA=, each `function` or
`module:function`. Then the app is asked whether one client with all the data trains as the script
does: the same weights, bit for bit, or where they part. docs/federate.md says what a script needs.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from new_app import PUBLISHER, check, next_steps, refuse

from .app_folder import BASE, make
from .python_trees import CannotBeConverted
from .script import Script
from .search import find_training
from .task_file import Task

KINDS = ("model", "train", "test", "data")


def ask(app: Path, script: Path) -> int:
    """Ask the centralised question, where the script lies: its data may be named from there."""
    package = app.name.replace("-", "_")
    paths = f"{app}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    quiet = {"TQDM_DISABLE": "1", "MPLBACKEND": "Agg"}  # no bars, no windows
    command = [sys.executable, "-m", f"{package}.centralised"]
    env = os.environ | {"PYTHONPATH": paths} | quiet
    return subprocess.run(command, cwd=script.parent, env=env).returncode


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
        task = Task(find_training(script), target.name.replace("-", "_"))
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
    print(f"\n{next_steps(arguments.target)}")
    return status
