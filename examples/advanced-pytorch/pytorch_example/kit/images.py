# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Images with class labels: the embedded digits, a local folder or a Hub dataset, decoded once."""

import glob
import hashlib
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from logging import WARNING
from pathlib import Path

import datasets
import numpy as np
import PIL
from datasets import ClassLabel, Dataset, Features, Value

from .pixels import MODES, UnreadableImage, name_of, open_image, to_pixels
from .settings import SHARE

# The code that turns a file into pixels: part of the key of every cache of pixels.
CODE = "".join(Path(__file__).with_name(name).read_text() for name in ("images.py", "pixels.py"))
CODE_DIGEST = hashlib.sha256(
    f"{CODE} Pillow {PIL.__version__} datasets {datasets.__version__}".encode()
).hexdigest()
UNREADABLE = 0.1  # largest share of a split's images that may be left out
SHOWN = 20  # images that the log names
WITHOUT_HUB = "without a network use the dataset of offline.toml, or a local folder"
DARK = 64  # a split whose brightest pixel is below this is not right

# Flower's logger, without importing Flower: centralised training uses this file, too.
FLOWER = logging.getLogger("flwr")
if not sys.stderr.isatty():
    datasets.disable_progress_bars()
# Its log of retries would bury the line that says what to do about an unreachable Hub.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@lru_cache
def load_digits(size: int, channels: int) -> Dataset:
    """Return scikit-learn's 1,797 real handwritten digits as images of `size` times `size`."""
    from sklearn.datasets import load_digits as load  # slow to import, seldom needed

    digits = load()
    scale, margin = size // 8, size % 8
    enlarged = np.kron(digits.images * (255 / 16), np.ones((scale, scale))).astype(np.uint8)
    images = np.pad(enlarged, ((0, 0), *[(margin // 2, margin - margin // 2)] * 2))
    if channels > 1:
        images = np.stack([images] * channels, axis=-1)
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=list("0123456789"))})
    return Dataset.from_dict({"image": list(images), "label": digits.target}, features=features)


def load_rows(dataset: str, split: str, way_out: str = "") -> Dataset:
    """Load a split of a local folder or of a Hub dataset.

    Raises:
        RuntimeError: it cannot be reached, or has no such split; the text ends with `way_out`.
    """
    folder = Path(dataset).expanduser()
    local = folder.is_dir()
    named = folder.is_absolute() or dataset.startswith(".") or dataset.count("/") > 1
    if not local and (named or folder.exists()):
        raise RuntimeError(f"dataset = '{dataset}': no such folder: {folder.resolve()}")
    try:
        if (folder / "dataset_dict.json").is_file():  # written by `save_to_disk`
            splits = datasets.load_from_disk(str(folder))
            if split not in splits:
                raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
            return splits[split]
        with literal_folders():
            return datasets.load_dataset(str(folder) if local else dataset, split=split)
    except Exception as error:  # the Hub's client has no common base class for its errors
        generating = isinstance(error, datasets.exceptions.DatasetGenerationError)
        cause = (generating and error.__cause__) or error
        first_line = str(cause).strip().split("\n")[0].rstrip(".")
        told = f"{type(cause).__name__}: {first_line}"
        if not local and not isinstance(cause, ValueError | datasets.exceptions.DatasetsError):
            # A RuntimeError is its client's, closed after tries that failed: it says nothing.
            detail = "" if isinstance(cause, RuntimeError) else f" ({told})"
            told = f"the Hub cannot be reached{detail}"
        if not first_line.startswith("Unknown split"):
            told += "" if local else f", and there is no folder {folder.resolve()}"
            way_out = "" if local else WITHOUT_HUB
        raise RuntimeError(
            f"dataset = '{dataset}': cannot load its '{split}' split: {told}; {way_out}".rstrip(
                "; "
            )
        ) from None


@contextmanager
def literal_folders() -> Iterator[None]:
    """Make `datasets` take [brackets] in a folder's name literally, not as a pattern."""
    module = datasets.data_files
    original = module.resolve_pattern

    def resolve(pattern: str, base_path: str, *more: object, **named: object) -> list[str]:
        literal = glob.escape(base_path) if Path(base_path).is_dir() else base_path
        return original(pattern, literal, *more, **named)

    module.resolve_pattern = resolve
    try:
        yield
    finally:
        module.resolve_pattern = original


def recipe(dataset: str, change: str) -> str:
    """Return the code that writes a changed copy of a dataset, for an error."""
    return (
        f"[rows.{change}.to_parquet(f'mine/{{name}}.parquet') for name, rows in "
        f"datasets.load_dataset('{dataset}').items()] writes it, then dataset='mine'"
    )


def source_of(split: str, test_split: str) -> str:
    """Return the name of the split that "train" or "test" is taken from."""
    return "train" if split == "train" or SHARE.fullmatch(test_split) else test_split


def part_of(source: Dataset, split: str, test_split: str) -> Dataset:
    """Return the rows of a split that are "train" or "test": all, or a share (`test_split`)."""
    if not SHARE.fullmatch(test_split):
        return source
    if len(source) < 2:
        raise RuntimeError(f"test-split = '{test_split}': no images are left to train on")
    count = min(max(1, round(len(source) * float(test_split[:-1]) / 100)), len(source) - 1)
    return source.train_test_split(test_size=count, seed=0)[split]


def load_images(
    dataset: str, split: str, size: int, channels: int, test_split: str = "test"
) -> Dataset:
    """Load the images and labels of "train" or "test", without decoding any.

    Args:
        dataset: "digits", a local folder, or a Hub name.
        split: "train" or "test".
        size, channels: of the digits.
        test_split: the name of the split to test on, or the share of the training split that is
            held out for it, "20%".

    Returns:
        columns `image` ("bytes" of a file, or its "path") and `label` (ClassLabel).

    Raises:
        RuntimeError: the data cannot be reached, or is not images with one class each.
    """
    source = labelled(dataset, source_of(split, test_split), size, channels)
    return part_of(source, split, test_split)


@lru_cache
def labelled(dataset: str, split: str, size: int, channels: int, owner: str = "") -> Dataset:
    """Load a split of a dataset with the columns `image` and `label`; errors as above.

    Args:
        owner: the column with each row's owner, kept as `owner`; empty for none.
    """
    if dataset == "digits":
        digits = load_digits(size, channels).train_test_split(test_size=0.2, seed=0)
        if split not in digits:
            raise RuntimeError(f"dataset = 'digits': has no '{split}' split, only train and test")
        data = digits[split]
    else:
        way_out = "Name one by test-split, or hold out a share: test-split='20%'"
        data = load_rows(dataset, split, "" if split == "train" else way_out)
    kinds = data.features
    images = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
    classes = [name for name, kind in kinds.items() if isinstance(kind, ClassLabel)]
    labels = ["label"] if "label" in kinds else classes
    if not len(images) == len(labels) == 1:
        others = [name for name in kinds if name not in images]
        if len(images) > 1:
            way_out = recipe(dataset, f"remove_columns({images[1:]})")
        elif not images:
            way_out = recipe(dataset, f"cast_column('{others[0]}', datasets.Image())")
        elif others:
            way_out = recipe(dataset, f"rename_column('{others[0]}', 'label')")
        else:
            way_out = "Sort the images into a folder for each class: train/<class>/"
        columns = ", ".join(f"{name} ({kind_name(kind)})" for name, kind in kinds.items())
        raise RuntimeError(
            f"dataset = '{dataset}': needs one column of images and a column 'label'; has the "
            f"columns {columns}. {way_out}"
        )
    if not len(data):
        raise RuntimeError(f"dataset = '{dataset}': its '{split}' split has no rows")
    names = {images[0]: "image", labels[0]: "label"} | owners(data, dataset, split, owner)
    data = data.select_columns(list(names)).rename_columns(names)
    data = data.cast_column("image", datasets.Image(decode=False))
    training = data if split == "train" else labelled(dataset, "train", size, channels)
    return with_classes(data, dataset, split, labels[0], training.features["label"])


def owners(data: Dataset, dataset: str, split: str, column: str) -> dict[str, str]:
    """Return how to rename the column with each row's owner; nothing if `column` is empty.

    Raises:
        RuntimeError: there is no such column, or it has no value in some row.
    """
    if not column:
        return {}
    if column not in data.features:
        raise RuntimeError(
            f"dataset = '{dataset}': its '{split}' split has no column '{column}', only "
            f"{', '.join(data.features)}"
        )
    values = data.select_columns(column).with_format("arrow")[:][column].to_pylist()
    missing = [row for row, value in enumerate(values) if value is None]
    if missing or any(isinstance(value, dict | list) for value in values[:1]):
        problem = (
            f"{len(missing)} rows have no '{column}' (row {missing[0]})"
            if missing
            else (f"its column '{column}' holds no numbers or words")
        )
        raise RuntimeError(f"dataset = '{dataset}': {problem} in its '{split}' split")
    return {column: "owner"}


def kind_name(kind: object) -> str:
    return str(kind.dtype) if type(kind) is Value else type(kind).__name__


def with_classes(data: Dataset, dataset: str, split: str, column: str, known: object) -> Dataset:
    """Return data whose labels are classes, made from whole numbers or words if need be.

    Args:
        column: name of `label` in the dataset.
        known: the labels' type in the training split, which has all classes.

    Raises:
        RuntimeError: labels are hidden, missing, of another type, or not in the training split.
    """
    kind = data.features["label"]
    labels = data.select_columns("label").with_format("arrow")[:]["label"].to_numpy()
    of_all = f"of {len(labels)} labels of its '{split}' split"
    if isinstance(kind, ClassLabel):
        bad = ~((labels >= 0) & (labels < kind.num_classes))  # True for NaN, too
        allowed, kept = f"0 to {kind.num_classes - 1}", f"in range({kind.num_classes})"
    elif re.fullmatch("bool|u?int[0-9]+|(large_)?string", kind_name(kind)):
        missing = [label is None or label != label or label == "" for label in labels.tolist()]
        # Labels of -1 are hidden ones, unless all are -1 or 1.
        hidden = set(labels[~np.array(missing, bool)]) != {-1, 1} and labels == -1
        bad = np.array(missing, bool) | hidden
        allowed, kept = "each row's class", "not in (None, '', -1)"
    else:
        raise RuntimeError(
            f"dataset = '{dataset}': its column '{column}' ({kind_name(kind)}) holds no classes. "
            + recipe(dataset, f"cast_column('{column}', datasets.Value('int64'))")
        )
    if bad.any():
        raise RuntimeError(
            f"dataset = '{dataset}': {bad.sum()} {of_all} are missing, hidden or no class "
            f"({some(labels, bad)}); allowed: {allowed}. Leave those rows out: "
            + recipe(dataset, f"filter(lambda row: row['{column}'] {kept})")
            + ("" if split == "train" else ". Or test on others: test-split='20%'")
        )
    if isinstance(kind, ClassLabel):
        if isinstance(known, ClassLabel) and known.names != kind.names:
            raise RuntimeError(
                f"dataset = '{dataset}': its '{split}' split has the classes {kind.names[:20]}, "
                f"its 'train' split {known.names[:20]}"
            )
        return data
    names = known.names if split != "train" else list(map(str, np.unique(labels)))
    index = {name: number for number, name in enumerate(names)}
    numbers = np.array([index.get(str(label), -1) for label in labels.tolist()])
    if (new := numbers < 0).any():
        raise RuntimeError(
            f"dataset = '{dataset}': {new.sum()} {of_all} are none of its 'train' split: "
            f"{some(labels, new)}"
        )
    return data.remove_columns("label").add_column(
        "label", numbers, feature=ClassLabel(names=names)
    )


def some(labels: np.ndarray, bad: np.ndarray) -> str:
    rows = np.flatnonzero(bad)
    values = [None if label != label else label for label in labels[rows[:3]].tolist()]
    return ", ".join(f"row {r}: {v!r}" for r, v in zip(rows, values, strict=False)) + (
        ", …" if len(rows) > 3 else ""
    )


@lru_cache
def decoded(
    dataset: str, split: str, size: int, channels: int, owner: str = ""
) -> tuple[Dataset, list[str]]:
    """Decode a split; return it as `load_pixels` does, and a text for each unreadable image.

    Raises:
        RuntimeError: an image has another size, or too many are unreadable.
    """
    data = labelled(dataset, split, size, channels, owner)

    def decode(batch: dict[str, list], rows: list[int]) -> dict[str, list]:
        pixels, problems = [], []
        for cell, row in zip(batch["image"], rows, strict=True):
            try:
                image, problem = open_image(cell, row, MODES[channels]), None
                pixels.append(to_pixels(image, dataset, name_of(cell, row), size))
            except UnreadableImage as error:
                problem = str(error)
                pixels.append(np.zeros(channels * size**2, np.uint8))
            problems.append(problem)
        return {"pixels": pixels, "problem": problems}

    kind = datasets.List(Value("uint8"), length=channels * size**2)
    features = Features({"pixels": kind, "problem": Value("string")} | data.features)
    del features["image"]
    data = data.map(
        decode,
        batched=True,
        with_indices=True,
        remove_columns="image",
        features=features,
        new_fingerprint=cache_key(data._fingerprint, size, channels),
        desc="Decoding",
    )
    column = data.data.column("problem")
    if column.null_count == len(data):
        return data.remove_columns("problem"), []
    problems = column.to_pylist()
    told = [problem for problem in problems if problem]
    if len(told) > UNREADABLE * len(data):
        raise RuntimeError(
            f"dataset = '{dataset}': {len(told)} of {len(data)} images of its '{split}' split "
            f"cannot be read, first {told[0]}"
        )
    readable = [row for row, problem in enumerate(problems) if not problem]
    return data.select(readable).remove_columns("problem"), told


def cache_key(*values: object) -> str:
    """Return a name for what the present code of images.py and pixels.py makes of these values."""
    return hashlib.sha256(repr((CODE_DIGEST, *values)).encode()).hexdigest()[:32]


@lru_cache
def load_pixels(
    dataset: str,
    split: str,
    size: int,
    channels: int,
    test_split: str = "test",
    owner: str = "",
) -> Dataset:
    """Return the columns `pixels`, uint8 (channels * size * size,), and `label`.

    If `owner` names a column, its values are returned as the column `owner`.

    Arguments and errors are those of `load_images`; images that cannot be read are left out.
    Images are decoded once on a machine: the cache of `datasets` keeps the result, and every
    process maps it into memory. 60,000 images take 3 s the first time, and no time later.
    """
    source, _ = decoded(dataset, source_of(split, test_split), size, channels, owner)
    return part_of(source, split, test_split)


def check_pixels(dataset: str, size: int, channels: int, test_split: str = "test") -> None:
    """Decode both splits and log the `remarks`, on the server before a run."""
    for remark in remarks(dataset, size, channels, test_split):
        FLOWER.log(WARNING, "%s", remark)


def remarks(dataset: str, size: int, channels: int, test_split: str = "test") -> list[str]:
    """Return lines for the user on the two splits: images that are left out.

    Raises:
        RuntimeError: as `load_images` and `load_pixels` do.
    """
    found = []
    for split in dict.fromkeys((source_of("test", test_split), "train")):
        data, problems = decoded(dataset, split, size, channels)
        found += [f"Image of the '{split}' split left out: {line}" for line in problems[:SHOWN]]
        if len(problems) > SHOWN:
            found.append(f"Images of the '{split}' split left out: {len(problems)} in all")
    if (brightest := to_arrays(data, size, channels)[0].max()) < DARK:
        found.append(
            f"No pixel of the '{split}' split is brighter than {brightest} of 255; is it all "
            "there? Of 16-bit images 65535 is white: multiply those that have 12 bits by 16"
        )
    return found


def to_arrays(data: Dataset, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Copy decoded data: images uint8 (N, channels, size, size) and labels int64 (N,)."""
    table = data.with_format("arrow")[:]
    pixels = table["pixels"].combine_chunks().flatten().to_numpy()
    labels = table["label"].to_numpy()
    return pixels.reshape(-1, channels, size, size).copy(), labels.astype(np.int64)
