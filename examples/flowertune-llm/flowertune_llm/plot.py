"""Learning curves of a run: python -m <package>.plot outputs/<date>/<time>."""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

CURVES = {  # results.json: part, metric, label
    "loss per token of the answers": [
        ("evaluate_metrics_serverapp", "loss", "global adapter, held-out examples"),
        ("train_metrics", "train_loss", "training, mean over clients"),
    ],
    "perplexity": [("evaluate_metrics_serverapp", "perplexity", "global adapter, held out")],
}


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw loss and perplexity over the rounds of a results.json into an image file."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
        for part, metric, label in curves:
            points = [(e["round"], e[part][metric]) for e in history if metric in e[part]]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
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
