# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Helpers for tests: running the app in this process or by the user's commands, and test data."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, load_dataset
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.config import flatten_dict
from PIL import Image

from . import app_folder
from .in_process import load, run_app, sign_messages
from .run import CHECKPOINT, CONFIG, CURVES, RESULTS
from .settings import as_run_config

APP = app_folder()
BIN = Path(sys.executable).parent
# One worker of Ray, not one for each core: importing PyTorch takes most of a short run.
ONE_WORKER = '{"init_args": {"num_cpus": 1}, "client_resources": {"num_cpus": 1}}'
# A language model in bfloat16 takes half an hour on a processor without instructions for it.
RUN_SECONDS, START_SECONDS = 3600, 600

sign_messages(1)  # tests make messages where no run does

# A shell's background job ignores Ctrl-C, and so would the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

posix_only = pytest.mark.skipif(os.name == "nt", reason="stops processes by their POSIX group")


def declared(app: Path = APP) -> dict[str, Any]:
    """Return [tool.flwr] of the app's pyproject.toml."""
    return tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]


def run_config() -> dict[str, Any]:
    """Return the run config of pyproject.toml, flat, as an app receives it."""
    return flatten_dict(declared()["app"]["config"])


def offline(**changes: Any) -> dict[str, Any]:
    """Return offline.toml's settings with changes; write a key's - and . as _ and __."""
    settings = flatten_dict(tomllib.loads((APP / "offline.toml").read_text()))
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    return settings | named


def in_process(
    folder: Path, nodes: int, client_app: ClientApp | None = None, **changes: Any
) -> list[dict[str, Any]]:
    """Run the app in this process, with its offline settings and changes; return results.json.

    Args:
        folder: parent of outputs/.
        nodes: number of clients.
        client_app: replaces the app's own.
        changes: as for `offline`.
    """
    run_app(APP, nodes, {"output-dir": str(folder / "outputs")} | offline(**changes), client_app)
    return results(folder)


class Faulty(ClientApp):
    """The app's ClientApp, with faults.

    Args:
        fault: takes each message, its context, and a function that answers it; returns the reply.
    """

    def __init__(self, fault: Callable[[Message, Context, Callable[[], Message]], Message]) -> None:
        super().__init__()
        self.fault = fault

    def __call__(self, message: Message, context: Context) -> Message:
        app: ClientApp = load(APP, declared()["app"]["components"]["clientapp"])
        return self.fault(message, context, lambda: app(message, context))


def stop_at(count: int) -> Faulty:
    """Return a ClientApp that ends the whole run at message number `count`."""
    seen = 0

    def fault(message: Message, context: Context, answer: Callable[[], Message]) -> Message:
        nonlocal seen
        seen += 1
        if seen == count:
            raise KeyboardInterrupt
        return answer()

    return Faulty(fault)


def simulation(app: Path, settings: dict[str, Any] | Path, nodes: int | None = None) -> list[str]:
    """Return the command that simulates an app on Ray, by default with all its clients."""
    federation = declared(app)["federations"]["local-simulation"]
    count = nodes or federation["options"]["num-supernodes"]
    given = settings if isinstance(settings, Path) else as_run_config(settings)
    command = [BIN / "flower-simulation", "--app", app, "--num-supernodes", count]
    command += ["--backend-config", ONE_WORKER, "--run-config", given]
    return [str(word) for word in command]


def environment(folder: Path) -> dict[str, str]:
    """Return an environment that marks all processes of a command with its folder."""
    own = {"FLWR_TELEMETRY_ENABLED": "0", "TEST_FOLDER": str(folder)}
    # On few cores, threads that spin while they wait slow each other down a hundredfold.
    own |= {"OMP_WAIT_POLICY": "PASSIVE"}
    return os.environ | own | {"PATH": f"{BIN}:{os.environ['PATH']}"}


