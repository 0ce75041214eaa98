"""A ViT with a new head; images go through PIL, transforms, a DataLoader and the whole ViT."""

import torch
from datasets import Dataset, load_dataset
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import IidPartitioner
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    RandomResizedCrop,
    Resize,
    ToTensor,
)

NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TRAIN = Compose([RandomResizedCrop(224), ToTensor(), NORMALIZE])
TEST = Compose([Resize(256), CenterCrop(224), ToTensor(), NORMALIZE])
federated_dataset = None


def build(config: dict) -> VisionTransformer:
    """Return ViT-Ti/16, frozen but for its new head."""
    model = VisionTransformer(224, 16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768)
    if config["weights"] != "none":
        state = torch.load(config["weights"], map_location="cpu", weights_only=True)
        body = {name: value for name, value in state.items() if not name.startswith("heads.")}
        model.load_state_dict(body, strict=False)
    model.requires_grad_(False)
    model.heads = nn.Linear(192, config["num-classes"])
    return model


def train_transform(batch: dict) -> dict:
    return {"image": [TRAIN(i.convert("RGB")) for i in batch["image"]], "label": batch["label"]}


def test_transform(batch: dict) -> dict:
    return {"image": [TEST(i.convert("RGB")) for i in batch["image"]], "label": batch["label"]}


def load_partition(
    config: dict, partition_id: int, num_partitions: int
) -> tuple[DataLoader, DataLoader]:
    global federated_dataset
    if federated_dataset is None:
        federated_dataset = FederatedDataset(
            dataset=config["dataset"], partitioners={"train": IidPartitioner(num_partitions)}
        )
    partition = federated_dataset.load_partition(partition_id)
    parts = partition.train_test_split(test_size=config["test-fraction"], seed=config["seed"])
    train_set = parts["train"].with_transform(train_transform)
    loader = DataLoader(train_set, batch_size=config["batch-size"], shuffle=True)
    return loader, to_test_loader(parts["test"], config)


def load_test(config: dict) -> DataLoader:
    return to_test_loader(load_dataset(config["dataset"], split="test"), config)


def to_test_loader(data: Dataset, config: dict) -> DataLoader:
    return DataLoader(data.with_transform(test_transform), batch_size=config["batch-size"])


def train(model: VisionTransformer, loader: DataLoader, config: dict) -> float:
    model.train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(
        model.heads.parameters(), lr=config["learning-rate"], momentum=config["momentum"]
    )
    running_loss = 0.0
    for _ in range(config["local-epochs"]):
        for batch in loader:
            optimizer.zero_grad()
            loss = criterion(model(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (config["local-epochs"] * len(loader))


def test(model: VisionTransformer, loader: DataLoader) -> tuple[float, float]:
    model.eval()
    criterion, correct, loss = nn.CrossEntropyLoss(), 0, 0.0
    with torch.no_grad():
        for batch in loader:
            outputs = model(batch["image"])
            loss += criterion(outputs, batch["label"]).item()
            correct += (outputs.argmax(1) == batch["label"]).sum().item()
    return loss / len(loader), correct / len(loader.dataset)
