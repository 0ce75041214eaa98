"""Instruction data: rows of question and answer, split between clients, turned into tokens."""

import ast
import inspect
import logging
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from logging import WARNING
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from flowertune_llm.config import Config
from flowertune_llm.kit.images import load_rows
from flowertune_llm.models import load_tokenizer, load_turn_ends, vocabulary_size

FLOWER = logging.getLogger("flwr")  # without importing Flower: centralised training needs none
IGNORED = -100  # label of tokens that do not count in the loss
# What makes "python-docs": part of its key in the cache of `datasets`.
MADE_BY = f"{Path(__file__).read_text()} Python {sys.version}"


class Split(NamedTuple):
    """Rows with the columns `question` and `answer`."""

    train: Dataset
    test: Dataset
    unanswered: int  # rows without an answer, left out


@lru_cache(maxsize=1)
def load_split(name: str, test_examples: int, seed: int) -> Split:
    """Load all rows and hold some out for the central test.

    Args:
        name: a Hub name, a local folder, or "python-docs".
        test_examples: number of rows held out.
        seed: of their choice.

    Raises:
        RuntimeError: the data cannot be reached, or lacks columns, answers or rows.
    """
    if name == "python-docs":
        data = Dataset.from_generator(python_docs, gen_kwargs={"made_by": MADE_BY})
    else:
        data = load_rows(name, "train")
    if not {"instruction", "output"} <= set(data.column_names):
        raise RuntimeError(
            f"dataset = '{name}': needs the columns 'instruction' and 'output', and may have "
            f"'input'; has {data.column_names}"
        )
    for column in {"instruction", "input", "output"} & set(data.column_names):
        kind = data.features[column]
        if getattr(kind, "dtype", "") not in ("string", "large_string", "null"):
            raise RuntimeError(
                f"dataset = '{name}': its column '{column}' is {kind}, not text; turn it into text "
                f"(data.cast_column('{column}', datasets.Value('string')))"
            )
    data = data.map(
        lambda row: {
            "question": "\n\n".join(filter(None, (row["instruction"], row.get("input")))),
            "answer": (row["output"] or "").strip(),
        },
        remove_columns=data.column_names,
    )
    answered = data.filter(lambda row: bool(row["answer"] and row["question"]))
    if len(answered) <= test_examples:
        raise RuntimeError(
            f"dataset = '{name}': {len(answered)} of {len(data)} rows have an answer, "
            f"test-examples = {test_examples} leaves none for the clients"
        )
    parts = answered.train_test_split(test_size=test_examples, seed=seed)
    return Split(parts["train"], parts["test"], len(data) - len(answered))


def python_docs(made_by: str = MADE_BY) -> Iterator[dict[str, str]]:
    """Yield a question and its answer for each documented name of Python's standard library.

    The source files are read, nothing is imported. The answer is the docstring's first paragraph.
    This takes seconds, so that `datasets` keeps the rows for all later processes.

    Args:
        made_by: code and Python version, for the key of the cache.
    """
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted([*library.glob("*.py"), *library.glob("*/*.py")]):
        parts = path.relative_to(library).with_suffix("").parts
        if parts[0] in ("site-packages", "idlelib", "lib2to3", "test") or parts[-1][0] == "_":
            continue
        tree = ast.parse(path.read_bytes())
        for node in tree.body:
            yield from documented(node, ".".join(parts))
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    yield from documented(member, ".".join([*parts, node.name]))


def documented(node: ast.stmt, owner: str) -> Iterator[dict[str, str]]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    text = inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")[0]
    if node.name.startswith("_") or len(text.split()) < 5:
        return
    name = f"{owner}.{node.name}"
    if isinstance(node, ast.ClassDef):
        question = f"In Python, what is the class {name}?"
    else:
        arguments = ", ".join(argument.arg for argument in node.args.args)
        question = f"In Python, what does {name}({arguments}) do?"
    yield {"instruction": question, "output": " ".join(text.split())}


