"""Images a second of the example's training beside a DataLoader that handles each sample.

Both train the same network with the same batches on the same images. The DataLoader decodes the
image, makes a tensor of it and normalises it, one sample after the other, as PyTorch's tutorial
and most examples do; the example keeps decoded images in one tensor and converts a batch at a time.
"""

import argparse
import statistics
import time

import torch
from centralized_to_federated import task
from common import SEED, default_dataset, measurement
from datasets import load_dataset
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

REPEATS = 5
BATCH = 16


class PerSample(Dataset):
    """Images decoded and transformed one by one."""

    def __init__(self, dataset: str) -> None:
        self.data = load_dataset(dataset, split="train")
        self.transform = Compose([ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])
        [self.column] = [c for c in self.data.column_names if c != "label"]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        sample = self.data[row]
        return self.transform(sample[self.column].convert("RGB")), sample["label"]


def train_per_sample(network: nn.Module, loader: DataLoader) -> None:
    """Train for one epoch, as the tutorial does."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    for images, labels in loader:
        optimizer.zero_grad()
        loss = cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()


def measure(dataset: str, network: str) -> dict[str, list[float]]:
    """Return the images a second of each way, in turns, a number for each repetition."""
    samples = PerSample(dataset)
    tensors = task.load(dataset, "train")
    loader = DataLoader(samples, BATCH, shuffle=True)
    speeds: dict[str, list[float]] = {"loader": [], "tensors": []}
    for _ in range(REPEATS):
        model = task.build(network, 10, 0)
        began = time.perf_counter()
        train_per_sample(model, loader)
        speeds["loader"].append(len(samples) / (time.perf_counter() - began))
        model = task.build(network, 10, 0)
        began = time.perf_counter()
        task.train(
            model,
            tensors,
            epochs=1,
            batch_size=BATCH,
            learning_rate=0.01,
            momentum=0.9,
            seed=SEED,
        )
        speeds["tensors"].append(len(samples) / (time.perf_counter() - began))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default=default_dataset("cifar10", "uoft-cs/cifar10"))
    dataset = parser.parse_args().dataset
    torch.set_num_threads(1)  # as in a client of the simulation
    with measurement("pytorch-from-centralized-to-federated-speed", seeds=(SEED,)) as result:
        result |= {"batch": BATCH, "networks": {}}
        for network in task.NETWORKS:
            speeds = measure(dataset, network)
            medians = {way: statistics.median(values) for way, values in speeds.items()}
            ratio = statistics.median(
                ours / theirs
                for ours, theirs in zip(speeds["tensors"], speeds["loader"], strict=True)
            )
            result["networks"][network] = medians | {"ratio": ratio}
            print(
                f"{network}: {medians['loader']:.0f} images/s with a DataLoader, "
                f"{medians['tensors']:.0f} with tensors: {ratio:.2f} times"
            )


if __name__ == "__main__":
    main()
