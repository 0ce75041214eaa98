# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Questions on what surrounds a run: its settings, its bundle, and real SuperNodes."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from ...federation import as_run_config
from ..exam import Exam, Steps
from ..results import parted_files
from ..runs import outputs_of
from ..verdict import Verdict, failed, not_asked, passed
from ..witness import Case

NONSENSE = "no-such-thing"
SECRETS = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bhf_[A-Za-z0-9]{30}")
LITTER = (
    "outputs/2026-01-01/00-00-00/settings.toml",
    ".venv/lib/site.py",
    "wandb/run/code.py",
    ".credentials/private.toml",
)
LONGEST_NAME = 32  # of an app's folder that newer Flower builds
LARGE = 100_000  # bytes, of a file that is no module
ONE_CORE = '{"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1}}'


def settings(exam: Exam) -> Steps:
    """A wrong value of a setting is refused, and the setting named."""
    app, whose = exam.app, exam.good.trainers()[0]
    if not app.defaults:
        return not_asked("run-config keys, in [tool.flwr.app.config]")
    cases: list[tuple[str, Any, Case]] = []
    for key, default in app.defaults.items():
        for value in wrong(default, key in app.exam.get("negative", [])):
            # Any text may be meant; of other values a client's first answer must say so.
            until = "contact" if isinstance(default, str) and isinstance(value, str) else "reply"
            case = exam.case(f"{key}-is-{value}", {key: value}, until=until, echo=whose)
            cases.append((key, value, case))
    problems, refused, free = [], 0, []
    runs = yield [case for _, _, case in cases]
    for (key, value, case), run in zip(cases, runs, strict=True):
        error = run.error or next((r["error"] for r in run.replies if r["error"]), "")
        named = key in error or key.replace("-", "_") in error
        refused += bool(error)
        if not error and case.until == "contact":
            free.append(key)
        if error and not named:
            problems.append(f"{key} = {value!r} ends in {error[:150]}, which does not name it")
        elif not error and case.until == "reply":
            problems.append(f"{key} = {value!r} is accepted")
        elif run.error and not run.replies and run.outputs:
            problems.append(f"{key} = {value!r} is refused after files were written")
    told = f"{len(cases)} wrong values of {len(app.defaults)} keys: {refused} refused"
    if problems:
        way_out = (
            "check type and range of each key before anything starts, and name it in the error"
        )
        return failed(f"{problems[0]}; {len(problems)} such", way_out, problems=problems)
    accepted = f"; any text is accepted for {', '.join(free)}" if free else ""
    return passed(f"{told} by name{accepted}")


def wrong(default: Any, negative: bool) -> list[Any]:
    """Return values that a key with such a default should not have."""
    below = [] if negative else [-1]
    match default:
        case bool():
            return [NONSENSE, 7]
        case int():
            return [NONSENSE, 1.5, *below]
        case float():
            return [NONSENSE, float("nan"), *(float(v) for v in below)]
    return [7, NONSENSE]


def bundle(exam: Exam) -> Verdict:
    """`flwr build` bundles no data, key or output."""
    folder = exam.scratch / "bundles"
    littered, as_it_is = folder / "littered" / "app", exam.app.folder
    shutil.copytree(as_it_is, littered, ignore=large)
    if len(as_it_is.name) > LONGEST_NAME:
        apart = shutil.ignore_patterns(".git", ".venv")  # all else is examined, however large
        as_it_is = shutil.copytree(as_it_is, folder / "short-name" / "app", ignore=apart)
    for name in LITTER:
        (littered / name).parent.mkdir(parents=True, exist_ok=True)
        (littered / name).write_text("")
    problems, told = [], ""
    for what, app in (("", as_it_is), (" after a run", littered)):
        try:
            files = built(app, folder / app.parent.name)
        except ValueError as error:
            return failed(str(error), "run `flwr build` by hand, and do what it says")
        told = told or f"{len(files)} files, {sum(map(len, files.values())):,} bytes"
        for name, content in files.items():
            if name in LITTER:
                problems.append(f"{name} would be bundled{what}")
            elif secret := SECRETS.search(content):
                problems.append(f"{name} is bundled, with {secret[0].decode()[:32]}…")
            elif Path(name).suffix != ".py" and len(content) > LARGE:
                problems.append(f"{name} is bundled: {len(content):,} bytes that are no code")
            elif "outputs" in Path(name).parts:
                problems.append(f"{name} is bundled")
    if problems:
        return failed(f"{problems[0]}; {len(problems)} such", "name it in the app's .gitignore")
    return passed(f"{told}: code and settings only, also beside outputs, keys and environments")


def large(folder: str, names: list[str]) -> list[str]:
    """Return what a copy for a bundle can do without."""
    paths = [Path(folder, name) for name in names]
    return [
        p.name
        for p in paths
        if p.name in (".git", ".venv", "outputs", "__pycache__")
        or (p.is_file() and p.stat().st_size > 10_000_000)
    ]


def built(app: Path, folder: Path) -> dict[str, bytes]:
    """Return the files of an app's bundle.

    Raises:
        ValueError: Flower cannot build it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from flwr.cli.app import app; app()", "build", "--app", app]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    bundles = list(folder.glob("*.fab"))
    if done.returncode or not bundles:
        raise ValueError(f"`flwr build` fails: {(done.stdout + done.stderr).strip()[-300:]}")
    with zipfile.ZipFile(bundles[0]) as file:
        names = [name for name in file.namelist() if not name.startswith(".info")]
        return {name: file.read(name) for name in names}


def engines(exam: Exam) -> Verdict:
    """In one process, simulated, and on SuperNodes over TLS, a run is the same."""
    if not exam.deploy:
        return not_asked("--deploy, and minutes")
    kit = __package__.split(".exam.")[0]
    given = ["--run-config", as_run_config(exam.app.settings)]
    app, nodes = ["--app", exam.app.folder], ["--num-supernodes", 2]
    federation = [sys.executable, "-m", f"{kit}.federation", exam.app.folder, *nodes, "--warm"]
    commands: dict[str, list[Any]] = {
        "in one process": [sys.executable, "-m", f"{kit}.in_process", *app, *nodes, *given],
        "over TLS": [*federation, *given],
    }
    simulation = Path(sys.executable).with_name("flower-simulation")
    if simulation.is_file():  # not with newer Flower
        backend = ["--backend-config", ONE_CORE]
        commands["simulated"] = [simulation, *app, *nodes, *backend, *given]
    folders = {}
    for name, command in commands.items():
        folder = folders[name] = exam.scratch / "engines" / name
        folder.mkdir(parents=True)
        path = os.pathsep.join([str(Path(__file__).parents[len(kit.split(".")) + 2]), *sys.path])
        done = subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines()
            return failed(f"{name}: {lines[-1] if lines else done.returncode}", "run it by hand")
    first = outputs_of(folders.pop("in one process"))
    for name, folder in folders.items():
        if text := parted_files(first, outputs_of(folder)):
            way_out = "let nothing depend on what a process did before, or on the number of threads"
            return failed(f"in one process and {name}: {text}", way_out)
    if first is None:
        return not_asked("files that a run leaves")
    return passed(f"in one process, {', '.join(folders)}: the same files")
