"""Figures of pytorch-from-centralized-to-federated."""

import ast
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from measured import offline_on_digits, result, table, taken
from repository import ROOT

ACCURACY = "pytorch-from-centralized-to-federated-accuracy"
SPEED = "pytorch-from-centralized-to-federated-speed"
PACKAGE = ROOT / "examples" / "pytorch-from-centralized-to-federated" / "centralized_to_federated"
ADDED = {
    "client_app.py": "what a client does when it is asked: train, test, say who it is",
    "server_app.py": "the federation: what is trained, by which strategy, how it is tested",
    "config.py": "the settings, typed and checked",
}
PARTS = ("load_partition", "split")  # functions of task.py


def last(name: str) -> list[float]:
    """Return the test accuracy after the last pass, a number for each seed."""
    return [curve[-1] for curve in result(ACCURACY)["runs"][name]]


def below(name: str) -> float:
    """Return by how many points federated training ends below centralised training."""
    network = name.split(", ")[0]
    return 100 * (mean(last(f"{network}, centralised")) - mean(last(name)))


def lines(text: str) -> int:
    """Count the lines of code of a text, without blank lines, comments and docstrings."""
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
    counted = {name: lines((PACKAGE / name).read_text()) for name in ADDED}
    parts = sum(lines(function(PACKAGE / "task.py", name)) for name in PARTS)
    rows = [[f"`{PACKAGE.name}/{n}`", ADDED[n], str(count)] for n, count in counted.items()]
    rows += [[f"`{PACKAGE.name}/task.py`, its last two", "whose part is which", str(parts)]]
    rows += [["**the federation**", "", f"**{sum(counted.values()) + parts}**"]]
    project = lines((PACKAGE / "task.py").read_text()) - parts
    return (
        f"{table(['file', 'what it adds', 'lines of code'], rows)}\n\n"
        f"Without blank lines, comments and docstrings; counted from the files. The project itself "
        f"has {project} in `task.py`, and stays as it is. What makes the federation one that can "
        f"be relied on, whatever is trained, is in `kit/`, the same in every example."
    )


def code_block() -> str:
    """Show the centralised training beside what a client does, both as the files have it."""
    central = function(PACKAGE.parent / "cifar.py", "centralised")
    client = function(PACKAGE / "client_app.py", "train")
    server = function(PACKAGE / "server_app.py", "main")
    return (
        f"The project as it was, `cifar.py`:\n\n```python\n{central}\n```\n\n"
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
