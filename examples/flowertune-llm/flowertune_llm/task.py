"""The project itself: training and testing a model by PyTorch and transformers, without Flower."""

import difflib
import math
import tempfile
from copy import copy
from dataclasses import Field, fields
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from flowertune_llm.config import TRAINING_ARGUMENTS, Config
from flowertune_llm.dataset import IGNORED
from flowertune_llm.models import load_tokenizer

Model = PreTrainedModel | PeftModel
EVALUATION_BATCH = 8
# Training arguments that the example sets by itself, each with the key to use instead.
OWN = {
    "output_dir": "output-dir",
    "learning_rate": "train.learning-rate-max and -min",
    "lr_scheduler_type": "train.learning-rate-max and -min",
    "seed": "seed",
    "data_seed": "seed",
    "gradient_checkpointing": "model.gradient-checkpointing",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "use_cpu": "model.device-map",
    "report_to": "wandb.mode",
}


def check_training_arguments(config: Config) -> None:
    """Compare `train.training-arguments.*` with transformers' own names and values.

    Raises:
        ValueError: a key is wrong; the text names it, and a way out.
    """
    known = {f.name: f for f in fields(TrainingArguments) if f.name not in OWN}
    given = dict(config.training_arguments)
    for name, value in given.items():
        key = TRAINING_ARGUMENTS + name.replace("_", "-")
        if name in OWN:
            raise ValueError(f"run config: {key} = {value!r}: set {OWN[name]} instead")
        if name not in known:
            close = [n.replace("_", "-") for n in difflib.get_close_matches(name, known)]
            raise ValueError(
                f"run config: {key} = {value!r} is not an argument of transformers' "
                f"TrainingArguments; close to it: {', '.join(close) or 'none'}"
            )
        check_number(key, value, known[name])
    if reason := refused(given):
        keys = (name for name, value in given.items() if refused({name: value}))
        key = TRAINING_ARGUMENTS + next(keys, "*").replace("_", "-")
        raise ValueError(f"run config: {key}: {reason}")


def check_number(key: str, value: Any, declared: Field) -> None:
    """Compare a number with what the library declares: the same type, and not below 0 in vain.

    Raises:
        ValueError: names the key.
    """
    default = declared.default
    if not isinstance(default, int | float):
        return
    if isinstance(default, bool):
        kinds, allowed = (bool,), "true or false"
    elif isinstance(default, float) or "float" in str(declared.type):
        kinds, allowed = (float, int), f"a number of at least {min(0, default)}"
    else:
        kinds, allowed = (int,), f"a number of at least {min(0, default)} (whole number)"
    if type(value) not in kinds or not value >= min(0, default):
        raise ValueError(f"run config: {key} = {value!r} is not valid; allowed: {allowed}")


def refused(given: dict[str, Any]) -> str:
    """Return what the library says against arguments; empty: nothing."""
    try:
        TrainingArguments(output_dir=tempfile.gettempdir(), report_to="none", **given)
    except (ValueError, TypeError) as error:
        return " ".join(str(error).split())
    return ""


def train(
    model: Model,
    data: Dataset,
    config: Config,
    learning_rate: float,
    seed: int,
) -> float:
    """Train in place and return the mean training loss per token of the answers."""
    return trainer(model, data, config, learning_rate, seed).train().training_loss


def trainer(
    model: Model,
    data: Dataset,
    config: Config,
    learning_rate: float,
    seed: int,
    **changes: Any,
) -> Trainer:
    """Return a Trainer with `train.training-arguments.*` and the arguments set by this example."""
    arguments: dict[str, Any] = {
        "output_dir": tempfile.gettempdir(),  # nothing is written there
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "seed": seed,
        "gradient_checkpointing": config.gradient_checkpointing,
        "use_cpu": model.device.type == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": model.device.type == "cuda",
    }
    if config.gradient_checkpointing:
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    made = Trainer(
        model,
        TrainingArguments(**arguments | dict(config.training_arguments) | changes),
        train_dataset=data,
        data_collator=collator(config),
    )
    made.remove_callback(PrinterCallback)
    return made


@torch.inference_mode()
def evaluate(model: Model, data: Dataset, config: Config) -> tuple[float, float]:
    """Return loss per token of the answers, in nats, and perplexity."""
    model.eval()
    collate = collator(config)
    examples = sorted(data, key=lambda example: len(example["input_ids"]))  # little padding
    total = tokens = 0.0
    for start in range(0, len(examples), EVALUATION_BATCH):
        batch = collate(examples[start : start + EVALUATION_BATCH])
        batch = {name: value.to(model.device) for name, value in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].float()
        total += cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        tokens += (labels != IGNORED).sum().item()
    loss = total / tokens
    return loss, math.exp(min(loss, 700.0))


def collator(config: Config) -> DataCollatorForSeq2Seq:
    """Return a collator that pads a batch to its longest example, and labels with IGNORED.

    Padding is on the right, since models count positions from the left.
    """
    tokenizer = copy(load_tokenizer(config))
    tokenizer.padding_side = "right"
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
