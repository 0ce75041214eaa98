"""The plots that the README shows can be made by the commands that it names."""

import json
import subprocess
import sys


def plot(*words: str) -> str:
    command = [sys.executable, "-m", "pytorch_example.plot", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def is_png(path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_partitions(tmp_path):
    path = tmp_path / "partitions.png"
    words = ["--dataset", "digits", "--alpha", "0.5", "--num-partitions", "10"]
    assert plot("partitions", *words, "--output", str(path)).endswith(str(path))
    assert is_png(path)


def test_curves(tmp_path):
    history = [
        {
            "round": n,
            "train_metrics": {"train_loss": 1 / (n + 1)} if n else {},
            "evaluate_metrics_clientapp": {"eval_acc": n / 3, "eval_loss": 1.0} if n else {},
            "evaluate_metrics_serverapp": {"accuracy": n / 3, "loss": 1.0},
        }
        for n in range(4)
    ]
    (tmp_path / "results.json").write_text(json.dumps(history))
    plot("curves", str(tmp_path))
    assert is_png(tmp_path / "curves.png")
