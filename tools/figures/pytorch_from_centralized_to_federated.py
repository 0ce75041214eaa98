"""Figures of pytorch-from-centralized-to-federated."""

import ast
from pathlib import Path
from statistics import mean
from textwrap import dedent

from matplotlib.figure import Figure
from measured import offline_on_digits, result, table, taken
from repository import ROOT

ACCURACY = "pytorch-from-centralized-to-federated-accuracy"
SPEED = "pytorch-from-centralized-to-federated-speed"
PACKAGE = ROOT / "examples" / "pytorch-from-centralized-to-federated" / "centralized_to_federated"
ADDED = {
    "client_app.py": "what a client does when it is asked: train, test, say who it is",
    "server_app.py": "the rounds: which model to start from, how to test it",
    "partition.py": "which part of the data each client holds",
}
KEEPING = {
    "node.py": "which partition a client's node was given",
    "config.py": "every setting typed and checked, refused by name",
    "keys.py": "what a setting may be",
    "strategy.py": "the server's strategy: FedAvg with momentum",
    "momentum.py": "the step towards the average",
    "rounds.py": "sampling, the rounds, bad and late replies left out",
    "replies.py": "waiting for replies; what is wrong with one, in words",
    "checkpoint.py": "every round saved whole, resumed from where it stopped",
    "outputs.py": "the folder of a run, new or resumed, with its curves",
    "errors.py": "lets Flower show why a run ended",
    "plot.py": "learning curves",
}


def last(name: str) -> list[float]:
    """Return the test accuracy after the last pass, a number for each seed."""
    return [curve[-1] for curve in result(ACCURACY)["runs"][name]]


def below(name: str) -> float:
    """Return by how many points federated training ends below centralised training."""
    network = name.split(", ")[0]
    return 100 * (mean(last(f"{network}, centralised")) - mean(last(name)))


def lines(path: Path) -> int:
    """Count the lines of code of a module, without blank lines, comments and docstrings."""
    text = path.read_text()
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                left_out |= set(range(body[0].lineno, body[0].end_lineno + 1))
    numbered = enumerate(text.splitlines(), start=1)
    return sum(
        1 for i, line in numbered if i not in left_out and line.strip() and line.strip()[0] != "#"
    )


def addition_block() -> str:
    def rows(files: dict[str, str]) -> list[list[str]]:
        return [
            [f"`{PACKAGE.name}/{name}`", what, str(lines(PACKAGE / name))]
            for name, what in files.items()
        ]

    added, keeping = (sum(lines(PACKAGE / n) for n in files) for files in (ADDED, KEEPING))
    total = [[f"**the federation: {len(ADDED)} files**", "", f"**{added}**"]]
    header = ["file", "what it adds", "lines of code"]
    return (
        f"{table(header, rows(ADDED) + total)}\n\n"
        f"Without blank lines, comments and docstrings; counted from the files. `task.py`, the "
        f"project itself, has {lines(PACKAGE / 'task.py')} and stays as it is. Another {keeping} "
        f"lines make a federation that can be relied on; none of them knows what is trained:\n\n"
        f"{table(header, rows(KEEPING))}"
    )


def code_block() -> str:
    """Show the centralised training beside what a client does, both as the files have it."""
    central = function(PACKAGE.parent / "cifar.py", "main").split("parse_args()")[1]
    client = function(PACKAGE / "client_app.py", "train")
    server = function(PACKAGE / "server_app.py", "main")
    return (
        f"The project as it was, `cifar.py`:\n\n```python\n{dedent(central).strip()}\n```\n\n"
        f"The same training as one client's part of a round, `client_app.py`:\n\n"
        f"```python\n{client}\n```\n\nAnd the server, `server_app.py`:\n\n"
        f"```python\n{server}\n```"
    )


def function(path: Path, name: str) -> str:
    """Return the source of a function, its decorators included."""
    text = path.read_text()
    [node] = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def accuracy_block() -> str:
    measured = result(ACCURACY)
    rows = []
    for name, curves in measured["runs"].items():
        network, how = name.split(", ", 1)
        ends = last(name)
        shown = f"{mean(ends):.3f} ({', '.join(f'{v:.3f}' for v in ends)})"
        ten = mean(curve[9] for curve in curves)
        gap = "" if how == "centralised" else f"{-below(name):+.1f}"
        rows.append([f"`{network}`", how, f"{ten:.3f}", shown, gap])
    rows.sort(key=lambda row: (row[0], row[1] != "centralised"))
    header = ["network", "training", "after 10 passes", "after 20 (each seed)", "points"]
    images, sizes = measured["images"], measured["parameters"]
    bought = mean(last("compact, centralised")) - mean(last("tutorial, centralised"))
    return (
        f"{table(header, rows)}\n\n"
        f'Central test accuracy; "points" is against centralised training of the same network. '
        f"A real, balanced subset of CIFAR-10: {images['train']:,} training and "
        f"{images['test']:,} test images, so expect more from the whole; seeds "
        f"{', '.join(map(str, measured['seeds']))}; the same number of passes over the same data "
        f"everywhere, a pass of each client being a round; settings as in `pyproject.toml` and "
        f"`cifar.py`. The `compact` network has {sizes['compact']:,} parameters, the `tutorial`'s "
        f"{sizes['tutorial']:,}; it buys {100 * bought:.1f} points. {taken(measured)}"
    )


def speed_block() -> str:
    measured = result(SPEED)
    rows = [
        [f"`{name}`", f"{m['loader']:,.0f}", f"{m['tensors']:,.0f}", f"{m['ratio']:.2f}"]
        for name, m in measured["networks"].items()
    ]
    header = ["training, images a second", "DataLoader, each sample", "this example", "times"]
    return (
        f"{table(header, rows)}\n\nOne thread, batches of {measured['batch']}, the same network "
        f"and images in turns. {taken(measured)}"
    )


def offline() -> str:
    return offline_on_digits("pytorch-from-centralized-to-federated")


def headline() -> str:
    federated, central = last("compact, IID, 2 clients"), last("compact, centralised")
    return f"{mean(federated):.3f} federated, {mean(central):.3f} centralised"


def draw_accuracy(path: Path) -> None:
    """Draw the test accuracy over the passes: mean over seeds, with the range between them."""
    measured = result(ACCURACY)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, curves in measured["runs"].items():
        network, how = name.split(", ", 1)
        if network != "compact":
            continue
        values = list(zip(*curves, strict=True))
        passes = range(1, len(values) + 1)
        style = {"color": "black"} if how == "centralised" else {}
        [line] = axes.plot(passes, [mean(v) for v in values], label=how, **style)
        low, high = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(passes, low, high, alpha=0.12, color=line.get_color())
    axes.set(xlabel="passes over the training data", ylabel="accuracy")
    axes.set_title("CIFAR-10 (subset), compact network: mean and range of 3 seeds")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


TEACHES = "the few lines that federate a plain PyTorch project"
DATA = "CIFAR-10, the same for all, IID or Dirichlet"
MODEL = "small CNN"
BLOCKS = {
    "code": code_block,
    "addition": addition_block,
    "accuracy": accuracy_block,
    "speed": speed_block,
}
PLOTS = {"accuracy": draw_accuracy}
