"""The same network as advanced-pytorch; data through PIL, transforms and a DataLoader."""

import torch
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import DirichletPartitioner
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

TRANSFORM = Compose([ToTensor(), Normalize((0.2860,), (0.3530,))])
federated_dataset = None


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10)),
        )


def transform(batch: dict) -> dict:
    batch["image"] = [TRANSFORM(image) for image in batch["image"]]
    return batch


def load_partition(
    dataset: str, partition_id: int, num_partitions: int, batch_size: int
) -> tuple[DataLoader, DataLoader]:
    global federated_dataset
    if federated_dataset is None:
        partitioner = DirichletPartitioner(num_partitions, "label", 1.0, seed=42)
        federated_dataset = FederatedDataset(dataset=dataset, partitioners={"train": partitioner})
    partition = federated_dataset.load_partition(partition_id)
    parts = partition.train_test_split(test_size=0.2, seed=42).with_transform(transform)
    return (
        DataLoader(parts["train"], batch_size=batch_size, shuffle=True),
        DataLoader(parts["test"], batch_size=batch_size),
    )


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
