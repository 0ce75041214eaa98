"""The head: the data it sees, training and testing. Plain PyTorch."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from vit_finetune import dataset
from vit_finetune.config import Config
from vit_finetune.dataset import Images
from vit_finetune.features import FeatureCache, Features, LiveFeatures, Reading, readable_rows
from vit_finetune.kit.batches import batches as random_batches
from vit_finetune.models import NORMALIZATIONS, Backbone, device


class Statistics(NamedTuple):
    """Mean (width,) of the features, and the factor (width,) that scales them to length 1."""

    mean: Tensor
    scale: Tensor


class Head(nn.Module):
    """A linear classifier of standardised features; it starts at zero: all classes are as likely.

    Features of a ViT share a large mean and differ in spread, which makes a linear head slow to
    train. Without both, and with a length of 1, one learning rate fits every width. Such features
    need no bias that learns; a closed-form start adds `offset` (num_classes,).
    """

    def __init__(
        self, width: int, num_classes: int, statistics: Statistics, offset: Tensor | None = None
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.mean, self.scale = (value.to(device(), torch.float32) for value in statistics)
        self.offset = (torch.zeros(num_classes) if offset is None else offset).to(device())
        self.to(device())

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, width) to logits (N, num_classes)."""
        return self.linear((features - self.mean) * self.scale) + self.offset


class Partition(NamedTuple):
    """One client's data: for training, for tests (may be empty), and how it was read."""

    training: Features
    held_out: Features
    num_classes: int
    reading: Reading


def train(
    head: Head,
    data: Features,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    label_smoothing: float,
    seed: int,
) -> float:
    """Train the head in place and return the mean training loss."""
    torch.manual_seed(seed)
    head.train()
    optimizer = torch.optim.SGD(head.parameters(), learning_rate, momentum=momentum, fused=True)
    total_loss = torch.zeros((), device=device())
    for _ in range(epochs):
        for rows in random_batches(len(data.labels), batch_size, device()):
            optimizer.zero_grad()
            logits = head(data.batch(rows, augment=True))
            loss = cross_entropy(logits, data.labels[rows], label_smoothing=label_smoothing)
            loss.backward()
            optimizer.step()
            total_loss += loss.detach() * len(rows)
    return total_loss.item() / (epochs * len(data.labels))


@torch.inference_mode()
def evaluate(head: Head, data: Features) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    head.eval()
    totals = torch.zeros(2, device=device())
    for rows in torch.arange(len(data.labels), device=device()).split(data.evaluation_batch):
        logits, target = head(data.batch(rows)), data.labels[rows]
        totals[0] += cross_entropy(logits, target, reduction="sum")
        totals[1] += (logits.argmax(1) == target).sum()
    loss, accuracy = (totals / len(data.labels)).tolist()
    return loss, accuracy


@torch.inference_mode()
def moments(data: Features) -> dict[str, np.ndarray]:
    """Return count, sum and sum of squares of the features, float64, to be added over clients."""
    parts = [features for features, _ in batches(data)]
    return {
        "count": np.array([len(data.labels)], np.float64),
        "sum": sum(part.sum(0) for part in parts).cpu().numpy(),
        "squares": sum((part**2).sum(0) for part in parts).cpu().numpy(),
    }


@torch.inference_mode()
def class_moments(data: Features, num_classes: int) -> dict[str, np.ndarray]:
    """Return the sums that `discriminant` needs beside `moments`, to be added over clients.

    `class_count` (num_classes,), `class_sum` (num_classes, width) and `products` (width, width),
    the sum of each feature times each other; in float32, to be sent.
    """
    totals = []
    for features, labels in batches(data):
        member = one_hot(labels, num_classes).double()
        totals.append((member.sum(0), member.T @ features, features.T @ features))
    sums = [sum(part).float().cpu().numpy() for part in zip(*totals, strict=True)]
    return dict(zip(("class_count", "class_sum", "products"), sums, strict=True))


