"""What a run leaves on disk, and what a resumed run starts from. Files are whole or absent."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.numpy

FORMAT = "flower-examples checkpoint 1"
Arrays = dict[str, np.ndarray]


@dataclass
class RunState:
    """A run after `round` whole rounds; -1 before the initial evaluation."""

    config: dict[str, Any]
    round: int = -1
    best_round: int = -1
    best_accuracy: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)  # the global model
    server: Arrays = field(default_factory=dict)  # what else the server keeps between rounds

    def save(self, path: Path) -> None:
        """Write everything into one file: the round is saved once that file is in place."""
        tensors = {f"arrays/{k}": v for k, v in self.arrays.items()}
        tensors |= {f"server/{k}": v for k, v in self.server.items()}
        names = ("config", "round", "best_round", "best_accuracy", "history")
        state = json.dumps({name: getattr(self, name) for name in names})
        metadata = {"format": FORMAT, "state": state, "sha256": digest(state, tensors)}
        metadata["names"] = json.dumps(list(tensors))  # the file itself has another order
        write_whole(path, safetensors.numpy.save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file is damaged or not such a checkpoint.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata, names = file.metadata() or {}, file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except safetensors.SafetensorError as error:
            raise ValueError(f"resume-from: {path} is damaged ({error})") from None
        if metadata.get("format") != FORMAT:
            raise ValueError(f"resume-from: {path} is not a checkpoint of this example ({FORMAT})")
        if metadata["sha256"] != digest(metadata["state"], tensors):
            raise ValueError(f"resume-from: {path} is damaged (its checksum differs)")
        state = cls(**json.loads(metadata["state"]))
        for name in json.loads(metadata["names"]):
            group, _, key = name.partition("/")
            getattr(state, group)[key] = tensors[name]
        return state


class RunFolder:
    """The folder of one run: config.json, results.json, curves.png and .safetensors files."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.model = self.path / "model.safetensors"
        self.results = self.path / "results.json"
        self.config = self.path / "config.json"
        self.curves = self.path / "curves.png"
        self.saved_round = -1

    @classmethod
    def create(cls, output_dir: str) -> Self:
        """Make `<output-dir>/<YYYY-MM-DD>/<HH-MM-SS>`, waiting for a second of its own."""
        while True:
            path = Path(output_dir, time.strftime("%Y-%m-%d"), time.strftime("%H-%M-%S"))
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                time.sleep(0.1)
            else:
                return cls(path)

    def load(self, config: dict[str, Any], may_change: set[str]) -> RunState:
        """Return the state after the last whole round, checked against the run config.

        Raises:
            ValueError: there is no run here, it is damaged, or it had another config.
        """
        if self.checkpoint.is_file():
            state = RunState.load(self.checkpoint)
        elif self.config.is_file():  # stopped before its initial evaluation ended
            state = RunState(config=json.loads(self.config.read_text()))
        else:
            raise ValueError(f"resume-from: {self.path} holds no run (no {self.checkpoint.name})")
        for key, then, now in differences(state.config, config, may_change):
            raise ValueError(
                f"resume-from: {key} was {then!r} in {self.path} and is {now!r} now; "
                "set it back, or start a new run without resume-from"
            )
        state.config = config
        return state

    def save(self, state: RunState, model: Arrays) -> None:
        """Write a round. The checkpoint counts; a kill between the files loses nothing.

        Args:
            state: the run after that round.
            model: what goes into `model.safetensors` if no earlier round was better.
        """
        if state.best_round == state.round:
            metadata = {"round": str(state.round), "accuracy": str(state.best_accuracy)}
            write_whole(self.model, safetensors.numpy.save(model, metadata))
        state.save(self.checkpoint)
        self.saved_round = state.round
        write_json(self.results, state.history)


def differences(
    then: dict[str, Any], now: dict[str, Any], may_change: set[str]
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted((then.keys() | now.keys()) - may_change):
        if then.get(key) != now.get(key):
            yield key, then.get(key), now.get(key)


def digest(state: str, tensors: Arrays) -> str:
    sha = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        sha.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return sha.hexdigest()


def write_json(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
