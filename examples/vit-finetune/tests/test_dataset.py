"""Images: partitions, labels, and errors of a dataset in one line."""

import pytest
import torch
from vit_finetune import dataset


def load(partition_id: int, partitioning: str = "iid", minimum: int = 8) -> dataset.Images:
    return dataset.load_partition("digits", partition_id, 20, partitioning, 0.3, minimum, 42)


@pytest.mark.parametrize("partitioning", ["iid", "dirichlet"])
def test_partitions_hold_every_training_image_once(partitioning):
    parts = [load(i, partitioning) for i in range(20)]
    images = {part.encoded(row) for part in parts for row in range(len(part))}
    everything = dataset.to_images(dataset.load_split("digits", "train"))
    assert sum(map(len, parts)) == 1437
    assert images == {everything.encoded(row) for row in range(1437)}
    largest = [part.labels.bincount().max() / len(part) for part in parts]
    assert (torch.tensor(largest).mean() > 0.35) == (partitioning == "dirichlet")


def test_images_decode_to_rgb():
    part = load(0)
    assert part.decode(0).mode == "RGB"
    assert part.decode(0).size == (64, 64)
    assert part.labels.dtype == torch.int64


def test_real_flowers(real_data):
    name = str(real_data / "oxford-flowers")
    part = dataset.load_partition(name, 0, 20, "iid", 0.3, 10, 42)
    assert len(part) in (61, 62)
    assert part.num_classes == 102
    assert min(part.decode(0).size) == 256
    assert len(dataset.load_test(name)) == 612


def test_impossible_partitions_name_their_keys():
    with pytest.raises(RuntimeError, match="min-partition-size = 100: cannot split 1437"):
        load(0, "dirichlet", 100)
