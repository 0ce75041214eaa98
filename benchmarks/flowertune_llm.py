"""Tokens a second of a federated client against a bare loop; peak memory in each precision.

Both take the same steps on the same batches, on one thread, in turns: the client's rounds through
`flower-simulation` (without the first, in which workers start and load the model), the bare loop
with AdamW and nothing else. The medians of their rounds are compared.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, SEED, declared_config, measurement, simulate
from flowertune_llm import models, task
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_partition
from flowertune_llm.kit.seeds import derive_seed

APP = ROOT / "examples" / "flowertune-llm"
STEPS, ROUNDS, REPEATS, BATCH = 12, 3, 3, 4
PRECISIONS = {
    "4-bit (NF4)": {"model.quantization": 4},
    "8-bit": {"model.quantization": 8},
    "bfloat16": {"model.dtype": "bfloat16"},
    "float32": {"model.dtype": "float32"},
}


def settings(**changes: object) -> dict[str, Any]:
    """Return the run config of the offline run, for one client."""
    run_config = declared_config(APP, offline=True)
    run_config |= {"num-server-rounds": ROUNDS + 1, "train.evaluate-every-round": 0}
    run_config["train.training-arguments.max-steps"] = STEPS
    run_config["train.training-arguments.per-device-train-batch-size"] = BATCH
    return run_config | {"train.learning-rate-min": 1e-3} | changes


def federated_seconds() -> list[float]:
    """Return the seconds of each round with one client, without the first."""
    with tempfile.TemporaryDirectory() as folder:
        log = "".join(simulate(APP, 1, settings(), Path(folder)))
    rounds = [float(seconds) for seconds in re.findall(r"Round took ([\d.]+) s", log)]
    return rounds[1:]


def bare(rounds: int) -> dict[str, list[float]]:
    """Return the seconds and tokens of each round's steps in a loop of PyTorch's own."""
    torch.set_num_threads(1)
    config = Config.from_run_config(settings())
    model, data = models.load_model(config), load_partition(config, 0, 1)
    models.set_adapter(model, models.initial_adapter(config))
    seconds, tokens = [], []
    for server_round in range(1, rounds + 1):
        seed = derive_seed(config.seed, server_round, 0)
        trainer = task.trainer(model, data, config, config.learning_rate(server_round), seed)
        loader = trainer.get_train_dataloader()
        batches = [batch for _, batch in zip(range(STEPS), loader, strict=False)]
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
        model.train()
        began = time.perf_counter()
        for batch in batches:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if server_round > 1:  # the first warms up
            seconds.append(time.perf_counter() - began)
            tokens.append(sum(batch["attention_mask"].sum().item() for batch in batches))
    return {"seconds": seconds, "tokens": tokens}


def peak(name: str) -> dict[str, float]:
    """Return tokens a second, the median of some rounds, and the process's peak resident memory.

    Rows are 256 tokens long.
    """
    torch.set_num_threads(1)
    changes = PRECISIONS[name] | {"train.training-arguments.max-steps": 3}
    config = Config.from_run_config(settings(**changes))
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model, data = models.load_model(config), load_partition(config, 0, 20)
    row = [token for example in data for token in example["input_ids"]][:256]
    rows = data.from_dict({"input_ids": [row] * 64, "labels": [row] * 64})
    models.set_adapter(model, models.initial_adapter(config))
    seconds = []
    for _ in range(1 + ROUNDS):  # the first warms up
        began = time.perf_counter()
        task.train(model, rows, config, 1e-3, 0)
        seconds.append((time.perf_counter() - began) / 3)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    speed = BATCH * 256 / statistics.median(seconds[1:])
    return {"tokens_a_second": speed, "peak_bytes": highest, "imports": imported}


def alone(*words: str) -> dict[str, Any]:
    """Run a part of this script in a process of its own."""
    command = [sys.executable, __file__, *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    if part := parser.parse_args().part:
        print(json.dumps(bare(ROUNDS + 1) if part[0] == "bare" else peak(part[1])))
        return
    with measurement("flowertune-llm-speed", seeds=(SEED,)) as result:
        result |= {"steps": STEPS, "rounds": ROUNDS, "batch": BATCH, "speed": [], "memory": {}}
        for _ in range(REPEATS):
            speed = alone("--part", "bare") | {"federated_seconds": federated_seconds()}
            result["speed"].append(speed)
            print(speed, flush=True)
        for name in PRECISIONS:
            result["memory"][name] = alone("--part", "peak", name)
            print(name, result["memory"][name], flush=True)


if __name__ == "__main__":
    main()
