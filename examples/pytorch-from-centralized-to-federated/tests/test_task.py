"""Networks, data and partitions."""

import pytest
import torch
from centralized_to_federated import task
from centralized_to_federated.task import load_partition


def load(partition_id: int, partitioning: str, partitions: int = 4, minimum: int = 10):
    return load_partition("digits", partition_id, partitions, partitioning, 0.5, minimum, 42)


@pytest.mark.parametrize(("network", "parameters"), [("tutorial", 62_006), ("compact", 114_186)])
def test_networks(network, parameters):
    model = task.build(network, 10, 0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    again = task.build(network, 10, 0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_pixels_are_scaled_as_in_the_tutorial():
    images = torch.tensor([0, 127, 255], dtype=torch.uint8).repeat_interleave(1024)
    pixels = task.to_pixels(images.view(1, 3, 32, 32))
    assert pixels.dtype == torch.float32
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-1, -1 / 255, 1])


@pytest.mark.parametrize("partitioning", ["iid", "dirichlet"])
def test_partitions_hold_every_example_once(partitioning):
    for part, everything in enumerate((task.load("digits", "train"), task.load("digits", "test"))):
        parts = [load(i, partitioning)[part] for i in range(4)]
        images = torch.cat([p.images for p in parts]).flatten(1).double()
        assert len(images) == len(everything.labels)
        assert images.sum() == everything.images.double().sum()
    shares = [load(i, partitioning)[0].labels.bincount().max() / 1437 * 4 for i in range(4)]
    assert (max(shares) > 0.2) == (partitioning == "dirichlet")


def test_same_gives_everything_to_each():
    for i in range(3):
        assert len(load(i, "same")[0].labels) == 1437


def test_impossible_partitions_name_their_keys():
    with pytest.raises(RuntimeError, match="min-partition-size = 900: cannot split 1437"):
        load(0, "dirichlet", minimum=900)


def test_real_cifar(real_data):
    test = task.load(str(real_data / "cifar10"), "test")
    assert test.images.shape == (2000, 3, 32, 32)
    assert test.labels.bincount().tolist() == [200] * 10
