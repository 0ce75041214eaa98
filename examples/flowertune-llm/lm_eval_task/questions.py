"""Questions of the lm-eval task beside this file: find the right one of four answers."""

import json
import random
import re
from pathlib import Path
from typing import Any

from datasets import Dataset
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_split

CHOICES = 4
LONGER = 1.25  # longest answer to a question, as a multiple of the shortest


def load(run: str = "", **_: Any) -> dict[str, Dataset]:
    """Return questions on the rows that a run has held out, as the split "test".

    Args:
        run: the output folder of the run; its config.json names the data, the number and the seed
            of those rows.
        _: further arguments of lm-eval, the model's name for instance.

    Raises:
        RuntimeError: the folder is not a run's, or too few rows are held out.
    """
    path = Path(run, "config.json")
    if not run or not path.is_file():
        raise RuntimeError(
            f"run = '{run}': no output folder of a run; add "
            """--metadata '{"run": "outputs/<date>/<time>"}'"""
        )
    config = Config.from_run_config(json.loads(path.read_text()))
    rows = load_split(config.dataset, config.test_examples, config.seed).test
    made = questions(list(zip(rows["question"], rows["answer"], strict=True)), config.seed)
    if not made:
        raise RuntimeError(
            f"run = '{run}': its {len(rows)} held-out rows give no question, since no answer has "
            f"{CHOICES - 1} like it; hold out more with test-examples"
        )
    return {"test": Dataset.from_list(made)}


def questions(rows: list[tuple[str, str]], seed: int) -> list[dict[str, Any]]:
    """Return a question for each row, if enough other rows have a similar answer.

    Only its meaning shall give the right answer away. The wrong answers come from other rows, are
    about as long, and share as many words with the question.

    Args:
        rows: questions and their answers.
        seed: of the choice and the order of the answers.

    Returns:
        `question`; `answers`, CHOICES of them; `right`, the place of the right one.
    """
    words = [(stems(question), stems(answer)) for question, answer in rows]
    made = []
    for number, (question, answer) in enumerate(rows):
        draw = random.Random(f"{seed} {number}")
        asked, said = words[number]
        shortest = len(answer) / LONGER ** draw.random()  # the right one may be short or long
        wrong = {
            other: None  # a set in order
            for (_, other), (_, others) in zip(rows, words, strict=True)
            if other != answer
            and len(asked & others) == len(asked & said)
            and shortest <= len(other) <= LONGER * shortest
        }
        if len(wrong) < CHOICES - 1:
            continue
        answers = [answer, *draw.sample(list(wrong), CHOICES - 1)]
        draw.shuffle(answers)
        made.append({"question": question, "answers": answers, "right": answers.index(answer)})
    return made


def stems(text: str) -> set[str]:
    """Return the first letters of each word in a text; an identifier may hold several words."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)
    return {word.lower()[:4] for word in words if len(word) > 2}
