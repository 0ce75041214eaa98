"""Instruction data: the same prompt for training and for questions, and only answers learnt."""

import pytest
from datasets import Dataset
from flowertune_llm.config import Config
from flowertune_llm.dataset import IGNORED, encode, load_partition, load_split, render
from flowertune_llm.models import TEMPLATES, load_tokenizer


def rows(count: int, **changes: object) -> Dataset:
    row = {"instruction": "Say hello.", "input": "", "output": "Hello!"} | changes
    return Dataset.from_list([row] * count)


def config(small: dict, folder, data: Dataset, **changes: object) -> Config:
    data.to_parquet(folder / "train.parquet")
    return Config.from_run_config(small | {"dataset": str(folder), "test-examples": 1} | changes)


@pytest.mark.parametrize("template", [*TEMPLATES, "chat"])
def test_only_the_answer_has_labels(small, template):
    tokenizer = load_tokenizer(Config.from_run_config(small | {"model.prompt-template": template}))
    example = encode(tokenizer, "How many legs has a cat?", "Four legs.", 200)
    learnt = [token for token in example["labels"] if token != IGNORED]
    assert tokenizer.decode(learnt).strip() == "Four legs." + tokenizer.eos_token
    prompt = example["input_ids"][: example["labels"].count(IGNORED)]
    assert tokenizer.decode(prompt) == render(tokenizer, "How many legs has a cat?")


def test_python_docs_are_questions_and_real_docstrings():
    split = load_split("python-docs", 64, 42)
    assert len(split.train) > 2000
    both = [*split.train["question"], *split.test["question"]]
    answers = [*split.train["answer"], *split.test["answer"]]
    asked = "In Python, what does textwrap.dedent(text) do?"
    assert answers[both.index(asked)].startswith("Remove any common leading whitespace")
    assert not set(split.train["question"]) & set(split.test["question"])


def test_clients_share_nothing(small):
    settings = Config.from_run_config(small)
    parts = [load_partition(settings, i, 4) for i in range(4)]
    assert {len(part) for part in parts} == {len(parts[0]), len(parts[-1])}
    ids = [{tuple(row) for row in part["input_ids"]} for part in parts]
    assert not ids[0] & ids[1]


def test_rows_without_an_answer_are_counted(small, tmp_path):
    data = Dataset.from_list([*rows(5), *rows(2, output=" ")])
    settings = config(small, tmp_path, data)
    split = load_split(settings.dataset, settings.test_examples, settings.seed)
    assert (len(split.train), len(split.test), split.unanswered) == (4, 1, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (rows(3, output=""), "0 of 3 rows have an answer, test-examples = 1 leaves none"),
        (rows(3), "partition 2 is empty: .* has 2 training rows for 3 clients"),
        (
            rows(9, instruction="word " * 300),
            "partition 2 is empty: in none of its rows is an answer within the first train",
        ),
        (rows(3).rename_column("output", "text"), "needs the columns 'instruction' and 'output'"),
    ],
)
def test_data_that_cannot_be_learnt_from_is_named(small, tmp_path, data, message):
    with pytest.raises(RuntimeError, match=message):
        load_partition(config(small, tmp_path, data), 2, 3)
