"""Write the measured figures into the READMEs: tables from results/*.json, and the plot.

A README marks where: `<!-- begin: NAME -->` … `<!-- end: NAME -->`. What stands between is made
here, from what benchmarks/ measured or pyproject.toml declares, and a test compares the two.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from repository import ROOT, example_folder, example_names


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def taken(measured: dict[str, Any]) -> str:
    """Say where and how a figure was measured, in a line."""
    hardware, packages = measured["hardware"], measured["packages"]
    return (
        f"*Measured on {measured['date']} at commit {measured['commit']} with "
        f"`{measured['command']}`: {hardware['cores']} cores of a {hardware['processor']}, "
        f"{hardware['gpu'] or 'no GPU'}, Python {measured['python']}, "
        f"flwr {packages['flwr']}, torch {packages['torch']}.*"
    )


def settings(example: str) -> str:
    """Return a table of the run-config keys: default, and what changing it means."""
    text = (example_folder(example) / "pyproject.toml").read_text()
    section = text.split("[tool.flwr.app.config]")[1].split("\n[")[0]
    keys = re.findall(r"^([\w.-]+) = (.+?)\s+# (.+)$", section, re.MULTILINE)
    rows = [[f"`{key}`", f"`{value}`", why.replace("|", "\\|")] for key, value, why in keys]
    return table(["key", "default", "what it is, and the trade-off"], rows)


def accuracies(example: str, server_round: int) -> dict[str, list[float]]:
    """Return the accuracies of all seeds after a round, by who measured them."""
    entries = [run["history"][server_round] for run in result(f"{example}-accuracy")["runs"]]
    return {
        "centralized": [e["evaluate_metrics_serverapp"]["accuracy"] for e in entries],
        "global": [e["evaluate_metrics_clientapp"]["eval_acc"] for e in entries],
        "personal": [e["evaluate_metrics_clientapp"]["personal_eval_acc"] for e in entries],
    }


def advanced_pytorch_accuracy() -> str:
    measured = result("advanced-pytorch-accuracy")
    seeds = [run["seed"] for run in measured["runs"]]
    rows = []
    for server_round in (10, 50):
        values = accuracies("advanced-pytorch", server_round)
        central = values["centralized"]
        cells = [f"{mean(central):.3f} ({', '.join(f'{v:.3f}' for v in central)})"]
        cells += [f"{mean(values[name]):.3f}" for name in ("global", "personal")]
        rows.append([str(server_round), *cells])
    rounds = len(measured["runs"][0]["history"]) - 1
    seconds = mean(run["seconds"] for run in measured["runs"])
    header = ["rounds", "centralized accuracy", "clients' data, global", "personal"]
    return (
        f"{table(header, rows)}\n\n"
        f"Means over the seeds {', '.join(map(str, seeds))}. {rounds} rounds took {seconds:.0f} s, "
        f"start-up included. {taken(measured)}"
    )


def advanced_pytorch_speed() -> str:
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
        f"That is {summary['example_over_plain']:.2f} times the faster plain loop, which uses both "
        f"cores less well than two workers do, and {summary['straightforward_over_example']:.1f} "
        f"times as fast as the straightforward app. Of a round, {parts['train']:.2f} s are "
        f"training ({ideal:.2f} s of it the arithmetic itself, spread over two cores) and "
        f"{parts['evaluate']:.2f} s testing; the rest of both is Flower's polling (up to 0.1 s a "
        f"phase), Ray's passing of messages (5 to 8 ms each), and the end of a phase when one "
        f"worker has nothing left to do. The first round takes {start:.0f} s: Ray and the "
        f"workers start. {taken(measured)}"
    )


def examples_table() -> str:
    """Return the front page's table: offline time and accuracy as measured, one example a row."""
    offline = result("offline")["examples"]
    rows = []
    for name in example_names():
        title, teaches, data, model, figure = FRONT_PAGE[name]
        time_taken = f"{offline[name]['seconds']:.0f} s, {offline[name]['accuracy']:.2f} on digits"
        rows.append([f"[{title}](examples/{name})", teaches, data, model, time_taken, figure()])
    header = ["example", "what it teaches", "data", "model", "offline run", "measured"]
    return f"{table(header, rows)}\n\n{taken(result('offline'))}"


def advanced_pytorch_headline() -> str:
    values = {n: mean(accuracies("advanced-pytorch", n)["centralized"]) for n in (10, 50)}
    return f"{values[10]:.3f} after 10 rounds, {values[50]:.3f} after 50"


FRONT_PAGE: dict[str, tuple[str, str, str, str, Callable[[], str]]] = {
    "advanced-pytorch": (
        "advanced-pytorch",
        "stateful clients, custom FedAvg, checkpoints, resume, W&B",
        "Fashion-MNIST, 50 Dirichlet partitions",
        "small CNN",
        advanced_pytorch_headline,
    ),
}


def blocks(page: Path) -> dict[str, Callable[[], str]]:
    """Return what fills the marked places of a page."""
    if page == ROOT / "README.md":
        return {"examples": examples_table}
    example = page.parent.name
    return {"settings": lambda: settings(example)} | {
        "advanced-pytorch": {
            "accuracy": advanced_pytorch_accuracy,
            "speed": advanced_pytorch_speed,
        },
    }.get(example, {})


def pages() -> list[Path]:
    return [ROOT / "README.md", *(example_folder(name) / "README.md" for name in example_names())]


def render(page: Path) -> str:
    """Return a page with all its marked places filled in.

    Raises:
        KeyError: a place is marked that nothing here fills.
    """
    fill = blocks(page)
    return re.sub(
        r"(<!-- begin: ([\w-]+) -->\n).*?(<!-- end: \2 -->)",
        lambda match: f"{match[1]}{fill[match[2]]()}\n{match[3]}",
        page.read_text(),
        flags=re.DOTALL,
    )


def draw_advanced_pytorch(path: Path) -> None:
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
    values = [accuracies("advanced-pytorch", n) for n in rounds]
    for name, label in labels.items():
        axes.plot(rounds, [mean(v[name]) for v in values], label=label)
        low, high = [min(v[name]) for v in values], [max(v[name]) for v in values]
        axes.fill_between(rounds, low, high, alpha=0.15)
    axes.set(xlabel="round", ylabel="accuracy", ylim=(0.6, 0.95))
    axes.set_title("Fashion-MNIST, 50 clients, Dirichlet alpha 1.0: mean and range of 3 seeds")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    for page in pages():
        page.write_text(render(page))
        print(page.relative_to(ROOT))
    draw_advanced_pytorch(ROOT / "examples/advanced-pytorch/_static/accuracy.png")


if __name__ == "__main__":
    main()
