# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Images become pixels, in the size and the channels that a network takes; others are named."""

from importlib.util import find_spec

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

from .. import images
from ..partitions import Parts

has_digits = pytest.mark.skipif(
    find_spec("sklearn") is None, reason="the digits are scikit-learn's, and this app has none"
)


@has_digits
def test_digits_in_the_size_and_channels_asked_for():
    for size, channels in ((28, 1), (32, 3), (64, 3)):
        data = images.load_images("digits", "test", size, channels)
        assert len(data) == 360
        assert data[0]["image"].size == (size, size)
        pixels = images.load_pixels("digits", "test", size, channels)
        found, labels = images.to_arrays(pixels, size, channels)
        assert found.shape == (360, channels, size, size)
        assert (found.dtype, labels.dtype) == (np.uint8, np.int64)
        assert found.max() == 255
        assert len(set(labels.tolist())) == 10


@has_digits
def test_training_and_test_digits_are_apart():
    sizes = [len(images.load_images("digits", split, 32, 3)) for split in ("train", "test")]
    assert sizes == [1437, 360]


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for name, grey in (("dark", 0), ("light", 255)):
            (tmp_path / split / name).mkdir(parents=True)
            picture = Pillow.fromarray(np.full((28, 28), grey, np.uint8))
            for number in range(4):
                picture.save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_a_local_folder_is_loaded(folder):
    data = images.load_pixels(str(folder), "train", 28, 3)
    found, labels = images.to_arrays(data, 28, 3)
    assert found.shape == (8, 3, 28, 28)
    assert {
        (int(pixels.max()), int(label)) for pixels, label in zip(found, labels, strict=True)
    } == {*((0, 0), (255, 1))}


def test_another_size_is_named(folder):
    with pytest.raises(RuntimeError, match="an image is 28x28, the network takes 32x32"):
        images.load_pixels(str(folder), "train", 32, 3)


def test_an_unreachable_hub_is_one_line_with_the_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"offline\.toml") as error:
        images.load_images("nobody/no-such-dataset", "train", 28, 1)
    assert "dataset = 'nobody/no-such-dataset'" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"dataset = '.*nowhere': cannot load its 'test' split"):
        images.load_pixels(str(tmp_path / "nowhere"), "test", 28, 1)


def test_data_without_images_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("a,label\n1,2\n")
    with pytest.raises(RuntimeError, match="needs one column of images and a column 'label'"):
        images.load_pixels(str(tmp_path), "train", 28, 1)


def data(count: int) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    pictures = [np.zeros((2, 2), np.uint8)] * count
    return Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(count)]}, features)


@pytest.mark.parametrize("partitioning", ["iid", "dirichlet"])
def test_parts_are_all_of_the_data_and_repeat(partitioning):
    numbered = data(40).add_column("number", list(range(40)))
    found = []
    for _ in range(2):
        parts = Parts(numbered, 4, partitioning, 1, alpha=5.0, min_partition_size=2)
        found.append([parts.load(partition)["number"][:] for partition in range(4)])
    assert found[0] == found[1]
    assert sorted(number for part in found[0] for number in part) == list(range(40))


def test_a_split_that_cannot_be_names_its_settings():
    parts = Parts(data(10), 8, "dirichlet", 1, alpha=0.1, min_partition_size=5)
    with pytest.raises(
        RuntimeError, match=r"dirichlet-alpha = 0.1, min-partition-size = 5: cannot"
    ):
        parts.load(0)
