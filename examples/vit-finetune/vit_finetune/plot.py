"""Learning curves of a run: python -m <package>.plot outputs/<date>/<time>."""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

CURVES = {  # results.json: part, metric, label
    "accuracy": [
        ("evaluate_metrics_serverapp", "accuracy", "global model, central test set"),
        ("evaluate_metrics_clientapp", "eval_acc", "global model, clients' data"),
    ],
    "loss": [
        ("evaluate_metrics_serverapp", "loss", "global model, central test set"),
        ("evaluate_metrics_clientapp", "eval_loss", "global model, clients' data"),
        ("train_metrics", "train_loss", "training"),
    ],
}


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy and loss over the rounds of a results.json into an image file."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
        for part, metric, label in curves:
            points = [(e["round"], e[part][metric]) for e in history if metric in e[part]]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
        if title == "accuracy":
            draw_range(axes, history)
        axes.set(title=title, xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        else:
            axes.text(0.5, 0.5, "not measured in this run", ha="center", transform=axes.transAxes)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


def draw_range(axes: Axes, history: list[dict[str, Any]]) -> None:
    """Shade the middle half of the clients' accuracies."""
    rounds, low, high = [], [], []
    for entry in history:
        values = sorted(c["eval_acc"] for c in entry["clients"] if "eval_acc" in c)
        if values:
            rounds.append(entry["round"])
            low.append(values[len(values) // 4])
            high.append(values[(3 * len(values)) // 4])
    if rounds:
        axes.fill_between(rounds, low, high, alpha=0.15, color="C1", label="middle half of clients")


def history_in(folder: Path) -> list[dict[str, Any]]:
    """Return the rounds of a run.

    Raises:
        SystemExit: there are none in this folder.
    """
    try:
        return json.loads((folder / "results.json").read_text())
    except FileNotFoundError:
        raise SystemExit(
            f"{folder}: no results.json here; give a run's outputs/<date>/<time>"
        ) from None


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.plot", description=__doc__)
    parser.add_argument("folder", type=Path, help="outputs/<date>/<time>")
    folder = parser.parse_args().folder
    draw_curves(history_in(folder), folder / "curves.png")
    print((folder / "curves.png").resolve())


if __name__ == "__main__":
    main()
