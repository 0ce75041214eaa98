"""Features, the head's input: cached on disk, or computed by the backbone at each use."""

import glob
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from vit_finetune.dataset import Images, UnreadableImage
from vit_finetune.kit.files import write_whole
from vit_finetune.models import Backbone, device

FORMAT = "vit_finetune features 1"


class Features(Protocol):
    """Features float32 (N, width), by rows, and labels (N,)."""

    labels: Tensor
    evaluation_batch: int

    def batch(self, rows: Tensor, *, augment: bool = False) -> Tensor:
        """Return the features (len(rows), width) of some rows."""

    def select(self, rows: Tensor) -> "Features":
        """Return the features and labels of some rows."""


class CachedFeatures:
    """Features from the cache; on the CPU they stay mapped from their file."""

    evaluation_batch = 4096

    def __init__(self, features: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.features, self.labels = features.to(device()), labels.to(device())
        self.rows = torch.arange(len(labels), device=device()) if rows is None else rows

    def batch(self, rows: Tensor, *, augment: bool = False) -> Tensor:
        return self.features[self.rows[rows]].float()

    def select(self, rows: Tensor) -> "CachedFeatures":
        rows = rows.to(device())
        return CachedFeatures(self.features, self.labels[rows], self.rows[rows])


class LiveFeatures:
    """Features computed at each use: images are decoded, cropped and sent through the backbone."""

    def __init__(
        self,
        images: Images,
        rows: Tensor,
        backbone: Backbone,
        min_area: float,
        evaluation_batch: int,
    ) -> None:
        self.images, self.rows, self.backbone, self.min_area = images, rows, backbone, min_area
        self.labels = images.labels[rows].to(device())
        self.evaluation_batch = evaluation_batch

    def batch(self, rows: Tensor, *, augment: bool = False) -> Tensor:
        min_area = self.min_area if augment else 1.0
        decoded = map(self.images.decode, self.rows[rows.cpu()].tolist())
        crops = [self.backbone.random_crop(image, min_area) for image in decoded]
        return self.backbone.features(torch.stack(crops)).float()

    def select(self, rows: Tensor) -> "LiveFeatures":
        return LiveFeatures(
            self.images, self.rows[rows], self.backbone, self.min_area, self.evaluation_batch
        )


@dataclass
class Reading:
    """The outcome of reading images."""

    computed: int = 0  # images that went through the backbone
    seconds: float = 0.0  # of that computation
    notes: list[str] = field(default_factory=list)  # for the user: skipped images, rebuilt files
    skipped: int = 0


def readable_rows(images: Images) -> tuple[Tensor, Reading]:
    """Decode every image once; return the rows of the readable ones."""
    reading, rows = Reading(), []
    for row in range(len(images)):
        try:
            images.decode(row)
            rows.append(row)
        except UnreadableImage as error:
            skip(reading, str(error))
    return torch.tensor(rows, dtype=torch.int64), reading


def skip(reading: Reading, problem: str) -> None:
    reading.skipped += 1
    reading.notes.append(f"image skipped: {problem}")


class FeatureCache:
    """One file of features for each partition, shared by all processes on the machine.

    An image's feature is computed once for each backbone, whatever its partition: a new partition
    takes features from the files of others.

    Args:
        folder: of the files; empty for flower-examples/vit-finetune in the user's cache.
        backbone: computes features; loaded only if some are missing.
        batch_size: images in one forward pass.

    Raises:
        RuntimeError: the folder begins with the home of an unknown user.
    """

    def __init__(self, folder: str, backbone: Backbone, batch_size: int) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self.root = Path(folder or f"{home}/flower-examples/vit-finetune")
        with storage_errors(self.root):
            self.root = self.root.expanduser()
        self.backbone, self.batch_size = backbone, batch_size
        digest = hashlib.sha256(backbone.key.encode()).hexdigest()[:16]
        self.folder = self.root / f"{backbone.name}-{digest}"

    def others(self) -> list[Path]:
        """Return this model's folders for other settings or code, if its present one is empty."""
        if any(self.folder.glob("*.safetensors")):
            return []
        named = self.root.glob(f"{glob.escape(self.backbone.name)}-{'?' * 16}")
        return sorted({*named} - {self.folder})

    def load(self, images: Images) -> tuple[CachedFeatures, Reading]:
        """Return the features of the readable images; compute those that are missing.

        Raises:
            RuntimeError: the folder cannot be written to, or has no room.
        """
        path = self.folder / f"{images.fingerprint}.safetensors"
        reading = Reading()
        self.prepare_folder(len(images))
        with FileLock(path.with_suffix(".lock")):  # another process may be computing the same
            try:
                stored = read(path)
            except ValueError as error:
                reading.notes.append(str(error))
                stored = None
            if stored is None:
                began = time.perf_counter()
                self.write(path, *self.compute(images, reading))
                reading.seconds = time.perf_counter() - began
                stored = read(path)
        tensors, problems = stored
        for problem in problems:
            skip(reading, problem)
        return CachedFeatures(tensors["features"], images.labels[tensors["rows"]]), reading

    def prepare_folder(self, count: int) -> None:
        """Make the folder; check that it can be written to and has room."""
        needed = count * self.backbone.width * 4 + 2**20
        with storage_errors(self.root):
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
            if (free := shutil.disk_usage(self.folder).free) < needed:
                raise OSError(f"{needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free")

    def write(self, path: Path, tensors: dict[str, Tensor], problems: list[str]) -> None:
        described = json.dumps({"key": self.backbone.key, "unreadable": problems})
        metadata = {"format": FORMAT, "about": described, "sha256": digest(described, tensors)}
        with storage_errors(self.root):
            write_whole(path, safetensors.torch.save(tensors, metadata))

    def compute(self, images: Images, reading: Reading) -> tuple[dict[str, Tensor], list[str]]:
        """Return features, rows and digests of the readable images, and the others' problems."""
        digests = [images.digest(row) for row in range(len(images))]
        found = self.find(set(digests))
        features = {row: found[name] for row, name in enumerate(digests) if name in found}
        problems: list[str] = []
        missing = [row for row in range(len(images)) if row not in features]
        with tqdm(total=len(missing), desc="Features", unit=" images", disable=None) as bar:
            for rows, batch in self.batches(images, missing, problems):
                features |= zip(rows, self.backbone.features(batch).cpu(), strict=True)
                bar.update(len(rows))
        reading.computed = len(missing) - len(problems)
        if not features:
            raise RuntimeError(f"none of {len(images)} images can be read; first {problems[0]}")
        rows = sorted(features)
        return {
            "features": torch.stack([features[row] for row in rows]),
            "rows": torch.tensor(rows),
            "digests": torch.tensor([list(digests[row]) for row in rows], dtype=torch.uint8),
        }, problems

    def find(self, digests: set[bytes]) -> dict[bytes, Tensor]:
        """Return those features of these images that are in other partitions' files."""
        found = {}
        for path in self.folder.glob("*.safetensors"):
            try:
                tensors, _ = read(path) or ({"digests": torch.empty(0), "features": []}, [])
            except ValueError:
                continue  # its own partition will rebuild it
            for name, feature in zip(tensors["digests"].numpy(), tensors["features"], strict=True):
                if name.tobytes() in digests:
                    found[name.tobytes()] = feature
        return found

    def batches(
        self, images: Images, rows: list[int], problems: list[str]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield rows and crops uint8 (N, 3, S, S); threads decode the next batch meanwhile."""

        def prepare(row: int) -> Tensor:
            return self.backbone.central_crop(images.decode(row))

        def finish(batch: list[tuple[int, Future]]) -> Iterator[tuple[list[int], Tensor]]:
            good = {}
            for row, future in batch:
                try:
                    good[row] = future.result()
                except UnreadableImage as error:
                    problems.append(str(error))
            if good:
                yield list(good), torch.stack(list(good.values()))

        threads = torch.get_num_threads() if device().type == "cpu" else os.cpu_count() or 1
        with ThreadPoolExecutor(threads) as pool:
            pending: deque[list[tuple[int, Future]]] = deque()
            for start in range(0, len(rows), self.batch_size):
                chunk = rows[start : start + self.batch_size]
                pending.append([(row, pool.submit(prepare, row)) for row in chunk])
                if len(pending) > 1:
                    yield from finish(pending.popleft())
            while pending:
                yield from finish(pending.popleft())


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turn an error of the file system into one line that names the key."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RuntimeError(
            f"cache-dir = '{root}': features cannot be kept there ({reason}); "
            "choose another folder with cache-dir, or feature-cache=false"
        ) from None


def digest(described: str, tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()


def read(path: Path) -> tuple[dict[str, Tensor], list[str]] | None:
    """Map a file of features; None if there is none.

    Raises:
        ValueError: the file is cut short or damaged.
    """
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whole = metadata.get("sha256") == digest(metadata.get("about", ""), tensors)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"cache file {path} is damaged and was rebuilt ({error})") from None
    if not whole or metadata.get("format") != FORMAT:
        raise ValueError(f"cache file {path} is damaged and was rebuilt (its checksum differs)")
    return tensors, json.loads(metadata["about"])["unreadable"]
