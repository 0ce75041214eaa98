"""A language model with an adapter; the tokenizer takes text sample by sample."""

import tempfile
from collections.abc import Callable

import torch
from datasets import Dataset, DatasetDict, load_dataset
from flwr_datasets.partitioner import IidPartitioner
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

IGNORED = -100


def build(config: dict) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.bfloat16)
    lora = LoraConfig(
        r=config["lora-r"],
        lora_alpha=config["lora-alpha"],
        lora_dropout=config["lora-dropout"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def load_rows(config: dict) -> DatasetDict:
    rows = load_dataset(config["dataset"], split="train")
    return rows.train_test_split(test_size=config["test-examples"], seed=config["seed"])


def load_partition(config: dict, partition_id: int, num_partitions: int) -> Dataset:
    partitioner = IidPartitioner(num_partitions)
    partitioner.dataset = load_rows(config)["train"]
    return partitioner.load_partition(partition_id)


def to_tokens(tokenizer: PreTrainedTokenizerBase, length: int) -> Callable[[dict], dict]:
    """Return a function that turns a batch of rows into tokens, with labels for the answers."""

    def apply(batch: dict) -> dict:
        found = {"input_ids": [], "labels": []}
        for question, answer in zip(batch["instruction"], batch["output"], strict=True):
            asked = [{"role": "user", "content": question}]
            said = [*asked, {"role": "assistant", "content": answer}]
            prompt = tokenizer.apply_chat_template(
                asked, tokenize=False, add_generation_prompt=True
            )
            whole = tokenizer.apply_chat_template(said, tokenize=False)
            start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            rest = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
            found["input_ids"].append((start + rest)[:length])
            found["labels"].append(([IGNORED] * len(start) + rest)[:length])
        return found

    return apply


def learning_rate(config: dict, server_round: int) -> float:
    """Return the rate of a round, along a cosine."""
    low, high = config["learning-rate-min"], config["learning-rate-max"]
    done = (server_round - 1) / max(config["num-server-rounds"] - 1, 1)
    return low + (high - low) * (1 + float(torch.cos(torch.tensor(torch.pi * done)))) / 2


def train(model: PeftModel, rows: Dataset, config: dict, server_round: int) -> float:
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        max_steps=config["max-steps"],
        per_device_train_batch_size=config["batch-size"],
        learning_rate=learning_rate(config, server_round),
        lr_scheduler_type="constant",
        seed=config["seed"],
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows.with_transform(to_tokens(tokenizer, config["seq-length"])),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
    )
    return trainer.train().training_loss


@torch.no_grad()
def test(model: PeftModel, config: dict) -> float:
    """Return the loss per token of the held-out answers."""
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    rows = load_rows(config)["test"]
    loader = DataLoader(
        rows.with_transform(to_tokens(tokenizer, config["seq-length"])),
        batch_size=8,
        collate_fn=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
    )
    model.eval()
    total = tokens = 0.0
    for batch in loader:
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].float()
        total += cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        tokens += (labels != IGNORED).sum().item()
    return total / tokens
