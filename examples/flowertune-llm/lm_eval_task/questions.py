"""Questions of the lm-eval task beside this file: which of four answers is the right one."""

import json
import random
import re
from pathlib import Path
from typing import Any

from datasets import Dataset
from flowertune_llm.config import Config
from flowertune_llm.dataset import load_split

CHOICES = 4
LONGER = 1.25  # length of the longest answer to a question, in lengths of the shortest


def load(run: str = "", **_: Any) -> dict[str, Dataset]:
    """Return the questions on the rows that a run has held out, as the split "test".

    Args:
        run: the output folder of the run; its config.json names the data, the number and the seed
            of those rows.
        _: what else lm-eval hands over: the model's name and the like.

    Raises:
        RuntimeError: the folder is not that of a run, or too few rows are held out.
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
    """Return a question for each row whose answer has enough others like it.

    Nothing but its meaning is to give the right answer away: the wrong ones are those of other
    rows, about as long, and share as many words with the question.

    Args:
        rows: questions and their answers.
        seed: of the choice of the wrong answers, and of the places.

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
            other: None  # a set that keeps its order
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
    """Return the beginnings of the words in a text; an identifier may hold several."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)
    return {word.lower()[:4] for word in words if len(word) > 2}
