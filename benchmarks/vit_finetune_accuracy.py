"""Accuracy of vit-finetune beside the best centralised linear probe on the same features.

Both are tuned in the same way, by 3-fold cross-validation on the training images, over grids that
are in the result. Then each is trained on all training images and tested on the test images, with 3
seeds. The federated runs go through `flower-simulation`: 20 clients, 20 rounds, half of the clients
in each round. `--closed-form` measures runs with a head that starts in closed form instead;
`--original` compares the original way, without the feature cache, with the cached one: one local
epoch, the first seed.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import ROOT, declared_config, default_dataset, history, measurement, simulate
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from vit_finetune import dataset, task
from vit_finetune.config import Config
from vit_finetune.features import CachedFeatures
from vit_finetune.kit.seeds import derive_seed

APP = ROOT / "examples" / "vit-finetune"
SEEDS = (42, 43, 44)
NODES = 20
WAYS = ("cached", "original")
PLAIN = {"label-smoothing": 0.0, "server-momentum": 0.0}
CLOSED = {"head-start": "closed-form", "learning-rate": 0.1, "test-fraction": 0.0}
RUNS: dict[str, dict[str, Any]] = {
    "iid, plain FedAvg": PLAIN | {"test-fraction": 0.0},
    "iid": {"test-fraction": 0.0},
    "dirichlet, plain FedAvg": PLAIN | {"test-fraction": 0.0, "partitioning": "dirichlet"},
    "dirichlet": {"test-fraction": 0.0, "partitioning": "dirichlet"},
    "iid, held out": {},
}
CLOSED_FORM_RUNS = {
    "iid, closed form": CLOSED,
    "dirichlet, closed form": CLOSED | {"partitioning": "dirichlet"},
}
PROBE_GRID = {
    "label_smoothing": (0.0, 0.1, 0.2, 0.4),
    "learning_rate": (0.15, 0.6, 2.5, 10.0),
}
PROBE_EPOCHS = (5, 10, 20, 40, 80)
FEDERATED_GRID = {
    "label_smoothing": (0.0, 0.1, 0.2, 0.4),
    "learning_rate": (5.0, 10.0, 20.0),
    "server_momentum": (0.0, 0.3, 0.5),
    "local_epochs": (5, 10),
}
SHRINKAGE_GRID = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
LOGISTIC_GRID = (0.001, 0.01, 0.1, 1.0, 10.0)

Data = tuple[Tensor, Tensor]


def combinations(grid: dict[str, tuple]) -> list[dict[str, float]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def folds(data: Data) -> list[tuple[Data, Data]]:
    """Return three (training, validation) pairs."""
    features, labels = data
    split = StratifiedKFold(3, shuffle=True, random_state=0).split(features, labels)
    return [((features[a], labels[a]), (features[b], labels[b])) for a, b in split]


def new_head(data: Data, num_classes: int) -> task.Head:
    source = CachedFeatures(*data)
    return task.Head(data[0].shape[1], num_classes, task.statistics(task.moments(source)))


def probe(training: Data, test: Data, epochs: tuple, seed: int, **settings: float) -> list[float]:
    """Train a head on all data at one place; return its accuracy after each number of epochs."""
    classes = int(training[1].max()) + 1
    head, accuracies, done = new_head(training, classes), [], 0
    for until in epochs:
        task.train(
            head,
            CachedFeatures(*training),
            epochs=until - done,
            batch_size=32,
            momentum=0.9,
            seed=derive_seed(seed, until),
            **settings,
        )
        done = until
        accuracies.append(task.evaluate(head, CachedFeatures(*test))[1])
    return accuracies


def federated(
    training: Data,
    test: Data,
    config: Config,
    *,
    server_momentum: float,
    local_epochs: int,
    **settings: float,
) -> float:
    """Run the example's rounds in a plain loop, to tune its settings; return the last accuracy."""
    features, labels = training
    rng = np.random.default_rng(config.seed)
    parts = np.array_split(rng.permutation(len(labels)), NODES)
    head = new_head(training, int(labels.max()) + 1)
    weight, velocity = torch.zeros_like(head.linear.weight), torch.zeros_like(head.linear.weight)
    for server_round in range(1, config.num_server_rounds + 1):
        total = torch.zeros_like(weight)
        sample = rng.permutation(NODES)[: int(NODES * config.fraction_train)]
        for client in sample:
            head.linear.weight.data = weight.clone()
            task.train(
                head,
                CachedFeatures(features[parts[client]], labels[parts[client]]),
                epochs=local_epochs,
                batch_size=config.batch_size,
                momentum=config.momentum,
                seed=derive_seed(config.seed, server_round, int(client)),
                **settings,
            )
            total += head.linear.weight.data * len(parts[client])
        average = total / sum(len(parts[client]) for client in sample)
        velocity = server_momentum * velocity + average - weight
        weight = weight + velocity
    head.linear.weight.data = weight
    return task.evaluate(head, CachedFeatures(*test))[1]


def closed_form(training: Data, test: Data, shrinkage: float) -> float:
    """Return the accuracy of the closed-form head, the same for any split over clients."""
    source, classes = CachedFeatures(*training), int(training[1].max()) + 1
    total = task.moments(source) | task.class_moments(source, classes)
    standard = task.statistics(total)
    weight, offset = task.discriminant(total, standard, shrinkage)
    head = task.Head(weight.shape[1], classes, standard, torch.from_numpy(offset))
    head.linear.weight.data = torch.from_numpy(weight)
    return task.evaluate(head, CachedFeatures(*test))[1]