@lru_cache(maxsize=8)
def load_partition(config: Config, partition_id: int, num_partitions: int) -> Dataset:
    """Return one client's examples as tokens, once for each process.

    Returns:
        columns `input_ids` and `labels`, lists of the same length.

    Raises:
        RuntimeError: nothing is left for this client.
    """
    # Imported here, because it takes seconds and the server never needs it.
    from flwr_datasets.partitioner import IidPartitioner

    train = load_split(config.dataset, config.test_examples, config.seed).train
    if len(train) < num_partitions:
        raise RuntimeError(
            f"partition {partition_id} is empty: dataset = '{config.dataset}' has {len(train)} "
            f"training rows for {num_partitions} clients"
        )
    partitioner = IidPartitioner(num_partitions)
    partitioner.dataset = train  # shuffled already
    tokens = tokenize(partitioner.load_partition(partition_id), config, f"partition {partition_id}")
    if not len(tokens):
        raise RuntimeError(
            f"partition {partition_id} is empty: in none of its rows is an answer within the first "
            f"train.seq-length = {config.seq_length} tokens"
        )
    return tokens


@lru_cache(maxsize=1)
def load_test(config: Config) -> Dataset:
    """Return the central test set as tokens, once for each process.

    Raises:
        RuntimeError: nothing is left of it.
    """
    rows = load_split(config.dataset, config.test_examples, config.seed).test
    tokens = tokenize(rows, config, "the central test")
    if not len(tokens):
        raise RuntimeError(
            f"test-examples = {config.test_examples}: in none of these rows is an answer within "
            f"the first train.seq-length = {config.seq_length} tokens; raise train.seq-length"
        )
    return tokens


def tokenize(rows: Dataset, config: Config, whose: str) -> Dataset:
    """Turn rows into `input_ids` and `labels`; rows cut off before their answer are left out.

    The log has their number, and a warning if no answer ends with one of the model's end tokens.

    Raises:
        RuntimeError: a token is not in the model's embedding.
    """
    tokenizer, vocabulary = load_tokenizer(config), vocabulary_size(config)
    examples = []
    for question, answer in zip(rows["question"][:], rows["answer"][:], strict=True):
        examples.append(encode(tokenizer, question, answer, config.seq_length))
        if (highest := max(examples[-1]["input_ids"])) >= vocabulary:
            raise RuntimeError(
                f"dataset = '{config.dataset}': the row {question[:60]!r} has the token "
                f"'{tokenizer.convert_ids_to_tokens(highest)}' = {highest}, and the embedding of "
                f"model.name = '{config.model_name}' has {vocabulary} rows; its tokenizer is "
                "another model's"
            )
    kept = [example for example in examples if max(example["labels"]) != IGNORED]
    limit = f"train.seq-length = {config.seq_length}"
    if cut := len(examples) - len(kept):
        message = "Rows of %s: %d of %d left out, since no answer begins within %s tokens"
        FLOWER.log(WARNING, message, whose, cut, len(examples), limit)
    ends = set(load_turn_ends(config))
    if kept and not any(ends.intersection(example["labels"]) for example in kept):
        message = "Rows of %s: no answer ends with any of %s within %s tokens, as the model's "
        message += "answers do: it will not learn where to stop"
        FLOWER.log(WARNING, message, whose, tokenizer.convert_ids_to_tokens(sorted(ends)), limit)
    return Dataset.from_dict(
        {name: [example[name] for example in kept] for name in ("input_ids", "labels")}
    )


def encode(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str, length: int
) -> dict[str, list[int]]:
    """Return the tokens of the filled-in prompt template, with labels for the answer only."""
    asked = [{"role": "user", "content": question}]
    prompt = render(tokenizer, question)
    whole = tokenizer.apply_chat_template(
        [*asked, {"role": "assistant", "content": answer}], tokenize=False
    )
    if not whole.startswith(prompt):
        raise RuntimeError(
            "model.prompt-template: the template does not begin an answered question as it begins "
            "an open one, so the answer cannot be told apart; use 'vicuna' or 'alpaca'"
        )
    prompt_ids, answer_ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (prompt, whole[len(prompt) :])
    )
    return {
        "input_ids": (prompt_ids + answer_ids)[:length],
        "labels": ([IGNORED] * len(prompt_ids) + answer_ids)[:length],
    }


def render(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """Return the prompt up to the answer, the same for training and for questions."""
    asked = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
