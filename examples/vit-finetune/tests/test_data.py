"""A user's data: images of other modes, labels of other kinds, more clients than images."""

from pathlib import Path

import pytest
from vit_finetune import dataset, task
from vit_finetune.kit import images
from vit_finetune.kit.flower import RunFailed
from vit_finetune.kit.testing import (
    alpha,
    in_process,
    only_run,
    plain,
    sixteen,
    write_digits,
    write_hidden,
    write_words,
)

SMALL = {"num_server_rounds": 1, "image_size": 32}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Give each test its own cache of features, but not of datasets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "features"))


@pytest.mark.parametrize("make", [alpha, sixteen])
def test_images_of_other_modes_are_learnt(make, tmp_path):
    name = write_digits(tmp_path / "data", 32, make)
    history = in_process(tmp_path, 4, dataset=name, **SMALL | {"num_server_rounds": 6})
    assert history[6]["evaluate_metrics_serverapp"]["accuracy"] > 0.85


def test_words_are_classes_and_a_share_is_held_out(tmp_path):
    settings = SMALL | {"dataset": write_words(tmp_path / "data", 32), "test_split": "20%"}
    assert len(in_process(tmp_path, 4, **settings)) == 2
    again = settings | {"test_split": "10%", "resume_from": str(only_run(tmp_path))}
    with pytest.raises(ValueError, match=r"test-split was '20%' in .* and is '10%' now"):
        in_process(tmp_path, 4, **again)


def test_hidden_labels_are_refused_before_anything_is_written(tmp_path):
    message = "10 of 10 labels of its 'test' split are missing, hidden .*test-split='20%'"
    with pytest.raises(RunFailed, match=message):
        in_process(tmp_path, 4, dataset=write_hidden(tmp_path / "data", 32), **SMALL)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("clients", "partitioning", "message"),
    [
        (720, "iid", "1437 train images are too few for 720 clients of 2 each"),
        (300, "dirichlet", "cannot split 1437 train images into 300 partitions"),
    ],
)
def test_too_many_clients_are_refused_before_features_are_computed(
    clients, partitioning, message, tmp_path
):
    with pytest.raises(RunFailed, match=message):
        in_process(tmp_path, clients, **SMALL, partitioning=partitioning, min_partition_size=4)
    assert not list((tmp_path / "features").rglob("*.safetensors"))


def test_unreadable_test_images_are_skipped_until_they_are_too_many(tmp_path, caplog):
    name = write_digits(tmp_path / "data", 32, plain)
    paths = sorted(Path(name, "test").rglob("*.png"))
    paths[0].write_bytes(b"no picture")
    in_process(tmp_path / "one", 4, dataset=name, **SMALL)
    assert f"Test set: image skipped: row 0 ({paths[0].name}): cannot identify" in caplog.text
    for path in paths[:20]:
        path.write_bytes(b"no picture")
    task.load_test.cache_clear()
    dataset.load_test.cache_clear()
    images.labelled.cache_clear()
    with pytest.raises(RunFailed, match=r"20 of 100 images of its test split cannot be read, f"):
        in_process(tmp_path / "many", 4, dataset=name, **SMALL)


def test_too_many_unreadable_training_images_end_the_run(tmp_path):
    name = write_digits(tmp_path / "data", 32, plain)
    for path in sorted(Path(name, "train").rglob("*.png"))[::5]:
        path.write_bytes(b"no picture")
    with pytest.raises(RunFailed, match=r"60 training images cannot be read, 240 can"):
        in_process(tmp_path, 4, dataset=name, **SMALL)
