"""The task for lm-eval: questions whose answers only their meaning gives away."""

import importlib.util
import json
from types import ModuleType

import pytest
import yaml
from flowertune_llm.dataset import load_split
from flowertune_llm.kit.testing import APP

TASK = APP / "lm_eval_task" / "held_out_choice.yaml"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script questions.py beside the task."""
    spec = importlib.util.spec_from_file_location("questions", TASK.with_name("questions.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_the_meaning_gives_the_answer_away(script):
    split = load_split("python-docs", 400, 42)
    rows = list(zip(split.test["question"], split.test["answer"], strict=True))
    made = script.questions(rows, 42)
    assert len(made) > 100
    assert made == script.questions(rows, 42) != script.questions(rows, 43)
    known, longest = dict(rows), 0
    for question in made:
        answers, right = question["answers"], known[question["question"]]
        assert len(set(answers)) == script.CHOICES
        assert answers[question["right"]] == right
        assert set(answers) <= set(known.values())
        lengths = sorted(map(len, answers))
        assert lengths[-1] <= script.LONGER * lengths[0]
        longest += len(right) == lengths[-1]
        words = script.stems(question["question"])
        assert len({len(words & script.stems(answer)) for answer in answers}) == 1
    assert longest < 0.4 * len(made)
    places = [question["right"] for question in made]
    assert all(places.count(place) > len(made) / 8 for place in range(script.CHOICES))


def test_task_asks_what_a_run_has_held_out(script, offline, tmp_path):
    """It is called as by lm-eval, with the run's folder and the model's arguments."""
    described = yaml.load(TASK.read_text().replace("!function ", ""), yaml.SafeLoader)
    (tmp_path / "config.json").write_text(json.dumps(offline | {"test-examples": 200}))
    assert described["custom_dataset"] == f"{script.__name__}.load"
    data = script.load(run=str(tmp_path), pretrained="my-model")[described["test_split"]]
    columns = [described[f"doc_to_{what}"] for what in ("text", "choice", "target")]
    assert data.column_names == columns
    held_out = load_split("python-docs", 200, offline["seed"]).test["question"]
    assert 0 < len(data) < 200
    assert set(data["question"]) <= set(held_out)


def test_what_gives_no_questions_is_refused(script, offline, tmp_path):
    for folder in ("", str(tmp_path)):
        with pytest.raises(
            RuntimeError, match=r"no output folder of a run; add --metadata '{\"run"
        ):
            script.load(run=folder)
    (tmp_path / "config.json").write_text(json.dumps(offline | {"test-examples": 3}))
    with pytest.raises(RuntimeError, match="its 3 held-out rows give no question"):
        script.load(run=str(tmp_path))
