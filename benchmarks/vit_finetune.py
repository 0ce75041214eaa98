"""Time, traffic and memory of vit-finetune: the original way beside the feature cache.

For vit_tiny and for vit_b_16 (random weights take as long as pretrained ones), on the same images
and the same sample of clients, one local epoch, no held-out images, central test every round:

- original: decoding, random crop and a float32 forward pass for every image in every epoch.
- cached, first run: an empty cache; 20 rounds, the whole run timed.
- cached, warm: the same again for a few rounds; no client loads the backbone.
- one pass: the backbone over all images that the run uses, in a bare PyTorch loop on all cores.
- head: the local training of one client beside the same steps in a bare PyTorch loop.
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, SEED, default_dataset, history, measurement, simulate
from torch.nn.functional import cross_entropy
from vit_finetune import dataset, task
from vit_finetune.features import CachedFeatures
from vit_finetune.models import Backbone
from watch import ClientMemory

APP = ROOT / "examples" / "vit-finetune"
NODES, ROUNDS = 20, 20


def measure(run_config: dict[str, Any]) -> dict[str, Any]:
    """Run the example; return seconds of the whole run and of its rounds, traffic and memory."""
    rounds, began = [], time.monotonic()
    with ClientMemory() as memory, tempfile.TemporaryDirectory() as folder:
        for line in simulate(APP, NODES, run_config, Path(folder)):
            if match := re.search(r"Round took ([\d.]+) s", line):
                rounds.append(float(match[1]))
                print(f"  round {len(rounds)}: {rounds[-1]} s", flush=True)
        results = history(Path(folder))
    return {
        "seconds": time.monotonic() - began,
        "round_seconds": rounds,
        "traffic": results[1]["traffic"],
        "accuracy": [e["evaluate_metrics_serverapp"]["accuracy"] for e in results],
        "peak_client_bytes": memory.peak,
    }


def one_pass(backbone: Backbone, name: str) -> dict[str, Any]:
    """Send every image through the backbone once, on all cores, without Flower."""
    backbone.module  # noqa: B018 loaded before the clock starts
    seconds, count = 0.0, 0
    for split in ("train", "test"):
        images = dataset.to_images(dataset.load_split(name, split))
        began = time.perf_counter()
        for rows in torch.arange(len(images)).split(32):
            crops = [backbone.central_crop(images.decode(row)) for row in rows.tolist()]
            backbone.features(torch.stack(crops))
        seconds += time.perf_counter() - began
        count += len(images)
    return {"images": count, "seconds": seconds}


def head_training(width: int, num_classes: int, examples: int = 61, epochs: int = 5) -> dict:
    """Time one client's local training, and the same steps written out (medians, seconds)."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    features, labels = torch.randn(examples, width), torch.randint(num_classes, (examples,))
    source = CachedFeatures(features, labels)
    stats = task.statistics(task.moments(source))
    prepared = (features - stats.mean) * stats.scale

    def example() -> None:
        task.train(
            task.Head(width, num_classes, stats),
            source,
            epochs=epochs,
            batch_size=16,
            learning_rate=20.0,
            momentum=0.9,
            label_smoothing=0.1,
            seed=SEED,
        )

    def bare() -> None:
        head = torch.nn.Linear(width, num_classes, bias=False)
        optimizer = torch.optim.SGD(head.parameters(), 20.0, momentum=0.9, fused=True)
        for _ in range(epochs):
            for rows in torch.randperm(examples).split(16):
                optimizer.zero_grad()
                cross_entropy(head(prepared[rows]), labels[rows], label_smoothing=0.1).backward()
                optimizer.step()

    seconds: dict[str, list[float]] = {"example": [], "bare": []}
    for _ in range(50):  # in turn
        for name, function in (("example", example), ("bare", bare)):
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_model(base: dict[str, Any], original_rounds: int) -> dict[str, Any]:
    backbone = Backbone(base["model.name"], base["model.weights"], base["model.normalization"], 224)
    result: dict[str, Any] = {"precision": backbone.precision, "width": backbone.width}
    with tempfile.TemporaryDirectory() as cache:
        cached = base | {"cache-dir": cache}
        print("cached, first run", flush=True)
        result["cached"] = measure(cached | {"num-server-rounds": ROUNDS})
        print("cached, warm", flush=True)
        result["warm"] = measure(cached | {"num-server-rounds": 5})
    print("one pass", flush=True)
    result["one_pass"] = one_pass(backbone, base["dataset"])
    print("original", flush=True)
    original = {"feature-cache": False, "precision": "float32", "batch-size": 32}
    result["original"] = measure(base | original | {"num-server-rounds": original_rounds})
    return result


def summary(models: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    lines = {}
    for name, model in models.items():
        later = statistics.median(model["cached"]["round_seconds"])
        original = model["original"]["round_seconds"][-1]
        lines[name] = {
            "original_round": original,
            "first_cached_round": model["cached"]["round_seconds"][0],
            "later_cached_round": later,
            "original_over_later": original / later,
            "whole_run": model["cached"]["seconds"],
            "whole_run_over_one_pass": model["cached"]["seconds"] / model["one_pass"]["seconds"],
            "head_over_bare": model["head"]["example"] / model["head"]["bare"],
        }
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dataset", default=default_dataset("oxford-flowers", "nelorth/oxford-flowers")
    )
    parser.add_argument(
        "--weights",
        default=default_dataset("vit-tiny/vit_tiny_patch16_224_torchvision.pth", "none"),
        help="a state-dict file of vit_tiny, or none",
    )
    arguments = parser.parse_args()
    base = {"dataset": arguments.dataset, "test-fraction": 0.0, "local-epochs": 1}
    with measurement("vit-finetune-speed", seeds=(SEED,)) as result:
        models = {}
        for name, weights, normalization in (
            ("vit_tiny", arguments.weights, "half"),
            ("vit_b_16", "none", "imagenet"),
        ):
            print(name, flush=True)
            model = {
                "model.name": name,
                "model.weights": weights,
                "model.normalization": normalization,
            }
            models[name] = measure_model(base | model, original_rounds=2)
        num_classes = dataset.load_test(arguments.dataset).num_classes
        for model in models.values():  # last: it sets the number of threads
            model["head"] = head_training(model["width"], num_classes)
        result |= {"summary": summary(models), "models": models}
        print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
