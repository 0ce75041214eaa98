"""A plot of each client's classes: python -m pytorch_example.partitions."""

import argparse
import tomllib
from pathlib import Path

from flwr.common.config import flatten_dict

from pytorch_example import task
from pytorch_example.config import Config


def draw_partitions(
    dataset: str, num_partitions: int, alpha: float, min_partition_size: int, seed: int, path: Path
) -> None:
    """Draw each client's number of examples of each class, by Flower Datasets' own plot."""
    import matplotlib

    matplotlib.use("Agg")
    from flwr_datasets.visualization import plot_label_distributions

    figure, _, _ = plot_label_distributions(
        task.split(dataset, num_partitions, alpha, min_partition_size, seed).partitioner,
        label_name="label",
        size_unit="absolute",
        partition_id_axis="x",
        legend=True,
        verbose_labels=True,
        title=f"Examples of each class: {num_partitions} clients, Dirichlet alpha {alpha}",
        figsize=(12, 5),
    )
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        flower = tomllib.load(file)["tool"]["flwr"]
    defaults = flower["app"]["config"]
    clients = flower["federations"]["local-simulation"]["options"]["num-supernodes"]
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("--dataset", default=defaults["dataset"])
    parser.add_argument("--num-partitions", type=int, default=clients)
    parser.add_argument("--dirichlet-alpha", type=float, default=defaults["dirichlet-alpha"])
    parser.add_argument("--min-partition-size", type=int, default=defaults["min-partition-size"])
    parser.add_argument("--seed", type=int, default=defaults["seed"])
    parser.add_argument("--output", type=Path, default=Path("partitions.png"))
    given = parser.parse_args()
    if given.num_partitions < 1:
        parser.error(f"--num-partitions {given.num_partitions}: 1 at least")
    named = {name.replace("_", "-"): value for name, value in vars(given).items()}
    try:
        config = Config.from_run_config(
            flatten_dict(defaults) | {key: named[key] for key in named.keys() & defaults.keys()}
        )
        how = config.dirichlet_alpha, config.min_partition_size, config.seed
        draw_partitions(config.dataset, given.num_partitions, *how, given.output)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(given.output.resolve())


if __name__ == "__main__":
    main()
