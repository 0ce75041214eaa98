"""The same networks as the examples; data through PIL, transforms and a DataLoader."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from datasets import load_dataset
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

federated_dataset = None


class FashionNet(nn.Sequential):
    """The network of advanced-pytorch."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10)),
        )


class CifarNet(nn.Sequential):
    """The network of pytorch-from-centralized-to-federated and gpu-scaling."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.ReLU()),
            *(nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.GroupNorm(8, 128), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(128 * 4 * 4, 10)),
        )


class Kind(NamedTuple):
    """A kind of images: their network, column, mean and standard deviation."""

    network: type[nn.Sequential]
    column: str
    normalize: Normalize


KINDS = {
    "fashion-mnist": Kind(FashionNet, "image", Normalize((0.2860,), (0.3530,))),
    "cifar10": Kind(CifarNet, "img", Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
}


def build(config: dict) -> nn.Module:
    return KINDS[config["kind"]].network()


def transform(config: dict) -> Callable[[dict], dict]:
    kind = KINDS[config["kind"]]
    to_pixels = Compose([ToTensor(), kind.normalize])

    def apply(batch: dict) -> dict:
        pixels = [to_pixels(image) for image in batch[kind.column]]
        return {"image": pixels, "label": batch["label"]}

    return apply


def load_partition(
    config: dict, partition_id: int, num_partitions: int
) -> tuple[DataLoader, DataLoader]:
    global federated_dataset
    if federated_dataset is None:
        partitioner = IidPartitioner(num_partitions)
        if alpha := config["dirichlet-alpha"]:
            partitioner = DirichletPartitioner(num_partitions, "label", alpha, seed=config["seed"])
        federated_dataset = FederatedDataset(
            dataset=config["dataset"],
            partitioners={"train": partitioner, "test": IidPartitioner(num_partitions)},
        )
    train_set = federated_dataset.load_partition(partition_id, "train")
    if config["test-fraction"]:
        parts = train_set.train_test_split(test_size=config["test-fraction"], seed=config["seed"])
        train_set, test_set = parts["train"], parts["test"]
    else:
        test_set = federated_dataset.load_partition(partition_id, "test")
    size, apply = config["batch-size"], transform(config)
    return (
        DataLoader(train_set.with_transform(apply), batch_size=size, shuffle=True),
        DataLoader(test_set.with_transform(apply), batch_size=size),
    )


def load_test(config: dict) -> DataLoader:
    test_set = load_dataset(config["dataset"], split="test")
    return DataLoader(test_set.with_transform(transform(config)), batch_size=32)


def train(net: nn.Module, loader: DataLoader, learning_rate: float, momentum: float) -> float:
    net.train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate, momentum=momentum)
    running_loss = 0.0
    for batch in loader:
        optimizer.zero_grad()
        loss = criterion(net(batch["image"]), batch["label"])
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return running_loss / len(loader)


def test(net: nn.Module, loader: DataLoader) -> tuple[float, float]:
    net.eval()
    criterion, correct, loss = nn.CrossEntropyLoss(), 0, 0.0
    with torch.no_grad():
        for batch in loader:
            outputs = net(batch["image"])
            loss += criterion(outputs, batch["label"]).item()
            correct += (outputs.argmax(1) == batch["label"]).sum().item()
    return loss / len(loader), correct / len(loader.dataset)
