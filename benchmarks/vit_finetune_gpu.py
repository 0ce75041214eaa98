"""Speed and memory of vit-finetune on a CUDA device: feature pass and head training, without Ray.

Needs no data and no weights: random images and random weights take as long as real ones. Writes
results/vit-finetune-gpu.json; without a CUDA device it says so and ends well. `--on-cpu` runs the
same code small on the CPU, to try it, and writes nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import SEED, in_words, measurement
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from vit_finetune import task
from vit_finetune.features import CachedFeatures
from vit_finetune.models import Backbone, device

CLASSES, BATCH = 102, 32  # the document's batch, for which it gives about 1 GB


def synchronize() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


def timed(function: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of a call, after one to warm up."""
    function()
    seconds = []
    for _ in range(repeats):
        synchronize()
        began = time.perf_counter()
        function()
        synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def peak_bytes(function: Callable[[], Any]) -> int | None:
    """Return the most device memory held while a function runs, weights included."""
    if device().type != "cuda":
        function()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    function()
    synchronize()
    return torch.cuda.max_memory_allocated()


def random_images(count: int, size: int) -> Tensor:
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8)


def feature_pass(name: str, precision: str, size: int, batch: int, repeats: int) -> dict[str, Any]:
    """Return images a second and peak memory of the frozen backbone."""
    backbone = Backbone(name, "none", "imagenet", size, precision)
    images = random_images(batch, size)
    seconds = timed(lambda: backbone.features(images), repeats)
    return {
        "model": name,
        "precision": precision,
        "batch": batch,
        "images_a_second": batch / seconds,
        "peak_bytes": peak_bytes(lambda: backbone.features(images)),
    }


def original_step(name: str, size: int, repeats: int) -> dict[str, Any]:
    """Return seconds and memory of the original way's step: forward in float32, head trained."""
    backbone = Backbone(name, "none", "imagenet", size, "float32")
    images, labels = random_images(BATCH, size), torch.randint(CLASSES, (BATCH,), device=device())
    head = nn.Linear(backbone.width, CLASSES).to(device())
    optimizer = torch.optim.SGD(head.parameters(), 0.01)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(head(backbone.features(images).clone()), labels).backward()
        optimizer.step()

    return {"model": name, "seconds": timed(step, repeats), "peak_bytes": peak_bytes(step)}


def head_training(width: int, repeats: int) -> dict[str, Any]:
    """Return seconds and memory of one client's local training on cached features."""
    source = CachedFeatures(torch.randn(61, width), torch.randint(CLASSES, (61,)))
    stats = task.statistics(task.moments(source))

    def train() -> None:
        task.train(
            task.Head(width, CLASSES, stats),
            source,
            epochs=5,
            batch_size=16,
            learning_rate=20.0,
            momentum=0.9,
            label_smoothing=0.1,
            seed=SEED,
        )

    return {"width": width, "seconds": timed(train, repeats), "peak_bytes": peak_bytes(train)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on-cpu", action="store_true", help="try the script; writes nothing")
    arguments = parser.parse_args()
    if device().type != "cuda" and not arguments.on_cpu:
        print(f"skipped: no CUDA device for PyTorch {torch.__version__} here; --on-cpu to try")
        return
    small = device().type != "cuda"
    if small:
        torch.set_num_threads(1)
    size, batches, repeats = (32, (4,), 1) if small else (224, (32, 128, 256), 10)
    names = ("vit_tiny", "vit_b_16")
    with measurement("vit-finetune-gpu", seeds=(SEED,), trial=small) as result:
        torch.manual_seed(SEED)
        passes = [
            feature_pass(name, precision, size, batch, repeats)
            for name in names
            for precision in ("float32", "bfloat16")
            for batch in batches
        ]
        parts = {
            "feature_pass": passes,
            "original_step": [original_step(name, size, repeats) for name in names],
            "head_training": [head_training(width, repeats) for width in (192, 768)],
        }
        for part, lines in parts.items():
            print(part)
            for line in lines:
                print("  ", in_words(line))
        result |= parts


if __name__ == "__main__":
    main()
