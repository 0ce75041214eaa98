"""Checkpoints in safetensors, read and written slice by slice, never whole in memory.

Source of the format: https://huggingface.co/docs/safetensors
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

# Bytes of an element. Only floats of 16 or 32 bits are averaged; others are carried over.
ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
ITEM_SIZES |= {"BOOL": 1}
FLOATS = ("F32", "F16", "BF16")
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Copies of the model that transformers ignores: shards beside a whole file, Mistral's own format.
PASSED_OVER = re.compile(r"(model-\d+-of-\d+|consolidated[\w.-]*)\.safetensors")
BESIDE = ("*.json", "*.jinja", "*.model", "*.txt")  # config, tokenizer; no code from clients
PROGRESS = "progress.json"


class Tensor(NamedTuple):
    """A tensor's name, dtype (by safetensors' name for it) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


class Span(NamedTuple):
    """Bytes `start` to `stop` of one tensor."""

    name: str
    start: int
    stop: int


class Slice(NamedTuple):
    """Bytes to request, add up and write together: neighbours of one dtype in a shard."""

    shard: int
    start: int  # in the shard's data
    dtype: str
    spans: tuple[Span, ...]

    @property
    def nbytes(self) -> int:
        return sum(span.stop - span.start for span in self.spans)


class Weights(Protocol):
    """Tensors that can be read by spans."""

    tensors: Mapping[str, Tensor]

    def read(self, span: Span) -> bytes: ...


class Checkpoint:
    """The tensors in the .safetensors files of a folder; none is loaded.

    Raises:
        RuntimeError: no file is there, one is damaged, or it is not clear which are the model's;
            the text names the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Tensor] = {}
        self.places: dict[str, tuple[int, int]] = {}  # file descriptor, offset in the file
        index = weight_map(folder)
        self.files = [folder / name for name in sorted(set(index.values()))]
        for path in self.files:
            self._open(path)
        if missing := sorted(index.keys() - self.tensors.keys() - {""}):
            raise RuntimeError(
                f"{folder}: {INDEX} names {missing[0]}, which is not in {index[missing[0]]}; save "
                "the model again, into an empty folder"
            )
        if not any(tensor.dtype in FLOATS for tensor in self.tensors.values()):
            raise RuntimeError(
                f"{folder}: holds no tensors in {', '.join(FLOATS)}, and no others can be averaged"
            )

    def _open(self, path: Path) -> None:
        header, begin = read_header(path)
        descriptor = os.open(path, os.O_RDONLY)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] not in ITEM_SIZES:
                raise RuntimeError(
                    f"{path}: {name} is {entry['dtype']}; only {', '.join(ITEM_SIZES)} can be "
                    "aggregated"
                )
            if name in self.tensors:
                raise RuntimeError(
                    f"{path}: {name} is in another file of the model, too; save the model again, "
                    "into an empty folder"
                )
            self.tensors[name] = Tensor(name, entry["dtype"], tuple(entry["shape"]))
            self.places[name] = (descriptor, begin + entry["data_offsets"][0])

    def read(self, span: Span) -> bytes:
        """Read a span from the disk."""
        descriptor, offset = self.places[span.name]
        data = os.pread(descriptor, span.stop - span.start, offset + span.start)
        if len(data) != span.stop - span.start:
            raise RuntimeError(f"{self.folder}: {span.name} ends early; the file was cut off")
        return data

    def close(self) -> None:
        for descriptor in {descriptor for descriptor, _ in self.places.values()}:
            os.close(descriptor)
        self.places = {}

    def __del__(self) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        """Text that changes when a file is written."""
        stats = [path.stat() for path in self.files]
        return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder's files, once for each process, and again after they have changed."""
    stats = [(path.name, path.stat()) for path in sorted(folder.glob("*.safetensors*"))]
    return opened(folder, tuple((n, s.st_ino, s.st_size, s.st_mtime_ns) for n, s in stats))


@lru_cache(maxsize=4)
def opened(folder: Path, files: tuple[tuple[str, int, int, int], ...]) -> Checkpoint:
    """Open a folder; `files` makes the cache tell changed files apart."""
    return Checkpoint(folder)


