# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Images become pixels in the size and channels that a network takes, or are refused by name."""

import re
import shutil
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from flwr_datasets.partitioner import DirichletPartitioner
from PIL import Image as Pillow

from .. import images
from ..partitions import Parts
from ..pixels import open_image

has_digits = pytest.mark.skipif(
    find_spec("sklearn") is None, reason="the digits are scikit-learn's, and this app has none"
)


@has_digits
def test_digits_in_the_size_and_channels_asked_for():
    for size, channels in ((28, 1), (31, 1), (32, 3), (64, 3)):
        data = images.load_images("digits", "test", size, channels)
        assert len(data) == 360
        assert open_image(data[0]["image"], 0, "L").size == (size, size)
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


def test_a_picture_that_is_changed_in_place_is_decoded_anew(folder):
    name, found = str(folder), []
    for shade in (255, 100):
        Pillow.new("L", (28, 28), shade).save(folder / "test" / "light" / "0.png")
        for cached in (images.labelled, images.decoded, images.load_pixels):
            cached.cache_clear()
        found.append(
            images.to_arrays(images.load_pixels(name, "test", 28, 1), 28, 1)[0][4, 0, 0, 0]
        )
    assert found == [255, 100]


def test_another_size_is_named(folder):
    with pytest.raises(
        RuntimeError,
        match=r"an image is 28x28, the network takes 32x32 \(row 0 \(0.png\)\); resize",
    ):
        images.load_pixels(str(folder), "train", 32, 3)


def test_an_unreachable_hub_is_one_line_with_the_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"offline\.toml") as error:
        images.load_images("nobody/no-such-dataset", "train", 28, 1)
    assert "dataset = 'nobody/no-such-dataset'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "file.parquet", "a/b/c", "./nowhere", "~/nowhere-"])
def test_a_folder_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.parquet").touch()
    if name == "nowhere":
        name = str(tmp_path / name)
    absolute = tmp_path.joinpath(Path(name).expanduser())
    with pytest.raises(RuntimeError) as error:
        images.load_images(name, "train", 28, 1)
    assert str(error.value) == f"dataset = '{name}': no such folder: {absolute}"


def test_an_empty_folder_is_no_affair_of_the_hub(tmp_path):
    with pytest.raises(RuntimeError, match="doesn't contain any data files") as error:
        images.load_images(str(tmp_path), "train", 28, 1)
    assert "etwork" not in str(error.value)
    assert "Hub" not in str(error.value)


