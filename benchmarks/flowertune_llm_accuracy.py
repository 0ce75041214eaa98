"""Held-out loss of federated against centralised LoRA fine-tuning at equal steps, 3 seeds.

SmolLM2-135M on the documentation of Python's standard library, offline.toml's settings over a few
more rounds. The federated runs go through `flower-simulation`: 2 of 20 clients a round. The
centralised runs take as many steps, with the batch of one client and with those of both together.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, declared_config, history, measurement, simulate
from datasets import concatenate_datasets
from flowertune_llm import models, task
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_partition, load_test

APP = ROOT / "examples" / "flowertune-llm"
SEEDS = (42, 43, 44)
ROUNDS, CLIENTS, EVERY = 6, 20, 2
TRANSPORTS = ("float32", "bfloat16")
BATCH = "train.training-arguments.per-device-train-batch-size"
STEPS = "train.training-arguments.max-steps"


def settings() -> dict[str, Any]:
    """Return the run config of the offline run, tested more often."""
    changes = {"num-server-rounds": ROUNDS, "train.evaluate-every-round": EVERY}
    return declared_config(APP, offline=True) | changes


def federated(run_config: dict[str, Any]) -> tuple[list[list[float]], int]:
    """Return steps and central loss each time it was measured, and the bytes a client sends."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in simulate(APP, CLIENTS, run_config, Path(folder)):
            pass
        rounds = history(Path(folder))
    tested = [(e["round"], e["evaluate_metrics_serverapp"]) for e in rounds]
    points = [[r * run_config[STEPS], metrics["loss"]] for r, metrics in tested if metrics]
    return points, rounds[1]["traffic"]["up_bytes"]


def centralised(run_config: dict[str, Any], batch: int) -> list[list[float]]:
    """Return steps and held-out loss before and after training on all clients' data."""
    config = Config.from_run_config(run_config)
    model, test = models.load_model(config), load_test(config)
    models.set_adapter(model, models.initial_adapter(config))
    points = [[0, task.evaluate(model, test, config)[0]]]
    steps = ROUNDS * run_config[STEPS]
    train(model, config, batch, steps)
    return [*points, [steps, task.evaluate(model, test, config)[0]]]


def train(model: task.Model, config: Config, batch: int, steps: int) -> None:
    """Train a model in place on all clients' data, with the learning rates of a federated run."""
    data = concatenate_datasets([load_partition(config, i, CLIENTS) for i in range(CLIENTS)])
    least = {"min_lr": config.learning_rate_min}
    task.trainer(
        *(model, data, config, config.learning_rate_max, config.seed),
        max_steps=steps,
        per_device_train_batch_size=batch,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs=least,
    ).train()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(2)
    with measurement("flowertune-llm-accuracy", SEEDS) as result:
        runs: dict[str, list[list[list[float]]]] = {}
        sent = {}
        for dtype, seed in itertools.product(TRANSPORTS, SEEDS):
            changes = {"seed": seed, "strategy.transport-dtype": dtype}
            began = time.monotonic()
            points, sent[dtype] = federated(settings() | changes)
            runs.setdefault(f"federated, {dtype}", []).append(points)
            took = time.monotonic() - began
            print(f"{dtype}, seed {seed}: {points[-1][1]:.4f} in {took:.0f} s", flush=True)
        batch = settings()[BATCH]
        for size, seed in itertools.product((batch, 2 * batch), SEEDS):
            points = centralised(settings() | {"seed": seed}, size)
            runs.setdefault(f"centralised, batch {size}", []).append(points)
            print(f"centralised, batch {size}, seed {seed}: {points[-1][1]:.4f}", flush=True)
        result |= {"rounds": ROUNDS, "clients": CLIENTS, "batch": batch}
        result |= {"steps": settings()[STEPS], "sent_bytes": sent, "runs": runs}


if __name__ == "__main__":
    main()
