"""A client's models: the one it serves, the bytes of a slice, the files between messages."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord

from flowertune_llm.client_files import folder_of
from flowertune_llm.layerwise import synthetic
from flowertune_llm.layerwise.settings import LayerwiseSettings
from flowertune_llm.layerwise.shards import Span, Weights, files_beside, open_checkpoint

METRICS = "report.json"
NUMPY = {"F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "I16": "i2"}
NUMPY |= {"I8": "i1", "U8": "u1", "BOOL": "?"}
Find = Callable[[Any, int], Path]  # the folder of a client's model, from settings and partition


class Raw(bytes):
    """Bytes that Ray passes between processes without a further copy."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (memoryview, (PickleBuffer(self),)) if protocol >= 5 else super().__reduce_ex__(4)


def raw_record(data: bytes) -> ArrayRecord:
    """Return bytes in a record, without numpy, which does not know bfloat16."""
    return ArrayRecord({"data": Array("uint8", (len(data),), "bytes", data)})


class Site:
    """A client in a round: its own model, the trained one, the global one.

    Args:
        config: the settings.
        partition: the client's.
        asked: run and round, from the server.
        find: returns the folder of the client's own model.
    """

    def __init__(
        self, config: LayerwiseSettings, partition: int, asked: ConfigRecord, find: Find
    ) -> None:
        self.config, self.partition, self.find = config, partition, find
        self.folder = folder_of(config.client_dir, str(asked["run"]), partition)
        self.trained = self.folder / f"trained-{asked.get('server-round')}"
        self.global_model = self.folder / "global"

    def start(self) -> Path:
        """Return the folder of the global model: the client's own until the server sends one."""
        if self.global_model.is_dir():
            return self.global_model
        return self.find(self.config, self.partition)

    def served(self) -> Weights:
        """Return the weights that this client serves in this round: trained ones, or its own."""
        if self.config.trains:
            return open_checkpoint(self.trained)
        if self.config.model_name in synthetic.NAMES:
            return synthetic.open_model(self.config.model_name, self.partition)
        return open_checkpoint(self.find(self.config, self.partition))

    def keep(self, train: Callable[[Path], dict[str, float]]) -> dict[str, float]:
        """Train a model, unless this round's exists from before an interruption.

        The folder is whole or absent; the last round's is deleted.

        Args:
            train: writes the model into a given folder, and returns its metrics.
        """
        if not self.trained.is_dir():
            for earlier in self.folder.glob("trained-*"):
                shutil.rmtree(earlier)
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".training-") as temporary:
                path = Path(temporary, "model")
                path.mkdir()
                metrics = train(path)
                (path / METRICS).write_text(json.dumps(metrics))
                path.rename(self.trained)
        return json.loads((self.trained / METRICS).read_text())

    def files(self) -> dict[str, bytes]:
        """Return the files beside this client's weights, by name."""
        if self.config.model_name in synthetic.NAMES:
            return {}
        found = files_beside(self.served().folder)
        return {name: content for name, content in found.items() if name != METRICS}

    def receive(self, piece: ConfigRecord, data: bytes) -> None:
        """Write a piece of a file of the global model; the last piece puts the folder in place.

        Args:
            piece: its `step` is "begin", "write" (to `file`, from `offset`) or "end".
            data: what to write.
        """
        partial = self.folder / ".global-partial"
        match piece["step"]:
            case "begin":
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            case "write":
                path = partial / Path(str(piece["file"])).name
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
                    file.seek(int(piece["offset"]))
                    file.write(data)
            case "end":
                shutil.rmtree(self.global_model, ignore_errors=True)
                partial.rename(self.global_model)


def read_spans(weights: Weights, asked: ConfigRecord) -> Raw:
    """Return the bytes of a slice, in the order of its spans."""
    spans = [Span(*span) for span in zip(*(asked[key] for key in Span._fields), strict=True)]
    for name, start, stop in spans:
        if name not in weights.tensors or not 0 <= start < stop <= weights.tensors[name].nbytes:
            raise RuntimeError(f"asked for bytes {start} to {stop} of {name}, which are not here")
    return Raw(weights.read(spans[0]) if len(spans) == 1 else b"".join(map(weights.read, spans)))


def whole_model(weights: Weights) -> ArrayRecord:
    """Return all tensors at once, bfloat16 as uint16."""
    arrays = ArrayRecord()
    for tensor in weights.tensors.values():
        data = weights.read(Span(tensor.name, 0, tensor.nbytes))
        arrays[tensor.name] = Array(np.frombuffer(data, NUMPY[tensor.dtype]).reshape(tensor.shape))
    return arrays
