"""Worth of a federated model: how often it knows the right one of four answers, by lm-eval.

The questions are those of examples/flowertune-llm/lm_eval_task, on rows that no client has. They go
to the base model, a federated one, and one that was trained centrally on as many examples in as
many steps. export.py merges each adapter; lm-eval, in an environment of its own, asks the model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import ROOT, declared_config, history, measurement, simulate
from flowertune_llm import models, smollm2, task
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_test
from flowertune_llm_accuracy import APP, BATCH, CLIENTS, ROUNDS, SEEDS, STEPS, train
from side_by_side import environment, install

LM_EVAL = "lm-eval[hf]==0.4.13"
HELD_OUT = 600  # rows; more than a third have enough similar answers for a question
DTYPE = "bfloat16"  # the base model's own: of weights and computation
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def settings(seed: int) -> dict[str, Any]:
    """Return the run config of a longer offline run, tested at its beginning and end."""
    changes = {"num-server-rounds": ROUNDS, "train.evaluate-every-round": ROUNDS}
    changes |= {"train.save-every-round": ROUNDS, "test-examples": HELD_OUT, "seed": seed}
    return declared_config(APP, offline=True) | changes


def federated(run_config: dict[str, Any], folder: Path) -> tuple[Path, list[float]]:
    """Return the folder of a run, and its held-out loss before and after."""
    for _ in simulate(APP, CLIENTS, run_config, folder):
        pass
    tested = [entry["evaluate_metrics_serverapp"] for entry in history(folder)]
    [run] = folder.glob("outputs/*/*")
    return run, [metrics["loss"] for metrics in tested if metrics]


def centralised(run_config: dict[str, Any], folder: Path) -> tuple[Path, float]:
    """Return the folder of an adapter that was trained on all clients' data, and its loss.

    Each step takes as many examples as a step of a round's two clients together.
    """
    config, adapter = Config.from_run_config(run_config), folder / "peft"
    model = models.load_model(config)
    models.set_adapter(model, models.initial_adapter(config))
    train(model, config, 2 * run_config[BATCH], ROUNDS * run_config[STEPS])
    models.save_adapter(models.get_adapter(model), config, adapter)
    return adapter, task.evaluate(model, load_test(config), config)[0]


def export(adapter: Path) -> Path:
    """Merge an adapter into its base model, by the README's command."""
    model = adapter.with_name(f"{adapter.name}-merged")
    command = [sys.executable, APP / "export.py", "--peft-path", adapter, "--output", model]
    subprocess.run(list(map(str, command)), check=True)
    return model


def ask(python: Path, model: Path, run: Path) -> dict[str, list[float]]:
    """Return 1 or 0 for each question, whether the model knows the answer, by both metrics.

    Args:
        python: of the environment with lm-eval.
        model: a model folder of transformers.
        run: the output folder of the run that held out the questions' rows.
    """
    command = [python.with_name("lm-eval"), "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={model},dtype={DTYPE},softmax_dtype=float32"]
    command += ["--device", "cpu", "--tasks", "held_out_choice"]
    command += ["--include_path", APP / "lm_eval_task"]
    command += ["--metadata", json.dumps({"run": str(run)}), "--apply_chat_template"]
    with tempfile.TemporaryDirectory() as output:
        command += ["--batch_size", "8", "--log_samples", "--output_path", output]
        subprocess.run(list(map(str, command)), env=os.environ | OFFLINE, check=True)
        [path] = Path(output).rglob("samples_*.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])
    return {metric: [sample[metric] for sample in samples] for metric in ("acc", "acc_norm")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(2)
    with measurement("flowertune-llm-worth", seeds) as result, tempfile.TemporaryDirectory() as own:
        python = environment(Path(own, "environment"))
        pinned = ["--constraint", str(ROOT / "constraints.txt")]
        install(python, ["--editable", str(APP), LM_EVAL, *pinned], "--quiet")
        models_asked: dict[str, list[dict[str, Any]]] = {}
        for seed in seeds:
            with tempfile.TemporaryDirectory() as name:
                folder, run_config = Path(name), settings(seed)
                run, (before, after) = federated(run_config, folder)
                adapter, central = centralised(run_config, folder)
                asked = {
                    "before": (smollm2.model_folder(), before),
                    "federated": (export(run / f"peft_{ROUNDS}"), after),
                    "centralised": (export(adapter), central),
                }
                for kind, (model, loss) in asked.items():
                    known = ask(python, model, run)
                    models_asked.setdefault(kind, []).append({"loss": loss} | known)
                    right = sum(known["acc"])
                    print(f"seed {seed}, {kind}: loss {loss:.4f}, {right:.0f} of", end=" ")
                    print(f"{len(known['acc'])} questions", flush=True)
        result |= {"lm_eval": LM_EVAL, "dtype": DTYPE, "held_out": HELD_OUT, "rounds": ROUNDS}
        result |= {"steps": settings(0)[STEPS], "models": models_asked}


if __name__ == "__main__":
    main()
