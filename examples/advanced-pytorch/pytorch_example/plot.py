"""Plots: learning curves of a run, and how the classes are spread over the clients."""

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

CURVES = {  # results.json: part, metric, label
    "accuracy": [
        ("evaluate_metrics_serverapp", "accuracy", "global model, central test set"),
        ("evaluate_metrics_clientapp", "eval_acc", "global head, clients' data"),
        ("evaluate_metrics_clientapp", "personal_eval_acc", "personal heads, clients' data"),
    ],
    "loss": [
        ("evaluate_metrics_serverapp", "loss", "global model, central test set"),
        ("evaluate_metrics_clientapp", "eval_loss", "global head, clients' data"),
        ("evaluate_metrics_clientapp", "personal_eval_loss", "personal heads, clients' data"),
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


def draw_partitions(
    dataset: str, num_partitions: int, alpha: float, min_partition_size: int, seed: int, path: Path
) -> None:
    """Draw how many examples of each class each client holds, with Flower Datasets' own plot."""
    import matplotlib

    matplotlib.use("Agg")
    from flwr_datasets.visualization import plot_label_distributions

    from pytorch_example.task import load_partitioner

    figure, _, _ = plot_label_distributions(
        load_partitioner(dataset, num_partitions, alpha, min_partition_size, seed),
        label_name="label",
        size_unit="absolute",
        partition_id_axis="x",
        legend=True,
        verbose_labels=True,
        title=f"Examples of each class: {num_partitions} clients, Dirichlet alpha {alpha}",
        figsize=(12, 5),
    )
    figure.savefig(path, dpi=120, bbox_inches="tight")


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
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        flower = tomllib.load(file)["tool"]["flwr"]
    defaults = flower["app"]["config"]
    clients = flower["federations"]["local-simulation"]["options"]["num-supernodes"]
    parser = argparse.ArgumentParser(prog="python -m pytorch_example.plot", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    curves = commands.add_parser("curves", help="accuracy and loss of a run")
    curves.add_argument("folder", type=Path, help="outputs/<date>/<time>")
    partitions = commands.add_parser("partitions", help="classes and examples of each client")
    partitions.add_argument("--dataset", default=defaults["dataset"])
    partitions.add_argument("--num-partitions", type=int, default=clients)
    partitions.add_argument("--alpha", type=float, default=defaults["dirichlet-alpha"])
    partitions.add_argument(
        "--min-partition-size", type=int, default=defaults["min-partition-size"]
    )
    partitions.add_argument("--seed", type=int, default=defaults["seed"])
    partitions.add_argument("--output", type=Path, default=Path("partitions.png"))
    arguments = parser.parse_args()
    if arguments.command == "curves":
        path = arguments.folder / "curves.png"
        draw_curves(history_in(arguments.folder), path)
    else:
        path = arguments.output
        draw_partitions(
            arguments.dataset,
            arguments.num_partitions,
            arguments.alpha,
            arguments.min_partition_size,
            arguments.seed,
            path,
        )
    print(path.resolve())


if __name__ == "__main__":
    main()
