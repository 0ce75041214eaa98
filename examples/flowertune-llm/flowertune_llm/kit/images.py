# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Images with class labels: the embedded digits, a local folder or a Hub dataset, decoded once."""

import logging
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}  # Pillow's, by number of channels

if not sys.stderr.isatty():
    datasets.disable_progress_bars()
# Its retries against an unreachable Hub would bury the one line that says what to do.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@lru_cache
def load_digits(size: int, channels: int) -> Dataset:
    """Return scikit-learn's 1,797 real handwritten digits as square images of a size in pixels."""
    from sklearn.datasets import load_digits as load  # slow to import, seldom needed

    digits = load()
    scale, margin = size // 8, size % 8 // 2
    enlarged = np.kron(digits.images * (255 / 16), np.ones((scale, scale))).astype(np.uint8)
    images = np.pad(enlarged, ((0, 0), (margin, margin), (margin, margin)))
    if channels > 1:
        images = np.stack([images] * channels, axis=-1)
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=list("0123456789"))})
    return Dataset.from_dict({"image": list(images), "label": digits.target}, features=features)


def load_rows(dataset: str, split: str) -> Dataset:
    """Load a split of a local folder or of a Hub dataset.

    Raises:
        RuntimeError: it cannot be reached.
    """
    try:
        return datasets.load_dataset(dataset, split=split)
    except Exception as error:  # the Hub's client has no common base class for its errors
        raise RuntimeError(
            f"dataset = '{dataset}': cannot load its '{split}' split; no such folder, no such "
            "dataset on the Hub, or the Hub cannot be reached. Without a network use "
            "the dataset of offline.toml, or a local folder. "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None


def load_images(dataset: str, split: str, size: int, channels: int) -> Dataset:
    """Load "train" or "test" of "digits" (in that size), a local folder or a Hub dataset.

    Returns:
        columns `image` and `label`; the images are not decoded yet.

    Raises:
        RuntimeError: the data cannot be reached, or is not images with class labels.
    """
    if dataset == "digits":
        return load_digits(size, channels).train_test_split(test_size=0.2, seed=0)[split]
    data = load_rows(dataset, split)
    images = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
    if not isinstance(data.features.get("label"), ClassLabel) or len(images) != 1:
        raise RuntimeError(
            f"dataset = '{dataset}': needs one column of images and a column 'label' (class "
            f"labels), has {dict(data.features)}"
        )
    return data.select_columns([*images, "label"]).rename_columns({images[0]: "image"})


@lru_cache
def load_pixels(dataset: str, split: str, size: int, channels: int) -> Dataset:
    """Return the columns `pixels`, uint8 (channels * size * size,), and `label` of a split.

    Images are decoded once on a machine: the result stays in the cache of `datasets`, from
    where every process maps it into memory. 60,000 images take 3 s the first time, none later.
    """
    data = load_images(dataset, split, size, channels)

    def decode(batch: dict[str, list]) -> dict[str, list]:
        images = (to_pixels(image, dataset, size, channels) for image in batch["image"])
        return {"pixels": [image.reshape(-1) for image in images]}

    pixels = datasets.List(datasets.Value("uint8"), length=channels * size**2)
    features = Features({"pixels": pixels, "label": data.features["label"]})
    return data.map(
        decode, batched=True, remove_columns="image", features=features, desc="Decoding"
    )


def to_pixels(image: "Image", dataset: str, size: int, channels: int) -> np.ndarray:
    """Return a Pillow image as uint8 (channels, size, size).

    Raises:
        RuntimeError: it has another size.
    """
    pixels = np.atleast_3d(np.asarray(image.convert(MODES[channels])))
    if pixels.shape[:2] != (size, size):
        raise RuntimeError(
            f"dataset = '{dataset}': an image is {pixels.shape[1]}x{pixels.shape[0]}, "
            f"the network takes {size}x{size}"
        )
    return pixels.transpose(2, 0, 1)


def to_arrays(data: Dataset, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Copy decoded data: images uint8 (N, channels, size, size) and labels int64 (N,)."""
    table = data.with_format("arrow")[:]
    pixels = table["pixels"].combine_chunks().flatten().to_numpy()
    labels = table["label"].to_numpy()
    return pixels.reshape(-1, channels, size, size).copy(), labels.astype(np.int64)
