"""Instruction data: the same prompt for training and questions, and labels for answers only."""

import shutil

import pytest
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from flowertune_llm import dataset
from flowertune_llm.central import report_data
from flowertune_llm.config import Config
from flowertune_llm.dataset import IGNORED, encode, load_partition, load_split, render
from flowertune_llm.models import load_tokenizer
from flowertune_llm.prompts import TEMPLATES
from transformers import AutoTokenizer


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


def test_python_docs_are_read_again_by_other_code_only(monkeypatch):
    before = load_split("python-docs", 64, 42)
    monkeypatch.setattr(dataset, "documented", None)  # is not called
    load_split.cache_clear()
    assert load_split("python-docs", 64, 42).train[:] == before.train[:]
    monkeypatch.setattr(dataset, "MADE_BY", "other code")
    load_split.cache_clear()
    with pytest.raises(DatasetGenerationError):
        load_split("python-docs", 64, 42)


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


def test_rows_cut_before_their_answer_are_counted(small, tmp_path, caplog):
    data = Dataset.from_list([*rows(6), *rows(2, instruction="word " * 300)])
    load_partition(config(small, tmp_path, data, **{"seed": 7}), 0, 1)
    kept = "Rows of partition 0: 2 of 7 left out, since no answer begins within train.seq-length"
    assert kept in caplog.text


@pytest.mark.parametrize("long", [False, True])
def test_answers_that_never_end_are_told(small, tmp_path, caplog, long):
    output = "Hello! " * (300 if long else 1)
    load_partition(config(small, tmp_path, rows(4, output=output)), 0, 1)
    assert ("no answer ends with any of ['<|im_end|>'] within train.seq" in caplog.text) == long


def test_token_outside_the_embedding_is_named(small, small_model, tmp_path):
    """The tokenizer has more tokens than the model's embedding."""
    folder = shutil.copytree(small_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>", "<pad>"])
    tokenizer.pad_token = "<pad>"
    tokenizer.save_pretrained(folder)
    (tmp_path / "data").mkdir()
    changes = {"model.name": str(folder)}
    harmless = config(small, tmp_path / "data", rows(3), **changes)
    assert load_tokenizer(harmless).pad_token == "<|im_end|>"
    assert len(load_partition(harmless, 0, 1)) == 2
    (tmp_path / "other").mkdir()
    settings = config(small, tmp_path / "other", rows(3, instruction="Say <new>."), **changes)
    with pytest.raises(RuntimeError, match=r"the row 'Say <new>.' has the token '<new>' = 49152"):
        load_partition(settings, 0, 1)


def test_test_rows_without_an_answer_end_the_run_at_once(small, tmp_path):
    settings = config(small, tmp_path, rows(4, instruction="word " * 300))
    with pytest.raises(RuntimeError, match=r"test-examples = 1: in none of these rows is an answe"):
        report_data(settings)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (rows(3, output=5), r"its column 'output' is Value\('int64'\), not text"),
        (rows(3, input=[1]), r"its column 'input' is List\(Value\('int64'\)\), not text"),
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