def marked(folder: Path) -> list[int]:
    """Return the processes with this folder in their environment; on Linux only."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # ended, or another user's
            if f"TEST_FOLDER={folder}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def run(command: list, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `more` is added to the environment."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment(folder) | more,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=RUN_SECONDS,
    )


def start(command: list, folder: Path, until: Callable[[str], object]) -> subprocess.Popen:
    """Start a command in a process group of its own, and wait until `until(log)` is true."""
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=environment(folder),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not until(log.read_text()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    return process


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_as_the_readme_says(folder: Path, *more: str) -> str:
    """Run the app offline by `flwr run`, check the files and lines of every run; return the log.

    Args:
        folder: the working directory.
        more: further files in the run's folder.
    """
    done = run([BIN / "flwr", "run", APP, "--run-config", APP / "offline.toml"], folder)
    assert list(folder.glob("outputs/*/*/curves.png")), done.stdout
    path = only_run(folder)
    left = {file.name for file in path.iterdir()}
    assert left == {CONFIG, RESULTS, CURVES, CHECKPOINT, *more}
    logged = re.findall(r"INFO.*?:\s+(\S.*)", done.stdout)
    assert logged[0] == f"Outputs: {path}" == logged[-1]
    settings = json.loads((path / CONFIG).read_text())
    assert {key: settings[key] for key in offline()} == offline()
    rounds = range(settings["num-server-rounds"] + 1)
    assert [entry["round"] for entry in results(folder)] == list(rounds)
    return done.stdout


def passes_the_exam(folder: Path, *words: str) -> None:
    """Ask the app all questions of its exam, and see it answer the same bits each time."""
    done = run([sys.executable, "-m", f"{__package__}.exam", *words], folder)
    assert done.returncode == 0, done.stdout
    questions = json.loads((folder / "exam.json").read_text())["questions"]
    evidence = {question["name"]: question["evidence"] for question in questions}
    assert all("bit for bit" in evidence[name] for name in ("repeats", "order"))


def named_folder(variable: str, subfolder: str) -> Path:
    """Return the folder that an environment variable names; skip the test if there is none."""
    name = os.environ.get(variable, "")
    if not (name and Path(name, subfolder).is_dir()):
        pytest.skip(f"{variable} names no folder with {subfolder}/")
    return Path(name)


def only_run(folder: Path) -> Path:
    [path] = folder.glob("outputs/????-??-??/??-??-??")
    return path


def results(folder: Path) -> list[dict[str, Any]]:
    """Return results.json of the only run in a folder."""
    return json.loads((only_run(folder) / "results.json").read_text())


def copy(folder: Path, *left_out: str) -> Path:
    """Return a copy of the app in a folder, without outputs and the files `left_out`."""
    app = folder / "app"
    ignored = shutil.ignore_patterns("outputs", "__pycache__", ".*", *left_out)
    shutil.copytree(APP, app, ignore=ignored)
    return app


def edit(path: Path, old: str, new: str) -> None:
    """Replace `old`, which must occur once in a file of a copy."""
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def write_digits(
    folder: Path, size: int, make: Callable[[np.ndarray], Image.Image], count: int = 400
) -> str:
    """Write scikit-learn's digits as train/<class>/*.png and test/<class>/*.png; return the name.

    Args:
        folder: the new folder.
        size: of a picture in pixels, 28 or 32.
        make: makes an image of a picture (size, size) in [0, 1].
        count: of pictures; every fourth is for tests.
    """
    from sklearn.datasets import load_digits  # not every app has it

    digits = load_digits()
    for row in range(count):
        picture = np.pad(np.kron(digits.images[row] / 16, np.ones((3, 3))), (size - 24) // 2)
        path = folder / ("train" if row % 4 else "test") / str(digits.target[row]) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make(picture).save(path)
    return str(folder)


def plain(picture: np.ndarray) -> Image.Image:
    return Image.fromarray((picture * 255).astype(np.uint8))


def alpha(picture: np.ndarray) -> Image.Image:
    """Return a black image with the picture in its alpha channel only."""
    image = Image.new("RGBA", picture.shape)
    image.putalpha(plain(picture))
    return image


def sixteen(picture: np.ndarray) -> Image.Image:
    return Image.fromarray((picture * 65535).astype(np.uint16))


def write_words(folder: Path, size: int) -> str:
    """Write digits in one split, with words as labels; return the name."""
    rows = load_dataset(write_digits(folder / "digits", size, plain), split="train")
    words = ["no. " + rows.features["label"].int2str(label) for label in rows["label"]]
    rows.remove_columns("label").add_column("label", words).to_parquet(folder / "words/all.parquet")
    return str(folder / "words")


def write_hidden(folder: Path, size: int) -> str:
    """Write 40 digits, 10 of them for tests, with labels of -1; return the name."""
    name = write_digits(folder / "digits", size, plain, 40)
    for split, rows in load_dataset(name).items():
        labels = rows["label"][:] if split == "train" else [-1] * len(rows)
        kind = ClassLabel(num_classes=10)
        rows = rows.remove_columns("label").add_column("label", labels, feature=kind)
        rows.to_parquet(folder / "hidden" / f"{split}.parquet")
    return str(folder / "hidden")


def without_wing(app: Path, folder: str, mark: str) -> None:
    """Remove a wing from a copy: its folder, and the lines of the app that end with its mark."""
    [wing] = app.glob(f"*/{folder}")
    shutil.rmtree(wing)
    for path in [*wing.parent.glob("*.py"), app / "pyproject.toml"]:
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.rstrip().endswith(mark)))
