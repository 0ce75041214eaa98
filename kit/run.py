# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""A run and its folder: new or resumed, saved round by round. Files are whole or absent."""

import hashlib
import json
import shlex
import time
import tomllib
from collections.abc import Callable
from logging import ERROR, INFO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.numpy
from flwr.common import log
from flwr.common.config import flatten_dict

from . import app_folder
from .curves import draw_curves
from .files import without_nan, write_json, write_whole
from .replies import Arrays
from .settings import Settings, as_run_config
from .signals import safe
from .strategies import pack, unpack

FORMAT = "federated run, checkpoint 4"
CONFIG, RESULTS, CURVES = "config.json", "results.json", "curves.png"
CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"


class Run:
    """The state of a run after `round` rounds, and its folder, which `with run:` opens.

    `round` is -1 before the first test.

    Args:
        config: the settings.
        run_config: the run config that they were read from.
        to_model: makes the content of model.safetensors from the global arrays.

    Raises:
        ValueError: the run in `resume-from` cannot be resumed with these settings.
    """

    def __init__(
        self,
        config: Settings,
        run_config: dict[str, Any],
        to_model: Callable[[Arrays], Arrays] = lambda arrays: arrays,
    ) -> None:
        self.config, self.run_config, self.to_model = config, dict(run_config), to_model
        self.round = self.best_round = self.saved_round = -1
        self.best_accuracy = -1.0
        self.num_partitions = 0  # of the data; 0 before a client has said it
        self.history: list[dict[str, Any]] = []
        self.arrays: Arrays = {}  # the global model
        self.kept: dict[str, Any] = {}  # the strategy's state between rounds
        self.memory: dict[str, Any] = {}  # further state of the app, to be saved with the run
        self.folder = Path()
        if config.resume_from:
            self.folder = Path(config.resume_from).resolve()
            self.resume()

    def resume(self) -> None:
        """Read the run in the folder, and compare its settings with these."""
        earlier = self.folder / CONFIG
        if (self.folder / CHECKPOINT).is_file():
            then = self.load(self.folder / CHECKPOINT)
        elif earlier.is_file():  # stopped before its first test ended
            then = json.loads(earlier.read_text())
        else:
            raise ValueError(f"resume-from: {self.folder} holds no run (no {CHECKPOINT})")
        then, now = without_nan(then), without_nan(self.run_config)
        may_change = self.config.may_change()
        fixed = sorted((then.keys() | now.keys()) - may_change)
        if differ := [key for key in fixed if then.get(key) != now.get(key)]:
            key, also = differ[0], f" (and {', '.join(differ[1:])})" if differ[1:] else ""
            raise ValueError(
                f"resume-from: {key} was {then.get(key)!r} in {self.folder} and is "
                f"{now.get(key)!r} now{also}; set it back, by --run-config "
                f"{words_to_resume(self.folder, then, now, may_change)}, or start a new run "
                "without resume-from"
            )

    def load(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint, and return its run config.

        Raises:
            ValueError: the file is damaged, or no checkpoint of this format.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata, names = file.metadata() or {}, file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except safetensors.SafetensorError as error:
            raise ValueError(f"resume-from: {path} is damaged ({error})") from None
        if metadata.get("format") != FORMAT:
            raise ValueError(f"resume-from: {path} is not a checkpoint of this app ({FORMAT})")
        if metadata["sha256"] != digest(metadata["state"], tensors):
            raise ValueError(f"resume-from: {path} is damaged (its checksum differs)")
        state = json.loads(metadata["state"])
        self.round, self.history = state["round"], state["history"]
        self.best_round, self.best_accuracy = state["best_round"], state["best_accuracy"]
        self.num_partitions = state["num_partitions"]
        # In the model's order, which the file does not keep.
        self.arrays = {name: tensors[f"arrays/{name}"] for name in state["arrays"]}
        self.kept = unpack(state["kept"], tensors)
        self.memory = unpack(state["memory"], tensors)
        return state["config"]

    def check_partitions(self, count: int) -> None:
        """Compare the clients' number of partitions with that of the run so far.

        Raises:
            ValueError: it differs, so that clients would train on held-out examples of others.
        """
        if self.num_partitions not in (0, count):
            raise ValueError(
                f"resume-from: the data was in {self.num_partitions} partitions in {self.folder} "
                f"and is in {count} now; start {self.num_partitions} SuperNodes (num-supernodes of "
                "a simulation), or a new run without resume-from"
            )
        self.num_partitions = count

    def save(self) -> None:
        """Write the state after a round; a resume reads the checkpoint."""
        if self.best_round == self.round:
            about = {"round": str(self.round), "accuracy": str(self.best_accuracy)}
            model = safetensors.numpy.save(self.to_model(self.arrays), about)
            write_whole(self.folder / MODEL, model)
        tensors = {f"arrays/{name}": value for name, value in self.arrays.items()}
        names = ("round", "best_round", "best_accuracy", "num_partitions", "history")
        state = {"config": self.run_config} | {name: getattr(self, name) for name in names}
        state |= {"arrays": list(self.arrays), "kept": pack(self.kept, tensors)}
        state["memory"] = pack(self.memory, tensors)
        text = json.dumps(state)
        metadata = {"format": FORMAT, "state": text, "sha256": digest(text, tensors)}
        write_whole(self.folder / CHECKPOINT, safetensors.numpy.save(tensors, metadata))
        self.saved_round = self.round
        write_json(self.folder / RESULTS, self.history)

    def __enter__(self) -> Self:
        """Open the folder, and log its path."""
        resumed = bool(self.config.resume_from)
        if not resumed:
            self.folder = new_folder(self.config.output_dir)
        log(INFO, "Outputs: %s", self.folder)
        write_json(self.folder / CONFIG, self.run_config)
        if resumed:
            rounds = self.config.num_server_rounds
            log(INFO, "Resuming after round %d of %d", self.round, rounds)
        if self.round >= 0:
            self.save()  # the other files may be a round behind the checkpoint
        safe.append(self.safe)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Draw the curves; log the outcome, or the last round that is safe."""
        if error is not None and not (isinstance(error, Exception) and self.saved_round < 0):
            how = "Stopped" if isinstance(error, Exception) else "Interrupted"
            log(ERROR, "%s; %s", how, self.safe())
        if self.history:
            draw_curves(self.history, self.folder / CURVES)
        if error is None:
            self.report()

    @property
    def stalled(self) -> bool:
        """Whether `stop-after` rounds brought no better central score: accuracy, or else loss."""
        scores = {}
        for entry in self.history:
            for name, sign in (("loss", -1), ("accuracy", 1)):
                if name in entry["evaluate_metrics_serverapp"]:
                    scores[entry["round"]] = sign * entry["evaluate_metrics_serverapp"][name]
        best = max(scores, key=scores.__getitem__, default=0)  # the first of equals
        return 0 < self.config.stop_after <= max(scores, default=0) - best

    @property
    def name(self) -> str:
        """Unique name of the run, the same after a resume: clients keep files under it."""
        unique = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        return "-".join([*self.folder.parts[-2:], unique])

    def safe(self) -> str:
        """Return a line on the last round on disk, and how to resume."""
        if self.saved_round < 0:
            return "no round is saved yet"
        return f"round {self.saved_round} is safe: resume-from='{self.folder}'"

    def report(self) -> None:
        log(INFO, "")
        log(INFO, "Results: %s", self.folder / RESULTS)
        log(INFO, "Curves:  %s", self.folder / CURVES)
        if self.best_round >= 0:
            log(INFO, "Model:   %s (round %d)", self.folder / MODEL, self.best_round)
        tested = [m for entry in self.history if (m := entry["evaluate_metrics_serverapp"])]
        if tested and "accuracy" in tested[-1]:
            best = f", best {self.best_accuracy:.4f}" if self.best_round >= 0 else ""
            log(INFO, "Centralized accuracy: %.4f%s", tested[-1]["accuracy"], best)
        elif tested and "loss" in tested[-1]:
            first, last = tested[0]["loss"], tested[-1]["loss"]
            log(INFO, "Centralized loss: %.4f before training, %.4f now", first, last)
        if self.stalled and self.round < self.config.num_server_rounds:
            text = "Stopped after round %d of %d: no better score in stop-after = %d rounds"
            log(INFO, text, self.round, self.config.num_server_rounds, self.config.stop_after)
        log(INFO, "Outputs: %s", self.folder)


def new_folder(output_dir: str) -> Path:
    """Make `<output-dir>/<YYYY-MM-DD>/<HH-MM-SS>`; wait for the next second if it exists."""
    while True:
        path = Path(output_dir, time.strftime("%Y-%m-%d"), time.strftime("%H-%M-%S")).resolve()
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            time.sleep(0.1)
        else:
            return path


def digest(state: str, tensors: Arrays) -> str:
    sha = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        sha.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return sha.hexdigest()


def words_to_resume(
    folder: Path, then: dict[str, Any], now: dict[str, Any], may_change: set[str]
) -> str:
    """Return all that --run-config needs to resume a run, as a shell takes it.

    Args:
        folder: of the run.
        then: its settings.
        now: the settings that were given; those that may change stay, unless they are defaults.
        may_change: names of these.
    """
    defaults = declared()
    given = {key: now[key] for key in may_change & now.keys() if now[key] != defaults.get(key)}
    wanted = {key: value for key, value in (then | given).items() if key in now}
    wanted = {k: v for k, v in wanted.items() if v is not None and v != defaults.get(k)}
    return shlex.quote(as_run_config(wanted | {"resume-from": str(folder)}))


def declared() -> dict[str, Any]:
    """Return the run config of the app's pyproject.toml."""
    path = app_folder() / "pyproject.toml"
    app = tomllib.loads(path.read_text("utf-8"))["tool"] if path.is_file() else {}
    return flatten_dict(app.get("flwr", {}).get("app", {}).get("config", {}))
