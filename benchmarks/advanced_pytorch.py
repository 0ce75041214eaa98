"""Seconds a round of advanced-pytorch beside a plain loop and a straightforward Flower app.

All three train the same network on the same number of clients and images with the same settings,
on the same cores, in turn: 12 of 50 clients train, 25 evaluate, 10,000 central test images.

- plain: the example's own train and evaluate functions in a loop, no Flower, no processes.
  Its accuracy must equal the example's, round by round, which shows that it does the same work.
- example: advanced-pytorch through `flower-simulation`.
- straightforward: PIL, transforms and a DataLoader for each message, test set loaded each round.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import ROOT, SEED, declared_config, default_dataset, measurement, simulate

APP = ROOT / "examples" / "advanced-pytorch"
NODES = 50
PHASES = ("train: sampled", "aggregate_train:", "evaluate: sampled", "aggregate_evaluate:", "Round")


def plain_loop(dataset: str, rounds: int, threads: int) -> None:
    """Train without Flower and print one JSON line a round: accuracy and seconds of each part."""
    import numpy as np
    import torch
    from pytorch_example import task
    from pytorch_example.config import Config
    from pytorch_example.kit.seeds import derive_seed

    torch.set_num_threads(threads)
    config = Config.from_run_config(declared_config(APP))
    test_data = task.load_test(dataset)
    data = [
        task.load_partition(
            *(dataset, i, NODES, config.dirichlet_alpha),
            *(config.min_partition_size, config.test_fraction, config.seed),
        )
        for i in range(NODES)
    ]
    torch.manual_seed(config.seed)
    model = task.Net()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    velocity = {name: torch.zeros_like(value) for name, value in weights.items()}
    heads = [torch.nn.Linear(64, 10) for _ in range(NODES)]
    trained = set()

    def sample(server_round: int, fraction: float, training: bool) -> list[int]:
        rng = np.random.default_rng((config.seed, server_round, training))
        return sorted(rng.permutation(list(range(NODES)))[: int(NODES * fraction)].tolist())

    for server_round in range(1, rounds + 1):
        times = [time.perf_counter()]
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        examples = 0
        for client in sample(server_round, config.fraction_train, True):
            model.load_state_dict(weights)
            if client not in trained:
                heads[client].load_state_dict(model.head.state_dict())
                trained.add(client)
            task.train(
                model,
                data[client][0],
                epochs=config.local_epochs,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate
                * config.learning_rate_decay ** (server_round - 1),
                momentum=config.momentum,
                seed=derive_seed(config.seed, server_round, client),
                personal_head=heads[client],
            )
            count = len(data[client][0].labels)
            examples += count
            for name, value in model.state_dict().items():
                total[name] += value * count
        for name, value in weights.items():
            velocity[name] = (
                config.server_momentum * velocity[name] + total[name] / examples - value
            )
            weights[name] = value + velocity[name]
        times.append(time.perf_counter())
        model.load_state_dict(weights)
        for client in sample(server_round, config.fraction_evaluate, False):
            head = heads[client] if client in trained else model.head
            task.evaluate(model, data[client][1], model.head, head)
        times.append(time.perf_counter())
        [(_, accuracy)] = task.evaluate(model, test_data, model.head)
        times.append(time.perf_counter())
        parts = [b - a for a, b in pairwise(times)]
        print(json.dumps({"accuracy": accuracy, "seconds": sum(parts), "parts": parts}))


def measure_plain(dataset: str, rounds: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--plain", str(threads), "--rounds", str(rounds)]
    output = subprocess.run([*command, "--dataset", dataset], check=True, stdout=subprocess.PIPE)
    lines = [json.loads(line) for line in output.stdout.decode().splitlines()]
    parts = [statistics.median(line["parts"][i] for line in lines[1:]) for i in range(3)]
    return {
        "round_seconds": [line["seconds"] for line in lines],
        "accuracy": [line["accuracy"] for line in lines],
        "parts": dict(zip(("train", "evaluate", "central"), parts, strict=True)),
    }


def measure_app(app: Path, run_config: dict[str, Any]) -> dict[str, Any]:
    """Run an app; return the seconds of its rounds, and of phases if it logs them."""
    began, marks, rounds, phases = time.monotonic(), {}, [], []
    accuracy = []
    with tempfile.TemporaryDirectory() as folder:
        for line in simulate(app, NODES, run_config, Path(folder)):
            for phase in PHASES:
                if phase in line:
                    marks[phase] = time.monotonic()
            if match := re.search(r"Round took ([\d.]+) s", line):
                rounds.append(float(match[1]))
                if len(marks) == len(PHASES):
                    times = [marks[phase] for phase in PHASES]
                    phases.append([b - a for a, b in pairwise(times)])
                    phases[-1][1:3] = [phases[-1][1] + phases[-1][2]]
            if match := re.search(r"serverapp: accuracy ([\d.]+)", line):
                accuracy.append(float(match[1]))
    result = {"round_seconds": rounds, "total_seconds": time.monotonic() - began}
    if accuracy:
        result["accuracy"] = accuracy[1:]
    if phases:
        parts = [statistics.median(p[i] for p in phases[1:]) for i in range(3)]
        result["parts"] = dict(zip(("train", "evaluate", "central and saving"), parts, strict=True))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dataset", default=default_dataset("fashion_mnist", "zalando-datasets/fashion_mnist")
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--plain", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        plain_loop(arguments.dataset, arguments.rounds, arguments.plain)
        return
    with measurement("advanced-pytorch-speed", seeds=(SEED,)) as result:
        config = {"dataset": arguments.dataset, "num-server-rounds": arguments.rounds}
        runs: dict[str, list[dict[str, Any]]] = {}
        for repeat in range(arguments.repeats):
            for name, measure in {
                "plain, 1 thread": lambda: measure_plain(arguments.dataset, arguments.rounds, 1),
                "plain, 2 threads": lambda: measure_plain(arguments.dataset, arguments.rounds, 2),
                "example": lambda: measure_app(APP, config | {"wandb.mode": "disabled"}),
                "straightforward": lambda: measure_app(
                    ROOT / "benchmarks" / "rivals" / "straightforward_pytorch", config
                ),
            }.items():
                taken = measure()
                if name == "straightforward":
                    taken["round_seconds"].pop(0)  # the initial evaluation
                runs.setdefault(name, []).append(taken)
                print(f"{repeat + 1}. {name}: {after_start(taken):.2f} s a round", flush=True)
        seconds = {name: statistics.median(map(after_start, rs)) for name, rs in runs.items()}
        plain = min(seconds["plain, 1 thread"], seconds["plain, 2 threads"])
        result["runs"] = runs
        result["summary"] = {
            "seconds_a_round": seconds,
            "example_over_plain": seconds["example"] / plain,
            "straightforward_over_example": seconds["straightforward"] / seconds["example"],
            "same_accuracy": same_accuracy(runs),
        }
        print(json.dumps(result["summary"], indent=1))


def after_start(result: dict[str, Any]) -> float:
    """Return the mean seconds of the rounds after the first, which includes the start-up."""
    return statistics.mean(result["round_seconds"][1:])


def same_accuracy(runs: dict[str, list[dict[str, Any]]]) -> bool:
    """Tell whether the example and the plain loop agree after the last round, to 0.3 points."""
    return (
        abs(runs["example"][0]["accuracy"][-1] - runs["plain, 1 thread"][0]["accuracy"][-1]) < 3e-3
    )


if __name__ == "__main__":
    main()
