"""Film reviews, good or bad, by transformers' Trainer and a tiny BERT."""

import random

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

GOOD = "great fine lovely moving bright funny clever warm".split()
BAD = "dull poor awful boring weak silly slow cold".split()
PLAIN = "the film was with a plot and actors that music scene end of it".split()
WORDS = ["[PAD]", *GOOD, *BAD, *PLAIN]


class Reviews(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        rng = random.Random(seed)
        self.texts, self.labels = [], []
        for _ in range(size):
            label = rng.randrange(2)
            words = rng.choices(PLAIN, k=8) + rng.choices(GOOD if label else BAD, k=2)
            rng.shuffle(words)
            self.texts.append(words)
            self.labels.append(label)

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        ids = torch.tensor([WORDS.index(word) for word in self.texts[index]])
        return {"input_ids": ids, "labels": torch.tensor(self.labels[index])}


def compute_metrics(eval_pred):
    logits, labels = eval_pred
    return {"accuracy": float((np.argmax(logits, axis=-1) == labels).mean())}


def main():
    set_seed(7)
    train_dataset = Reviews(256, seed=1)
    eval_dataset = Reviews(64, seed=2)

    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        num_labels=2,
    )
    model = BertForSequenceClassification(config)

    training_args = TrainingArguments(
        output_dir="test_trainer",
        num_train_epochs=2,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
