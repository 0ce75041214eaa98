"""Figures of advanced-pytorch."""

from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.figure import Figure
from measured import offline_on_digits, result, table, taken

from figures.round import draw_round


def accuracies(server_round: int) -> dict[str, list[float]]:
    """Return the accuracies of all seeds after a round, by who measured them."""
    entries = [run["history"][server_round] for run in result("advanced-pytorch-accuracy")["runs"]]
    return {
        "centralized": [e["evaluate_metrics_serverapp"]["accuracy"] for e in entries],
        "global": [e["evaluate_metrics_clientapp"]["eval_acc"] for e in entries],
        "personal": [e["evaluate_metrics_clientapp"]["personal_eval_acc"] for e in entries],
    }


def accuracy_block() -> str:
    measured = result("advanced-pytorch-accuracy")
    seeds = [run["seed"] for run in measured["runs"]]
    rows = []
    for server_round in (10, 50):
        values = accuracies(server_round)
        central = values["centralized"]
        cells = [f"{mean(central):.3f} ({', '.join(f'{v:.3f}' for v in central)})"]
        cells += [f"{mean(values[name]):.3f}" for name in ("global", "personal")]
        rows.append([str(server_round), *cells])
    rounds = len(measured["runs"][0]["history"]) - 1
    seconds = mean(run["seconds"] for run in measured["runs"])
    header = ["rounds", "central accuracy", "clients' data, global", "personal"]
    return (
        f"{table(header, rows)}\n\n"
        f"Means over the seeds {', '.join(map(str, seeds))}. {rounds} rounds took {seconds:.0f} s, "
        f"start-up included. {taken(measured)}"
    )


def speed_block() -> str:
    measured = result("advanced-pytorch-speed")
    summary, runs = measured["summary"], measured["runs"]
    seconds = summary["seconds_a_round"]
    names = {
        "plain, 1 thread": "plain PyTorch loop without Flower, 1 thread",
        "plain, 2 threads": "plain PyTorch loop without Flower, 2 threads",
        "example": "**this example**, 2 workers of 1 thread",
        "straightforward": "straightforward Flower app: PIL, transforms and DataLoader each round",
    }
    rows = []
    for name, text in names.items():
        each = ", ".join(f"{mean(run['round_seconds'][1:]):.2f}" for run in runs[name])
        rows.append([text, f"{seconds[name]:.2f} ({each})"])
    parts = {
        name: mean(run["parts"][name] for run in runs["example"])
        for name in ("train", "evaluate", "central and saving")
    }
    ideal = mean(run["parts"]["train"] for run in runs["plain, 1 thread"]) / 2
    start = mean(run["round_seconds"][0] for run in runs["example"])
    return (
        f"{table(['the same work', 'seconds a round: median (each run)'], rows)}\n\n"
        f"That is {summary['example_over_plain']:.2f} times the faster plain loop, and "
        f"{summary['straightforward_over_example']:.1f} times as fast as the straightforward "
        f"app.\n\n"
        f"- Of a round, {parts['train']:.2f} s are training and {parts['evaluate']:.2f} s testing. "
        f"Half of what the loop of 1 thread trains for is {ideal:.2f} s.\n"
        f"- The rest is Flower's polling (up to 0.1 s a phase), Ray's messages, and the end of a "
        f"phase when one worker has nothing left to do.\n"
        f"- The first round takes {start:.0f} s: Ray and the workers start.\n\n"
        f"{taken(measured)}"
    )


