"""The clients' data: whole, made once, mapped into memory."""

from dataclasses import replace

import numpy as np
import pytest
from gpu_scaling import dataset
from gpu_scaling.executors import StepFailed
from gpu_scaling.kit import images


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


@pytest.mark.parametrize("partitioning", ["iid", "dirichlet"])
def test_clients_of_a_population_draw_their_own_examples(partitioning, digits):
    """A client's are the same whatever the population, and of all sizes of it."""
    source = replace(digits, num_partitions=1000, partitioning=partitioning)
    source = replace(source, examples_per_client=20, dirichlet_alpha=0.1).prepare()
    many = replace(source, num_partitions=1_000_000).prepare()
    whole, kinds, seen = digits.load("train"), [], []
    for client in (0, 7, 999):
        own = source.load("train", client)
        assert (own.images == many.load("train", client).images).all()
        assert own.images.shape == (20, 3, 32, 32)
        same = (whole.images[:, None, 0, 8:24, 8:24] == own.images[None, :, 0, 8:24, 8:24]).all(
            (2, 3)
        )
        rows = same.argmax(axis=0)
        assert (whole.labels[rows] == own.labels).all()
        kinds.append(len(set(own.labels)))
        seen.append(set(rows))
    assert seen[0] != seen[1] != seen[2]
    assert sum(kinds) < 18 if partitioning == "dirichlet" else sum(kinds) > 21, kinds
    assert len(many.load("test", 999_999).labels) == 20
    with pytest.raises(RuntimeError, match="examples-per-client = 1438: there are 1437 images"):
        replace(source, examples_per_client=1438).prepare()


def test_natural_clients_have_the_rows_of_their_column(tmp_path, digits):
    """Column `writer` of a local dataset; each client has its writer's rows, and no others."""
    rows = images.load_digits(32, 1).train_test_split(test_size=0.2, seed=0)
    for split, data in rows.items():
        writers = [f"w{i % 7 + (i % 3 == 0)}" for i in range(len(data))]
        data.add_column("writer", writers).to_parquet(tmp_path / f"{split}.parquet")
    source = replace(digits, dataset=str(tmp_path), partitioning="natural", client_column="writer")
    source = replace(source, num_partitions=8).prepare()
    expected = [f"w{i % 7 + (i % 3 == 0)}" for i in range(1437)]
    whole = source.load("train")
    for client in range(8):
        own = np.flatnonzero(np.array(expected) == f"w{client}")
        assert (source.load("train", client).images == whole.images[own]).all()
    with pytest.raises(StepFailed, match="client-column = 'writer': 8 values are too few for 9"):
        replace(source, num_partitions=9).prepare()
    with pytest.raises(StepFailed, match="'train' split has no column 'user', only image, label"):
        replace(source, client_column="user").prepare()


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