def weight_map(folder: Path) -> dict[str, str]:
    """Return the files that transformers would load, by tensor, as the index has them.

    A single file comes before an index, which an earlier save may have left. Without an index, the
    only key is "".

    Raises:
        RuntimeError: there are no such files, or others that are not copies of the model.
    """
    if (folder / FILE).is_file():
        files = {"": FILE}
    elif (folder / INDEX).is_file():
        try:
            files = dict(json.loads((folder / INDEX).read_text())["weight_map"])
        except (KeyError, TypeError, ValueError):
            raise RuntimeError(f"{folder}: {INDEX} is damaged; save the model again") from None
    else:
        raise RuntimeError(
            f"{folder}: holds no model in safetensors ({FILE}, or {INDEX} with its shards); save "
            "it by save_pretrained"
        )
    found = {path.name for path in folder.glob("*.safetensors")}
    if missing := sorted(set(files.values()) - found):
        raise RuntimeError(f"{folder}: {INDEX} names {missing[0]}, which is not there")
    strangers = [name for name in found - set(files.values()) if not PASSED_OVER.fullmatch(name)]
    if strangers:
        raise RuntimeError(
            f"{folder}: {min(strangers)} lies beside the model and is no part of it; move it "
            "elsewhere"
        )
    return files


def check_model(folder: Path) -> Path:
    """Return a folder after checking that it holds a model that can be averaged.

    Raises:
        RuntimeError: it holds no model, an adapter, or a quantised model.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        config["model_type"]
    except (OSError, KeyError, TypeError, ValueError):
        raise RuntimeError(
            f"{folder}: is no model, since it has no config.json that names a model_type; give a "
            "folder as save_pretrained writes it"
        ) from None
    if adapters := sorted(folder.glob("adapter_*")):
        raise RuntimeError(
            f"{folder}: {adapters[0].name} lies beside the model, and transformers would load it, "
            "too; merge the adapter into the model, or move it elsewhere"
        )
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method", "some method")
        raise RuntimeError(
            f"{folder}: config.json has a quantization_config ({method}), and quantised weights "
            "cannot be averaged; give the model in float32, bfloat16 or float16"
        )
    return folder


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a .safetensors file, and the offset of its data.

    Raises:
        RuntimeError: the file is not a .safetensors file, or was cut off.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        try:
            header = json.loads(file.read(length)) if length < size else None
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (AttributeError, KeyError, ValueError):
            raise RuntimeError(f"{path}: is damaged, or no safetensors file") from None
    if 8 + length + end != size:
        raise RuntimeError(f"{path}: is {size} bytes long, its header says {8 + length + end}")
    return header, 8 + length


def plan(tensors: Iterable[Tensor], shard_bytes: int, slice_bytes: int) -> list["Shard"]:
    """Divide a model into shards of whole tensors, and shards into slices.

    Args:
        tensors: in the order to be written.
        shard_bytes: longest shard, unless a single tensor is longer.
        slice_bytes: longest slice; small tensors share one, large ones are cut.
    """
    shards: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    # Wide elements come first, so that each tensor begins at a multiple of its element's size.
    ordered = (sorted(shard, key=lambda tensor: -ITEM_SIZES[tensor.dtype]) for shard in shards)
    return [Shard(number, shard, slice_bytes) for number, shard in enumerate(ordered)]


class Shard:
    """One file of a checkpoint to be written: its header, and the slices that fill it."""

    def __init__(self, number: int, tensors: list[Tensor], slice_bytes: int) -> None:
        self.number, self.tensors = number, tensors
        self.nbytes = sum(tensor.nbytes for tensor in tensors)
        self.slices = list(self._cut(max(slice_bytes // 8 * 8, 8)))

    def _cut(self, limit: int) -> Iterator[Slice]:
        spans: list[Span] = []
        start = position = 0
        dtype = ""
        for tensor in self.tensors:
            done = 0
            while done < tensor.nbytes:
                room = limit - (position - start)
                if spans and (tensor.dtype != dtype or room < ITEM_SIZES[dtype]):
                    yield Slice(self.number, start, dtype, tuple(spans))
                    spans, start = [], position
                    continue
                dtype = tensor.dtype
                take = min(tensor.nbytes - done, room // ITEM_SIZES[dtype] * ITEM_SIZES[dtype])
                spans.append(Span(tensor.name, done, done + take))
                done, position = done + take, position + take
        if spans:
            yield Slice(self.number, start, dtype, tuple(spans))

    @property
    def header(self) -> bytes:
        """The file up to its data."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for tensor in self.tensors:
            offsets = [position, position := position + tensor.nbytes]
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": offsets,
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


