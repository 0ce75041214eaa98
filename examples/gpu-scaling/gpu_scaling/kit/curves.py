# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Learning curves of a run: python -m <package>.kit.curves outputs/<date>/<time>."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = {  # of results.json, each with what its figures were measured on
    "evaluate_metrics_serverapp": "central test",
    "evaluate_metrics_clientapp": "clients' data",
    "train_metrics": "clients' training",
}
WORDS = {"acc": "accuracy", "eval": "", "train": "", "personal": ""}
Curve = tuple[str, list[tuple[int, float]]]  # label and points


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw every metric of a results.json over its rounds into an image file."""
    from matplotlib.figure import Figure  # half a second to import
    from matplotlib.ticker import MaxNLocator

    panels = curves(history) or {"nothing was measured in this run": {}}
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, found) in zip(all_axes, panels.items(), strict=True):
        for label, points in found.items():
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
        if title == "accuracy":
            draw_range(axes, history)
        axes.set(title=title, xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


def curves(history: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the points of each curve: by metric ("accuracy", "loss", …), then by label.

    NaN makes a gap in a curve. A metric that is a list has no curve.
    """
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for part, who in PARTS.items():
        for name in dict.fromkeys(name for entry in history for name in entry[part]):
            kind = " ".join(filter(None, (WORDS.get(w, w) for w in name.split("_"))))
            label = f"personal, {who}" if name.startswith("personal") else who
            values = {e["round"]: e[part][name] for e in history if name in e[part]}
            if not any(isinstance(value, list | tuple) for value in values.values()):
                points = [(n, v if finite(v) else math.nan) for n, v in values.items()]
                panels.setdefault(kind, {})[label] = points
    return dict(sorted(panels.items()))


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def draw_range(axes: "Axes", history: list[dict[str, Any]]) -> None:
    """Shade the middle half of the clients' accuracies."""
    rounds, low, high = [], [], []
    for entry in history:
        values = sorted(
            c["eval_acc"] for c in entry.get("clients", ()) if finite(c.get("eval_acc"))
        )
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
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.curves", description=__doc__)
    parser.add_argument("folder", type=Path, help="outputs/<date>/<time>")
    folder = parser.parse_args().folder
    draw_curves(history_in(folder), folder / "curves.png")
    print((folder / "curves.png").resolve())


if __name__ == "__main__":
    main()
