"""A client's side of layer-wise aggregation: which model it serves, and the bytes asked for."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from pickle import PickleBuffer
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord

from flowertune_llm import smollm2, synthetic
from flowertune_llm.config import Config
from flowertune_llm.shards import Part, Source, files_beside, open_checkpoint

HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
REPORT = "report.json"
NUMPY = {"F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "I16": "i2"}
NUMPY |= {"I8": "i1", "U8": "u1", "BOOL": "?"}


class Order(NamedTuple):
    """Who is to train, and how fast."""

    partition: int
    partitions: int
    server_round: int
    learning_rate: float


class Raw(bytes):
    """Bytes that Ray moves between processes without copying them on the way."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (memoryview, (PickleBuffer(self),)) if protocol >= 5 else super().__reduce_ex__(4)


def raw_record(data: bytes) -> ArrayRecord:
    """Wrap bytes as they are; numpy, which knows no bfloat16, has no part in it."""
    return ArrayRecord({"data": Array("uint8", (len(data),), "bytes", data)})


def base_folder(config: Config, partition: int) -> Path:
    """Return the folder of `model.name` at this client, fetched from the Hub if it is not here.

    Raises:
        RuntimeError: it is not there.
    """
    name = config.model_name.replace("{partition}", str(partition))
    if name == smollm2.NAME:
        return smollm2.model_folder()
    if Path(name).is_dir():
        return Path(name).resolve()
    try:
        from huggingface_hub import snapshot_download  # only here: not everyone needs it

        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the Hub's client has no common base class for its errors
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise RuntimeError(
            f"model.name = '{name}': no such folder, and not to be had from the Hub; give a local "
            f"folder, or an embedded name: {', '.join([smollm2.NAME, *synthetic.NAMES])}. "
            f"({reason})"
        ) from None


def run_folder(config: Config, partition: int, asked: ConfigRecord) -> Path:
    """Return where this client keeps models of this run between messages."""
    base = Path(config.client_dir) if config.client_dir else smollm2.cache_folder() / "clients"
    return base.resolve() / Path(str(asked["run"])).name / f"partition-{partition}"


def trained_folder(config: Config, partition: int, asked: ConfigRecord) -> Path:
    return run_folder(config, partition, asked) / f"trained-{asked['server-round']}"


def global_folder(config: Config, partition: int, asked: ConfigRecord) -> Path:
    """Return where the global model is: the base model until the server has sent another."""
    folder = run_folder(config, partition, asked) / "global"
    return folder if folder.is_dir() else base_folder(config, partition)


def served(config: Config, partition: int, asked: ConfigRecord) -> Source:
    """Return what this client contributes in this round: what it has trained, or its model."""
    if config.trains:
        return open_checkpoint(trained_folder(config, partition, asked))
    if config.model_name in synthetic.NAMES:
        return synthetic.open_model(config.model_name, partition)
    return open_checkpoint(base_folder(config, partition))


def keep(folder: Path, train: Callable[[Path], dict[str, float]]) -> None:
    """Have a model trained into a folder, whole or not at all; the last round's goes.

    Args:
        folder: where it is to be.
        train: writes it to a given folder, and returns a report to be kept with it.
    """
    for earlier in folder.parent.glob("trained-*"):
        shutil.rmtree(earlier)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".training-") as temporary:
        path = Path(temporary, "model")
        path.mkdir()
        report = train(path)
        (path / REPORT).write_text(json.dumps(report))
        path.rename(folder)


def files(config: Config, partition: int, asked: ConfigRecord) -> dict[str, bytes]:
    """Return the files beside the weights that this client serves."""
    if config.model_name in synthetic.NAMES:
        return {}
    found = files_beside(served(config, partition, asked).folder)
    return {name: content for name, content in found.items() if name != REPORT}


def forget(config: Config, partition: int, asked: ConfigRecord) -> None:
    """Delete what this client keeps for a run."""
    shutil.rmtree(run_folder(config, partition, asked), ignore_errors=True)


def read_parts(source: Source, asked: ConfigRecord) -> Raw:
    """Return the bytes of a slice, in the order in which its parts are named."""
    parts = [Part(*part) for part in zip(*(asked[key] for key in Part._fields), strict=True)]
    for name, start, stop in parts:
        if name not in source.tensors or not 0 <= start < stop <= source.tensors[name].nbytes:
            raise RuntimeError(f"asked for bytes {start} to {stop} of {name}, which are not here")
    return Raw(source.read(parts[0]) if len(parts) == 1 else b"".join(map(source.read, parts)))


def whole_model(source: Source) -> ArrayRecord:
    """Return all tensors at once; bfloat16 as the 16 bits that it is."""
    arrays = ArrayRecord()
    for tensor in source.tensors.values():
        data = source.read(Part(tensor.name, 0, tensor.nbytes))
        arrays[tensor.name] = Array(np.frombuffer(data, NUMPY[tensor.dtype]).reshape(tensor.shape))
    return arrays


def receive(folder: Path, piece: ConfigRecord, data: bytes) -> None:
    """Write a piece of a file of the global model; the last piece puts the folder in place.

    Args:
        folder: where the global model is to be.
        piece: its `step` is "begin", "write" (to `file`, from `offset`) or "end".
    """
    partial = folder.with_name(f".{folder.name}-partial")
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
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
