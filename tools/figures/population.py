"""Figures of populations, and the model of a round's cost: docs/scaling.md."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from measured import found, no_gpu_figure, result, table, taken
from repository import ROOT

PAGE = ROOT / "docs" / "scaling.md"
PLOT = "population.png"
GB = 1e9


def typical(run: dict[str, Any]) -> float:
    """Return the seconds of a run's rounds, the median without the first."""
    return statistics.median(run["round_seconds"][1:])


def sizes_block() -> str:
    measured, nodes = result("population-sizes"), result("population-nodes")
    runs = {f"{int(size):,}": run for size, run in measured["runs"].items()}
    runs[f"{nodes['nodes']:,}, a node each"] = nodes
    rows = [
        [
            clients,
            f"{typical(run):.2f}",
            f"{run['round_seconds'][0]:.1f}",
            f"{run['start_seconds']:.1f}",
            f"{run['peak_bytes'] / GB:.2f}",
        ]
        for clients, run in runs.items()
    ]
    header = ["clients", "seconds a round", "the first round", "start, s", "memory, GB"]
    return (
        f"{table(header, rows)}\n\n![Seconds and memory by clients](_static/{PLOT})\n\n"
        f"gpu-scaling on CIFAR-10: {measured['drawn']} clients of {measured['images']} images "
        f"train in each round, {measured['workers']} workers. Decoded images are on disk; start "
        f"is the time to the first round. {taken(measured, nodes)}"
    )


def gpu_block() -> str:
    measured = found("population-gpu")
    if not measured:
        return no_gpu_figure("the same on one GPU")
    rows = [
        [f"{int(size):,}", f"{typical(run):.2f}", f"{run['device_peak_bytes'] / GB:.2f}"]
        for size, run in measured["runs"].items()
    ]
    return f"{table(['clients', 'seconds a round', 'GPU memory, GB'], rows)}\n\n{taken(measured)}"


def parts_block() -> str:
    measured = result("population-parts")
    parts = sorted(measured["parts"].items(), key=lambda part: -part[1])
    left = measured["seconds"] - sum(measured["parts"].values())
    rows = [
        [name, f"{1000 * seconds:.0f}", f"{seconds / measured['seconds']:.0%}"]
        for name, seconds in [*parts, ("all else, messages among it", left)]
    ]
    rows.append(["**the round**", f"**{1000 * measured['seconds']:.0f}**", "100%"])
    ratio = measured["seconds"] / measured["seconds_with_workers"]
    return (
        f"{table(['of a round in one process', 'ms', 'share'], rows)}\n\n"
        f"{measured['drawn']} clients of {measured['images']} images train and as many are tested, "
        f"and the model is tested on all test data. With {measured['workers']} workers the same "
        f"round takes {1000 * measured['seconds_with_workers']:.0f} ms, {ratio:.2f} times as fast. "
        f"{taken(measured)}"
    )


def cost_block() -> str:
    measured = result("population-cost")
    rows = [
        [name, f"{1000 * factor:.2f}"]
        for name, factor in zip(measured["terms"], measured["factors"], strict=True)
    ]
    worst = {
        kind: max(abs(case["error"]) for case in measured[kind]) for kind in ("fitted", "others")
    }
    return (
        f"{table(['milliseconds for each', 'factor'], rows)}\n\n"
        f"Fitted to {len(measured['fitted'])} kinds of rounds, off by up to {worst['fitted']:.0%} "
        f"there, and by up to {worst['others']:.0%} in {len(measured['others'])} others: "
        f"{described(measured['others'])}. {taken(measured)}"
    )


def described(cases: list[dict[str, float]]) -> str:
    """Return cases in words, with the model's error in each."""
    return ", ".join(
        f"{case['drawn']} clients of {case['megabytes']:g} MB on {case['workers']} "
        f"worker{'s' if case['workers'] > 1 else ''} ({case['error']:+.0%})"
        for case in cases
    )


def draw(path: Path) -> None:
    """Draw seconds a round, and memory, by the number of clients."""
    runs = result("population-sizes")["runs"]
    sizes = [int(size) for size in runs]
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, values, label in (
        (left, [typical(run) for run in runs.values()], "seconds a round"),
        (right, [run["peak_bytes"] / GB for run in runs.values()], "memory, GB"),
    ):
        axes.plot(sizes, values, marker="o")
        axes.set(xscale="log", xlabel="clients", ylabel=label, ylim=(0, 1.3 * max(values)))
    figure.suptitle("100 clients drawn: the others cost nothing")
    figure.savefig(path, dpi=110)


BLOCKS = {"sizes": sizes_block, "gpu": gpu_block, "parts": parts_block, "cost": cost_block}