@pytest.mark.parametrize("name", ["with [v1] and space", "a*b?", "[", "train data"])
def test_a_folder_may_have_any_name(name, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("named") / name
    shutil.copytree(folder, path)
    assert len(images.load_pixels(str(path), "train", 28, 1)) == 8


def test_a_folder_may_be_relative_or_below_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    for name in (folder.name, f"./{folder.name}", f"~/{folder.name}"):
        assert len(images.load_images(name, "test", 28, 1)) == 8


def test_what_save_to_disk_wrote_is_read(tmp_path):
    DatasetDict(train=data(6), test=data(4)).save_to_disk(tmp_path)
    assert len(images.load_images(str(tmp_path), "train", 2, 1)) == 6
    with pytest.raises(RuntimeError, match=r"Should be one of \['train', 'test'\]"):
        images.load_images(str(tmp_path), "test", 2, 1, "validation")


def write(folder: Path, kind: object = None, column: str = "label", **labels: list) -> str:
    """Write a dataset of 2x2 images with the given labels of each split; return its name."""
    folder.mkdir(exist_ok=True)
    for split, values in labels.items():
        pictures = [Pillow.fromarray(np.full((2, 2), row, np.uint8)) for row in range(len(values))]
        made = Dataset.from_dict({"picture": pictures, column: values})
        if kind:
            made = made.cast_column(column, kind)
        made.to_parquet(folder / f"{split}.parquet")
    return str(folder)


def labels_of(name: str, split: str, test_split: str = "test") -> list[str]:
    found = images.load_pixels(name, split, 2, 1, test_split)
    return found.features["label"].int2str(found["label"][:])


PICTURE = Pillow.new("L", (2, 2))
CLASSES = ClassLabel(names=["a", "b"])


@pytest.mark.parametrize(
    ("kind", "training", "test", "names"),
    [
        (None, [10, 2, 2], [2, 10], ["2", "10"]),
        (None, [-1, 1, 1], [1, -1], ["-1", "1"]),
        (None, ["dog", "cat", "dog"], ["dog"], ["cat", "dog"]),
        (None, [True, False], [True], ["False", "True"]),
        (Value("uint8"), [0, 1], [1], ["0", "1"]),
        (CLASSES, ["b", "a"], ["a"], ["a", "b"]),
    ],
)
def test_whole_numbers_and_words_become_classes(kind, training, test, names, tmp_path):
    name = write(tmp_path, kind, train=training, test=test)
    for split, labels in (("train", training), ("test", test)):
        assert images.load_pixels(name, split, 2, 1).features["label"].names == names
        assert labels_of(name, split) == list(map(str, labels))


@pytest.mark.parametrize(
    ("kind", "training", "test", "message"),
    [
        (CLASSES, [0, 1], [0, -1, -1], "2 of 3 labels of its 'test' split .* 1: -1, row 2: -1"),
        (CLASSES, [0, None], [0], r"1 of 2 labels of its 'train' .*\(row 1: None\).*range\(2\)"),
        (None, [0, None, 1], [0], r"1 of 3 labels of its 'train' .*\(row 1: None\)"),
        (None, [0, 1, -1], [0], r"1 of 3 labels of its 'train' .*\(row 2: -1\)"),
        (None, ["x", None, ""], ["x"], "2 of 3 labels .*row 1: None, row 2: ''"),
        (None, [0, 1], [2, 1], "1 of 2 labels of its 'test' split are none .* row 0: 2"),
        (None, ["x"], ["y"], "1 of 1 labels of its 'test' split are none .* row 0: 'y'"),
        (None, [0.5, 1.0], [1.0], r"'label' \(float64\) holds no classes.*Value\('int64'\)"),
        (None, [[0], [1]], [[1]], r"'label' \(List\) holds no classes"),
    ],
)
def test_labels_that_are_no_classes_are_refused(kind, training, test, message, tmp_path):
    name = write(tmp_path, kind, train=training, test=test)
    with pytest.raises(RuntimeError, match=message) as error:
        images.load_images(name, "test", 2, 1)
    assert str(error.value).startswith(f"dataset = '{name}': ")
    assert "\n" not in str(error.value)


def test_the_way_out_of_hidden_labels_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = write(tmp_path / "raw", CLASSES, train=[0, 1, -1], test=[1, -1])
    with pytest.raises(RuntimeError) as error:
        images.load_images(name, "train", 2, 1)
    [code] = re.findall(r"\[rows.*\.items\(\)\]", str(error.value))
    eval(code, {"datasets": datasets})
    assert labels_of(str(tmp_path / "mine"), "train") == ["a", "b"]


def test_the_one_column_of_classes_may_have_any_name(tmp_path):
    name = write(tmp_path, CLASSES, "fine_label", train=[0, 1], test=[1])
    assert labels_of(name, "test") == ["b"]


@pytest.mark.parametrize(
    ("table", "way_out"),
    [
        ({"path": ["a.png"], "label": [1]}, "cast_column('path', datasets.Image())"),
        ({"a": [PICTURE], "b": [PICTURE], "label": [1]}, "remove_columns(['b'])"),
        ({"a": [PICTURE], "fine": [1], "coarse": [1]}, "rename_column('fine', 'label')"),
        ({"a": [PICTURE]}, "Sort the images into a folder for each class"),
    ],
)
def test_other_columns_are_refused_with_the_way_out(table, way_out, tmp_path):
    Dataset.from_dict(table).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(
        RuntimeError, match="needs one column of images and a column 'label'"
    ) as error:
        images.load_pixels(str(tmp_path), "train", 28, 1)
    assert way_out in str(error.value)


def test_without_one_column_of_labels_the_columns_are_listed(tmp_path):
    name = write(tmp_path, None, "target", train=[0, 1], test=[1])
    message = (
        r"has the columns picture \(Image\), target \(int64\).*rename_column\('target', 'label'"
    )
    with pytest.raises(RuntimeError, match=message):
        images.load_images(name, "train", 2, 1)


def test_a_share_of_the_training_split_is_held_out(tmp_path):
    name = write(tmp_path, None, train=[f"{row:02}" for row in range(40)])
    training, test = (labels_of(name, split, "20%") for split in ("train", "test"))
    assert len(test) == 8
    assert sorted(training + test) == [f"{row:02}" for row in range(40)]
    assert test == labels_of(name, "test", "20%")
    shown = images.load_images(name, "test", 2, 1, "20%")
    assert shown.features["label"].int2str(shown["label"][:]) == test
    with pytest.raises(RuntimeError, match=r"one of \['train'\].*test-split='20%'"):
        images.load_images(name, "test", 2, 1)


def test_another_split_may_be_tested_on(tmp_path):
    name = write(tmp_path, None, train=["a", "b"], validation=["b"], test=["c"])
    assert labels_of(name, "test", "validation") == ["b"]


def test_the_digits_have_shares_too():
    pytest.importorskip("sklearn")
    counts = [len(images.load_images("digits", s, 28, 1, "10%")) for s in ("train", "test")]
    assert counts == [1293, 144]


def test_unreadable_images_are_left_out_and_told_once(folder, caplog):
    bad = folder / "train" / "light" / "1.png"
    bad.write_bytes(bad.read_bytes()[:40])
    for number in range(10, 16):
        shutil.copy(
            folder / "train" / "dark" / "0.png", folder / "train" / "dark" / f"{number}.png"
        )
    images.check_pixels(str(folder), 28, 1)
    assert len(images.load_pixels(str(folder), "train", 28, 1)) == 13
    [told] = [line for line in caplog.messages if "left out" in line]
    assert told.startswith("Image of the 'train' split left out: row 11 (1.png): ")
    (folder / "train" / "light" / "2.png").write_bytes(b"")
    images.labelled.cache_clear()
    images.decoded.cache_clear()
    images.load_pixels.cache_clear()
    with pytest.raises(
        RuntimeError, match=r"2 of 14 images of its 'train' split cannot be read, f"
    ):
        images.check_pixels(str(folder), 28, 1)


def test_a_dark_dataset_is_told(tmp_path, caplog):
    images.check_pixels(write(tmp_path, None, train=[0, 1], test=[0, 1]), 2, 1)
    assert "No pixel of the 'train' split is brighter than 1 of 255" in caplog.text


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


@pytest.mark.parametrize(
    ("rows", "clients", "partitioning", "minimum", "message"),
    [
        (10, 11, "iid", 1, "10 train images are too few for 11 clients; use fewer clients"),
        (10, 3000, "dirichlet", 1, "10 train images are too few for 3000 clients"),
        (10, 8, "dirichlet", 5, "dirichlet-alpha = 0.1, min-partition-size = 5: cannot split 10"),
        (99, 9, "dirichlet", 9, "dirichlet-alpha = 0.1, min-partition-size = 9: cannot split 99"),
    ],
)
def test_a_split_that_cannot_be_is_refused_at_once(rows, clients, partitioning, minimum, message):
    parts = Parts(data(rows), clients, partitioning, 1, 0.1, minimum)
    for refused in (parts.check, partial(parts.load, 0), partial(parts.load, 1)):
        with pytest.raises(RuntimeError, match=message):
            refused()


def test_the_same_data_goes_to_any_number_of_clients():
    parts = Parts(data(4), 9, "same", 1)
    parts.check()
    assert len(parts.load(8)) == 4


def test_each_client_may_need_more_than_one_image():
    Parts(data(10), 5, "iid", 1).check(at_least=2)
    with pytest.raises(RuntimeError, match="10 train images are too few for 6 clients of 2 each"):
        Parts(data(10), 6, "iid", 1).check(at_least=2)


@pytest.mark.parametrize("minimum", [3, 7])  # 3 takes some attempts, 7 fails in most
@pytest.mark.parametrize("seed", range(6))
def test_the_check_knows_what_the_partitioner_will_do(seed, minimum):
    parts = Parts(data(60), 6, "dirichlet", seed, 0.6, minimum)
    real = DirichletPartitioner(6, "label", 0.6, min_partition_size=minimum, seed=seed)
    real.dataset = parts.data
    try:
        with warnings.catch_warnings(action="ignore"):
            sizes = [len(real.load_partition(partition)) for partition in range(6)]
    except ValueError:
        assert parts.smallest_part() < minimum
    else:
        assert parts.smallest_part() == min(sizes)