class Writer:
    """A checkpoint that is written shard by shard, and gets its name when the last one is whole.

    Until then its files are in `.<name>-partial`, without a config.json. Whole shards survive an
    interruption, and are used if the same model is written again.

    Args:
        folder: of the new checkpoint.
        shards: from `plan`.
        identity: origin of the values; whole shards of another origin are discarded.
    """

    def __init__(self, folder: Path, shards: list[Shard], identity: Any) -> None:
        self.folder, self.shards = folder, shards
        self.partial = folder.with_name(f".{folder.name}-partial")
        self.identity = json.loads(json.dumps(identity))
        if self._earlier().get("identity") != self.identity:
            shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(exist_ok=True)
        self.whole = self._earlier().get("whole", 0)
        self._note()
        needed = sum(shard.nbytes for shard in shards[self.whole :])
        if (free := shutil.disk_usage(self.partial).free) < needed:
            raise RuntimeError(
                f"{folder}: {needed / 1e9:.1f} GB are needed there and {free / 1e9:.1f} GB are "
                "free; make room, or set output-dir"
            )
        self.file: Any = None

    def _earlier(self) -> dict[str, Any]:
        try:
            return json.loads((self.partial / PROGRESS).read_text())
        except (OSError, ValueError):
            return {}

    def _note(self) -> None:
        temporary = self.partial / f".{PROGRESS}"
        temporary.write_text(json.dumps({"identity": self.identity, "whole": self.whole}))
        temporary.replace(self.partial / PROGRESS)

    def shard_name(self, number: int) -> str:
        if len(self.shards) == 1:
            return "model.safetensors"
        return f"model-{number + 1:05d}-of-{len(self.shards):05d}.safetensors"

    def begin(self, shard: Shard) -> None:
        self.path = self.partial / self.shard_name(shard.number)
        self.file = self.path.with_suffix(".tmp").open("wb", buffering=0)
        self.file.write(shard.header)

    def write(self, piece: Slice, data: memoryview) -> None:
        """Write the next bytes of a slice; slices come in the order of the shard's data.

        Raises:
            RuntimeError: the disk is full; whole shards stay.
        """
        try:
            while data:
                data = data[self.file.write(data) :]
        except OSError as error:
            self._out_of_room(error)

    def _out_of_room(self, error: OSError) -> NoReturn:
        self.abandon()
        raise RuntimeError(
            f"{self.path}: {error.strerror}; {self.whole} of {len(self.shards)} shards are whole "
            "and stay; make room and resume"
        ) from None

    def end(self, shard: Shard) -> None:
        """Finish a shard, so that it survives an interruption."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            self._out_of_room(error)
        self.file.close()
        self.file = None
        self.path.with_suffix(".tmp").replace(self.path)
        self.whole = shard.number + 1
        self._note()

    def abandon(self) -> None:
        """Close and forget the shard that is not whole."""
        if self.file:
            self.file.close()
            self.file = None
            self.path.with_suffix(".tmp").unlink(missing_ok=True)

    def finish(self, beside: Mapping[str, bytes]) -> None:
        """Write the index and the files beside the weights, and give the folder its name."""
        for name, content in beside.items():
            (self.partial / name).write_bytes(content)
        if len(self.shards) > 1:
            weight_map = {
                tensor.name: self.shard_name(shard.number)
                for shard in self.shards
                for tensor in shard.tensors
            }
            total = {"total_size": sum(shard.nbytes for shard in self.shards)}
            index = {"metadata": total, "weight_map": weight_map}
            (self.partial / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        (self.partial / PROGRESS).unlink()
        self.partial.rename(self.folder)


def files_beside(folder: Path) -> dict[str, bytes]:
    """Return config, tokenizer and the like: all small files but the index."""
    paths = {path for pattern in BESIDE for path in folder.glob(pattern)}
    return {path.name: path.read_bytes() for path in sorted(paths) if path.name != INDEX}


def tensors_from(described: list[list[Any]]) -> list[Tensor]:
    """Return tensors from JSON."""
    return [Tensor(name, dtype, tuple(shape)) for name, dtype, shape in described]
