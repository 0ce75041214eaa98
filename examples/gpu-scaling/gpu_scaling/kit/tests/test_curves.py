# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Curves of every metric in results.json, whatever its name."""

import json
import math
import subprocess
import sys

from ..curves import curves, draw_curves


def history() -> list[dict]:
    return [
        {
            "round": n,
            "train_metrics": {"train_loss": 1 / (n + 1)} if n else {},
            "evaluate_metrics_clientapp": {"eval_acc": n / 3, "personal_eval_acc": 1.0}
            if n
            else {},
            "evaluate_metrics_serverapp": {"accuracy": n / 3, "loss": 1.0, "f1": 0.5},
            "clients": [{"partition": p, "eval_acc": p / 4} for p in range(4 * bool(n))],
        }
        for n in range(4)
    ]


def test_each_metric_has_its_curve():
    found = curves(history())
    assert {title: list(lines) for title, lines in found.items()} == {
        "accuracy": ["central test", "clients' data", "personal, clients' data"],
        "f1": ["central test"],
        "loss": ["central test", "clients' training"],
    }
    assert found["loss"]["clients' training"] == [(1, 1 / 2), (2, 1 / 3), (3, 1 / 4)]


def test_what_is_no_figure_is_a_gap(tmp_path):
    """A missing figure is null in results.json, NaN in the run; a list has no curve."""
    rounds = history()
    for entry, odd in zip(rounds, (None, math.nan, math.inf, 0.5), strict=True):
        entry["evaluate_metrics_serverapp"] = {"loss": odd, "each": [1.0, odd]}
        entry["clients"].append({"partition": 9, "eval_acc": odd})
    found = curves(rounds)
    assert "each" not in found
    values = [value for _, value in found["loss"]["central test"]]
    assert all(map(math.isnan, values[:3]))
    assert values[3] == 0.5
    draw_curves(rounds, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_the_command_draws_them(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(history()))
    name = f"{__package__.rsplit('.', 1)[0]}.curves"
    subprocess.run([sys.executable, "-m", name, str(tmp_path)], check=True)
    picture = (tmp_path / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_a_folder_without_results_is_named(tmp_path):
    name = f"{__package__.rsplit('.', 1)[0]}.curves"
    done = subprocess.run(
        [sys.executable, "-m", name, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"{tmp_path}: no results.json here" in done.stderr