def centralised(training: Data, test: Data) -> dict[str, Any]:
    """Return the best linear probes by cross-validation: gradient descent, and scikit-learn's."""
    pairs = folds(training)
    tried = []
    for settings in combinations(PROBE_GRID):
        curves = [probe(a, b, PROBE_EPOCHS, 0, **settings) for a, b in pairs]
        for epochs, scores in zip(PROBE_EPOCHS, zip(*curves, strict=True), strict=True):
            tried.append((mean(scores), settings | {"epochs": epochs}))
    score, best = max(tried, key=lambda pair: pair[0])
    settings = {name: value for name, value in best.items() if name != "epochs"}
    accuracies = [probe(training, test, (best["epochs"],), s, **settings)[0] for s in SEEDS]

    def logistic(c: float, a: Data, b: Data) -> float:
        return LogisticRegression(C=c, max_iter=1000).fit(*a).score(*b)

    scores = {c: mean(logistic(c, a, b) for a, b in pairs) for c in LOGISTIC_GRID}
    c = max(scores, key=scores.get)
    return {
        "gradient descent": {"settings": best, "validation": score, "accuracy": accuracies},
        "scikit-learn": {
            "settings": {"C": c},
            "validation": scores[c],
            "accuracy": [logistic(c, training, test)],
        },
    }


def tuned(training: Data, config: Config) -> dict[str, Any]:
    """Return the best federated settings by cross-validation."""
    pairs = folds(training)
    scores = [
        (mean(federated(a, b, config, **settings) for a, b in pairs), settings)
        for settings in combinations(FEDERATED_GRID)
    ]
    score, best = max(scores, key=lambda pair: pair[0])
    shrinkage = {s: mean(closed_form(a, b, s) for a, b in pairs) for s in SHRINKAGE_GRID}
    return {"best": best, "validation": score, "shrinkage": shrinkage}


def run_app(run_config: dict[str, Any]) -> dict[str, Any]:
    """Run the example; return its history and its seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for line in simulate(APP, NODES, run_config, Path(folder)):
            if "serverapp: accuracy" in line and not run_config.get("feature-cache", True):
                print(line.split("serverapp: ")[1].strip(), flush=True)
        rounds = history(Path(folder))
    return {"seconds": time.monotonic() - began, "history": thinned(rounds)}


def thinned(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the clients' own figures for the last round only."""
    *earlier, last = rounds
    return [{k: v for k, v in entry.items() if k != "clients"} for entry in earlier] + [last]


def run_all(
    base: dict[str, Any], named: dict[str, dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Run the example with each of the named settings and each seed."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, seed in itertools.product(named, SEEDS):
        runs.setdefault(name, []).append(run_app(base | named[name] | {"seed": seed}))
        last = runs[name][-1]["history"][-1]["evaluate_metrics_serverapp"]["accuracy"]
        print(f"{name}, seed {seed}: {last:.4f} in {runs[name][-1]['seconds']:.0f} s", flush=True)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dataset", default=default_dataset("oxford-flowers", "nelorth/oxford-flowers")
    )
    parser.add_argument(
        "--weights",
        default=default_dataset("vit-tiny/vit_tiny_patch16_224_torchvision.pth", "none"),
        help="a state-dict file of vit_tiny, trained on pixels with mean = std = 0.5",
    )
    parser.add_argument("--original", action="store_true", help="compare with the original way")
    parser.add_argument("--closed-form", action="store_true", help="runs with that start only")
    arguments = parser.parse_args()
    base = {
        "dataset": arguments.dataset,
        "model.name": "vit_tiny",
        "model.weights": arguments.weights,
        "model.normalization": "half",
    }
    if arguments.original:
        shared = base | {"test-fraction": 0.0, "local-epochs": 1, "seed": SEEDS[0]}
        with measurement("vit-finetune-original", seeds=SEEDS[:1]) as result:
            result["runs"] = {
                name: run_app(shared | {"feature-cache": name == "cached"}) for name in WAYS
            }
        return
    if arguments.closed_form:
        with measurement("vit-finetune-closed-form", SEEDS) as result:
            result |= {"nodes": NODES, "runs": run_all(base, CLOSED_FORM_RUNS)}
        return
    with measurement("vit-finetune-accuracy", SEEDS) as result:
        result |= {"nodes": NODES, "runs": run_all(base, RUNS)}
        run_config = declared_config(APP) | base
        config = dataclasses.replace(Config.from_run_config(run_config), test_fraction=0.0)
        test = task.load_test(config)[0]
        images = dataset.to_images(dataset.load_split(config.dataset, "train"))
        source, _ = task.load_features(config, images)
        training = (source.features.float(), source.labels)
        result |= {
            "images": {"training": len(source.labels), "test": len(test.labels)},
            "centralised": centralised(training, (test.features.float(), test.labels)),
            "tuning": tuned(training, config),
            "grids": {"probe": PROBE_GRID | {"epochs": PROBE_EPOCHS}, "federated": FEDERATED_GRID},
        }
        print(json.dumps({k: result[k] for k in ("centralised", "tuning")}, indent=1))


if __name__ == "__main__":
    main()
