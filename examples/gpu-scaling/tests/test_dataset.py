"""The clients' data: whole, made once, mapped into memory."""

from dataclasses import replace

import numpy as np
import pytest
from gpu_scaling import dataset
from gpu_scaling.executors import StepFailed


def test_partitions_hold_every_example_once(digits):
    for split, count in (("train", 1437), ("test", 360)):
        whole = digits.load(split)
        parts = [digits.load(split, partition) for partition in range(10)]
        assert isinstance(whole.images, np.memmap)
        assert whole.images.shape == (count, 3, 32, 32)
        assert sum(len(part.labels) for part in parts) == count
        assert sum(part.images.sum(dtype=int) for part in parts) == whole.images.sum(dtype=int)
        assert max(len(p.labels) for p in parts) - min(len(p.labels) for p in parts) <= 1


def test_nobody_decodes_or_splits_a_second_time(digits, monkeypatch):
    monkeypatch.setattr(dataset.Spawn, "run", lambda *_: pytest.fail("made again"))
    again = replace(digits).prepare()
    assert (again.load("train", 9).labels == digits.load("train", 9).labels).all()


def test_dirichlet_gives_clients_different_classes(digits):
    source = replace(digits, partitioning="dirichlet", dirichlet_alpha=0.1).prepare()
    shares = [np.bincount(source.load("train", i).labels, minlength=10) for i in range(10)]
    assert sum(shares).sum() == 1437
    assert max(share.max() / share.sum() for share in shares) > 0.4


def test_too_many_clients_are_refused(digits):
    with pytest.raises(StepFailed, match="360 test images are too few for 1000 clients"):
        replace(digits, num_partitions=1000).prepare()


def test_unreachable_hub_is_one_line_with_the_way_out(digits, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StepFailed, match=r"offline\.toml") as error:
        replace(digits, dataset="nobody/no-such-dataset").prepare()
    assert str(error.value).startswith("dataset = 'nobody/no-such-dataset'")
    assert "\n" not in str(error.value)


def test_real_cifar(real_data, digits):
    source = replace(digits, dataset=str(real_data / "cifar10"), num_partitions=1000).prepare()
    assert np.bincount(source.load("test").labels).tolist() == [200] * 10
    assert {len(source.load("train", i).labels) for i in range(1000)} == {10}
