"""The clients' data: decoded once, partitioned once, mapped into memory by every process.

The first process that needs a dataset writes its pixels and labels, and the rows of each client,
as .npy files into a cache folder. Every step, in whatever process, maps those files and copies the
rows of one client: nobody decodes an image twice, and the machine holds one copy.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from gpu_scaling import shares
from gpu_scaling.executors import Spawn  # executors

IMAGE_SIZE, CHANNELS = 32, 3
DEFAULT_FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "flower-examples/gpu-scaling")
SPLITS = ("test", "train")  # labels of both splits are checked before an image is decoded


class Examples(NamedTuple):
    """Images as uint8 (N, CHANNELS, IMAGE_SIZE, IMAGE_SIZE) and labels as int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Source:
    """A dataset in `num_partitions` parts, one for each client.

    Args:
        dataset: a Hub name, a local folder, or "digits".
        num_partitions: 0 where nobody asks for a part.
        partitioning: "iid", "dirichlet" or "natural", of the training data; test data is IID.
        cache_dir: where the files go; empty for DEFAULT_FOLDER.
        test_split: the name of the split to test on, or the share of the training split that is
            held out for it, "20%".
        client_column: of the training data, says whose each row is, for "natural".
        examples_per_client: how many each client draws for itself, by its seed; 0 divides the data.
    """

    dataset: str
    num_partitions: int
    partitioning: str
    dirichlet_alpha: float
    min_partition_size: int
    seed: int
    cache_dir: str = ""
    test_split: str = "test"
    client_column: str = ""
    examples_per_client: int = 0

    def prepare(self) -> "Source":
        """Write missing files; other processes wait for the first.

        Raises:
            RuntimeError: the data cannot be reached, is not what the network takes, or cannot be
                split in this way.
        """
        for folder, make in ((self.images, "decode"), (self.rows, "split")):
            if folder.is_dir() or (make == "split" and not self.num_partitions):
                continue
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not folder.is_dir():  # no other process was faster
                    run = write
                    # Its imports and images go with a process of its own.
                    run = partial(Spawn().run, write)  # executors
                    run(self, make, folder)
        images = len(read(self.images, "train-labels"))
        if self.examples_per_client > images:
            raise RuntimeError(
                f"examples-per-client = {self.examples_per_client}: there are {images} images to "
                "train on; draw fewer"
            )
        return self

    @cached_property
    def images(self) -> Path:
        """The folder of pixels and labels; once known, it travels to other processes."""
        root = Path(self.cache_dir or DEFAULT_FOLDER).expanduser().resolve()
        files = changes(Path(self.dataset).expanduser())
        return root / digest(self.dataset, self.test_split, self.client_column, files, code())

    @cached_property
    def rows(self) -> Path:
        """The folder of the rows of each client."""
        settings = asdict(self) | {"dataset": "", "cache_dir": ""}
        if self.partitioning != "dirichlet":
            settings |= {"dirichlet_alpha": 0.0, "min_partition_size": 0}
        if self.drawn:
            return self.images / "by-class"
        return self.images / f"{self.partitioning}-{self.num_partitions}-{digest(settings)}"

    @property
    def drawn(self) -> bool:
        """Tell whether clients draw examples, each for itself, and share them."""
        return self.examples_per_client > 0

    @property
    def num_classes(self) -> int:
        return json.loads((self.images / "classes.json").read_text())

    @property
    def remarks(self) -> list[str]:
        """Remarks on the images for the user, on those left out for instance."""
        return json.loads((self.images / "remarks.json").read_text())

    def load(self, split: str, partition: int | None = None) -> Examples:
        """Return a partition's examples of "train" or "test", or map all of them."""
        images, labels = (read(self.images, f"{split}-{what}") for what in ("images", "labels"))
        if partition is None:
            return Examples(images, labels)
        rows, ends = (read(self.rows, f"{split}-{what}") for what in ("rows", "ends"))
        if self.drawn:
            alpha = self.dirichlet_alpha * (split == "train" and self.partitioning == "dirichlet")
            seed = (self.seed, SPLITS.index(split), partition)
            count = min(self.examples_per_client, len(rows))  # there may be fewer to test on
            own = shares.drawn((rows, ends), count, alpha, seed)
        else:
            own = rows[ends[partition - 1] if partition else 0 : ends[partition]]
        return Examples(images[own], labels[own])


def read(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


@cache
def code() -> list[str]:
    """Return the source code that decides which pixels the files of a dataset give."""
    package = Path(__file__).parent
    names = (
        "dataset.py",
        "decoding.py",
        "shares.py",
        "kit/images.py",
        "kit/pixels.py",
        "kit/partitions.py",
    )
    libraries = ("datasets", "flwr-datasets", "numpy", "pillow")
    return [*((package / name).read_text() for name in names), *map(version, libraries)]


def changes(folder: Path) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of a local dataset's files; nothing for a Hub name."""
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.resolve().rglob("*") if path.is_file())
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]


def write(source: Source, make: str, folder: Path) -> None:
    """Write the files of a folder under a temporary name, then rename: whole or absent."""
    from gpu_scaling import decoding  # slow to import, needed once

    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        getattr(decoding, make)(source, temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