def batches(data: Features) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features (float64) and labels, some images at a time."""
    for rows in torch.arange(len(data.labels), device=device()).split(data.evaluation_batch):
        yield data.batch(rows).double(), data.labels[rows]


def statistics(total: dict[str, np.ndarray]) -> Statistics:
    """Turn moments, summed over clients, into the statistics that standardise features."""
    mean = total["sum"] / total["count"]
    spread = np.sqrt(np.maximum(total["squares"] / total["count"] - mean**2, 0))
    spread = np.maximum(spread, 0.01 * spread.mean() + 1e-6)  # keeps constant features small
    scale = 1 / (spread * np.sqrt(len(mean)))
    return Statistics(torch.tensor(mean).float(), torch.tensor(scale).float())


def discriminant(
    total: dict[str, np.ndarray], standard: Statistics, shrinkage: float
) -> tuple[np.ndarray, np.ndarray]:
    """Solve for the head: linear discriminant analysis from sums over all clients.

    Every class is a Gaussian around its mean, all with one covariance. The result depends on the
    images only, not on which client holds which.

    Args:
        total: `moments` and `class_moments`, summed over clients.
        standard: the statistics that standardise features.
        shrinkage: how far to move the covariance towards a multiple of the identity, 0 to 1
            (Friedman 1989: https://doi.org/10.1080/01621459.1989.10478752).

    Returns:
        weight (num_classes, width) and offset (num_classes,), float32.
    """
    mean, scale = (value.double().numpy() for value in standard)
    count, images = total["class_count"][:, None], float(total["count"][0])
    means = (total["class_sum"] / np.maximum(count, 1) - mean) * scale * (count > 0)
    spread = (total["products"] / images - np.outer(mean, mean)) * np.outer(scale, scale)
    within = spread - (means * count).T @ means / images
    identity = np.eye(len(mean)) * np.trace(within) / len(mean)
    covariance = (1 - shrinkage) * within + shrinkage * identity
    weight = np.linalg.solve(covariance, means.T).T
    share = (count[:, 0] + 1) / (images + len(count))  # a class without images stays possible
    offset = np.log(share) - (weight * means).sum(1) / 2
    return weight.astype(np.float32), offset.astype(np.float32)


@lru_cache(maxsize=1)  # one model in memory
def load_backbone(config: Config) -> Backbone:
    return Backbone(
        config.model_name,
        config.model_weights,
        config.model_normalization,
        config.image_size,
        config.precision,
        config.seed,
    )


def check(config: Config) -> None:
    """Raise an error if the data, the weights or the cache folder cannot be used."""
    images = dataset.load_test(config.dataset, config.test_split)
    load_backbone(config).check()
    if config.feature_cache:
        load_cache(config).prepare_folder(len(images))


def check_split(config: Config, num_partitions: int) -> None:
    """Raise an error if the training images cannot be split between so many clients."""
    dataset.split(
        config.dataset,
        num_partitions,
        config.partitioning,
        config.dirichlet_alpha,
        config.min_partition_size,
        config.seed,
        config.test_split,
    ).check(at_least=2 if config.test_fraction else 1)


def load_cache(config: Config) -> FeatureCache:
    return FeatureCache(config.cache_dir, load_backbone(config), config.feature_batch_size)


def load_features(config: Config, images: Images) -> tuple[Features, Reading]:
    """Return the images' features, from the cache or computed at each use."""
    if config.feature_cache:
        return load_cache(config).load(images)
    rows, reading = readable_rows(images)
    area, batch = config.random_crop_min_area, config.feature_batch_size
    return LiveFeatures(images, rows, load_backbone(config), area, batch), reading


@lru_cache
def load_test(config: Config) -> tuple[Features, Reading]:
    """Load the central test set, once for each process."""
    return load_features(config, dataset.load_test(config.dataset, config.test_split))


def better_normalization(config: Config) -> tuple[str, float, str, float] | None:
    """See whether another normalization suits weights from a file: the file does not tell.

    Returns:
        the better one and the one in use, each with the share of 256 test images whose nearest
        image is of the same class; None unless it is better by three standard errors.
    """
    backbone, used = load_backbone(config), config.model_normalization
    if backbone.file is None or backbone.published:
        return None
    images = dataset.load_test(config.dataset)
    classes = images.labels.unique()
    each = max(8, 256 // len(classes))
    rows = torch.cat([torch.where(images.labels == label)[0][:each] for label in classes])[:256]
    some = replace(images, data=images.data.select(rows.tolist()), labels=images.labels[rows])
    right = {}
    for name in sorted(NORMALIZATIONS, key=used.__eq__):  # the one in use last: it stays
        data, _ = load_features(replace(config, model_normalization=name), some)
        features = torch.cat([part for part, _ in batches(data)])
        nearest = torch.cdist(features, features).fill_diagonal_(torch.inf).argmin(1)
        right[name] = (data.labels[nearest] == data.labels).double()
    best = max(right, key=lambda name: right[name].sum())
    gain = right[best] - right[used]
    if gain.sum() <= 3 * gain.abs().sum().sqrt():
        return None
    return best, right[best].mean().item(), used, right[used].mean().item()


@lru_cache(maxsize=1024)
def load_partition(config: Config, partition_id: int, num_partitions: int) -> Partition:
    """Load one client's data, once for each process."""
    images = dataset.load_partition(
        config.dataset,
        partition_id,
        num_partitions,
        config.partitioning,
        config.dirichlet_alpha,
        config.min_partition_size,
        config.seed,
        config.test_split,
    )
    data, reading = load_features(config, images)
    order = np.random.default_rng((config.seed, partition_id)).permutation(len(data.labels))
    held_out = np.ceil(len(order) * config.test_fraction).astype(int)
    return Partition(
        data.select(torch.from_numpy(np.sort(order[held_out:]))),
        data.select(torch.from_numpy(np.sort(order[:held_out]))),
        images.num_classes,
        reading,
    )