def privacy_block() -> str:
    measured = result("advanced-pytorch-privacy")
    grouped = defaultdict(list)
    for run in measured["runs"]:
        config = run["config"]
        clients = int(measured["nodes"] * config["fraction-train"])
        setting = clients, config["dp.noise-multiplier"], config["dp.clipping-norm"]
        grouped[setting].append(run["accuracies"])
    rounds = max(len(run["accuracies"]) for run in measured["runs"]) - 1
    names = {0: "0, privacy off", 1e-9: "next to 0, clipping alone"}
    rows = []
    for (clients, noise, norm), runs in grouped.items():
        ended = [len(run) - 1 for run in runs if len(run) - 1 < rounds]
        if ended:
            of = f"{len(ended)} of {len(runs)} runs" if len(ended) < len(runs) else "all runs"
            reached = f"{of} ended early, after round {', '.join(map(str, ended))}"
        else:
            last = [run[-1] for run in runs]
            reached = f"{mean(last):.3f} ({', '.join(f'{value:.3f}' for value in last)})"
        cells = [names.get(noise, f"{noise}"), f"{norm}" if noise else ""]
        rows.append([f"{clients} of {measured['nodes']}", *cells, reached])
    header = ["clients a round", "`dp.noise-multiplier`", "`dp.clipping-norm`"]
    header.append(f"accuracy after {rounds} rounds")
    seeds = sorted({run["config"]["seed"] for run in measured["runs"]})
    early = any(len(run["accuracies"]) - 1 < rounds for run in measured["runs"])
    why = (
        "A run ends early where so much noise makes the clients' training diverge that fewer than "
        "`min-replies` are left. "
    )
    return (
        f"{table(header, rows)}\n\n"
        f"Means over the seeds {', '.join(map(str, seeds))}, on the central test set. "
        f"{why if early else ''}{taken(measured)}"
    )


def offline() -> str:
    return offline_on_digits("advanced-pytorch")


def headline() -> str:
    values = {n: mean(accuracies(n)["centralized"]) for n in (10, 50)}
    return f"accuracy {values[10]:.3f} after 10 rounds, {values[50]:.3f} after 50"


def data() -> str:
    """Say on which data the headline was measured."""
    return f"Fashion-MNIST, {result('advanced-pytorch-accuracy')['nodes']} clients"


def reached_block() -> str:
    """Say in a sentence what the run reaches, and what personal heads add."""
    values = {name: mean(found) for name, found in accuracies(50).items()}
    return (
        f"After 50 rounds on Fashion-MNIST the central accuracy is {values['centralized']:.3f}. On "
        f"the clients' own data the global head has {values['global']:.3f}, their personal heads "
        f"{values['personal']:.3f}."
    )


def draw_accuracy(path: Path) -> None:
    """Draw the accuracy over the rounds: mean over seeds, with the range between them."""
    runs = result("advanced-pytorch-accuracy")["runs"]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    rounds = range(1, len(runs[0]["history"]))
    labels = {
        "centralized": "global model, central test set",
        "global": "global head, clients' data",
        "personal": "personal heads, clients' data",
    }
    values = [accuracies(n) for n in rounds]
    for name, label in labels.items():
        axes.plot(rounds, [mean(v[name]) for v in values], label=label)
        low, high = [min(v[name]) for v in values], [max(v[name]) for v in values]
        axes.fill_between(rounds, low, high, alpha=0.15)
    axes.set(xlabel="round", ylabel="accuracy", ylim=(0.6, 0.95))
    axes.set_title("Fashion-MNIST, 50 clients, Dirichlet alpha 1.0: mean and range of 3 seeds")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def draw_partitions(path: Path) -> None:
    """Draw how many images of each class each client holds."""
    measured = result("advanced-pytorch-partitions")
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots()
    images = np.array(measured["images"]).T  # by class, then by client
    below = images.cumsum(0) - images
    for name, counts, bottom in zip(measured["classes"], images, below, strict=True):
        axes.bar(range(len(counts)), counts, bottom=bottom, label=name)
    axes.set(xlabel="client", ylabel="images", xlim=(-1, images.shape[1]))
    alpha = measured["config"]["dirichlet-alpha"]
    axes.set_title(f"Images of each class: {images.shape[1]} clients, Dirichlet alpha {alpha}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


ADDS = "clients with a state, a strategy of one's own, resume, W&B, differential privacy"
MODEL = "a small CNN"
SETTINGS = (
    *("dataset", "dirichlet-alpha", "num-server-rounds", "fraction-train", "local-epochs"),
    *("learning-rate", "personal-head", "server-momentum", "dp.noise-multiplier"),
)
BLOCKS = {"reached": reached_block}
RESULTS = {"accuracy": accuracy_block, "speed": speed_block, "privacy": privacy_block}
PLOTS = {
    "accuracy.png": draw_accuracy,
    "partitions.png": draw_partitions,
    "round.svg": draw_round,
}
