"""Figures of vit-finetune."""

from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from measured import found, no_gpu_figure, offline_on_digits, result, table, taken

CLOSED_FORM = "vit-finetune-closed-form"
NAMES = {
    "iid": "IID",
    "iid, plain FedAvg": "IID, plain FedAvg",
    "iid, closed form": "IID, closed-form start",
    "dirichlet": "Dirichlet 0.3",
    "dirichlet, plain FedAvg": "Dirichlet 0.3, plain FedAvg",
    "dirichlet, closed form": "Dirichlet 0.3, closed-form start",
}


def last(run: dict[str, Any], part: str = "evaluate_metrics_serverapp") -> dict[str, float]:
    return run["history"][-1][part]


def accuracies(name: str) -> list[float]:
    """Return the central test accuracy after the last round, a number for each seed."""
    file = CLOSED_FORM if "closed form" in name else "vit-finetune-accuracy"
    return [last(run)["accuracy"] for run in result(file)["runs"][name]]


def centralised() -> list[float]:
    """Return the test accuracies of the best centralised linear probe."""
    found = result("vit-finetune-accuracy")["centralised"]
    return max((probe["accuracy"] for probe in found.values()), key=mean)


def below(name: str) -> float:
    """Return by how many points federated training stays below the better probe."""
    return 100 * (mean(centralised()) - mean(accuracies(name)))


def several(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})"


def listed(settings: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in settings.items())


def accuracy_block() -> str:
    measured = result("vit-finetune-accuracy")
    probes, tuning, images = (measured[k] for k in ("centralised", "tuning", "images"))
    rows = [
        [
            f"centralised linear probe, {name} ({listed(found['settings'])})",
            several(found["accuracy"]),
        ]
        for name, found in probes.items()
    ]
    for name, text in NAMES.items():
        shown = text if ", " in name else f"**{text}, this example's settings**"
        rows.append([f"federated, {shown}", several(accuracies(name))])
    held_out = measured["runs"]["iid, held out"]
    own = [last(run, "evaluate_metrics_clientapp")["eval_acc"] for run in held_out]
    validation = max(found["validation"] for found in probes.values())
    clients = sorted(c["eval_acc"] for run in held_out for c in run["history"][-1]["clients"])
    lost = mean(accuracies("iid, plain FedAvg")) - mean(accuracies("dirichlet, plain FedAvg"))
    regained = mean(accuracies("dirichlet")) - mean(accuracies("dirichlet, plain FedAvg"))
    closed = mean(accuracies("dirichlet, closed form"))
    solved = closed - mean(accuracies("dirichlet, plain FedAvg"))
    shrinkage = max(tuning["shrinkage"], key=tuning["shrinkage"].get)
    return (
        f"{table(['training of the head', 'test accuracy: mean (each seed)'], rows)}\n\n"
        f"{images['training']} training and {images['test']} test images; 20 clients, 20 rounds, "
        f"half of the clients each round; seeds {', '.join(map(str, measured['seeds']))}; "
        f"`test-fraction=0`, so that both sides see all images.\n\n"
        f"- **Tuning**: both sides in the same way, by 3-fold cross-validation on the training "
        f"images. The probe over {count(measured['grids']['probe'])} combinations, the federation "
        f"over {count(measured['grids']['federated'])} of "
        f"{words(measured['grids']['federated'])}; the best were {listed(tuning['best'])}. In "
        f"cross-validation the two sides are {100 * (validation - tuning['validation']):+.1f} "
        f"points apart.\n"
        f"- **Plain FedAvg** is `label-smoothing=0 server-momentum=0`. A Dirichlet split costs it "
        f"{100 * lost:.1f} points.\n"
        f"- **Label smoothing and server momentum** bring back {100 * regained:.1f}. That leaves "
        f"the IID split {below('iid'):.1f} points below the better probe, the Dirichlet split "
        f"{below('dirichlet'):.1f}.\n"
        f"- **The closed form** is `head-start='closed-form' learning-rate=0.1`, with shrinkage "
        f"{shrinkage} by cross-validation. It brings back {100 * solved:.1f} on the Dirichlet "
        f"split, from the first round, and ends {below('iid, closed form'):.2f} below the probe "
        f"on the IID and {below('dirichlet, closed form'):.2f} on the Dirichlet split.\n"
        f"- **The default `test-fraction=0.1`**: clients train on a tenth less, and the global "
        f"head scores {several([last(run)['accuracy'] for run in held_out])}. On the clients' own "
        f"held-out images it scores {mean(own):.3f}, half of the clients between "
        f"{clients[len(clients) // 4]:.2f} and {clients[3 * len(clients) // 4]:.2f} (six images "
        f"each, so take that lightly).\n\n"
        f"{taken(measured, result(CLOSED_FORM))}"
    )


def count(grid: dict[str, list]) -> int:
    total = 1
    for values in grid.values():
        total *= len(values)
    return total


def words(grid: dict[str, list]) -> str:
    names = [name.replace("_", " ") for name in grid]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def speed_block() -> str:
    measured = result("vit-finetune-speed")
    models, summary = measured["models"], measured["summary"]

    def row(text: str, value: Any) -> list[str]:
        return [text, *(value(models[name], summary[name]) for name in models)]

    def mebibytes(size: int) -> str:
        return f"{size / 2**20:.0f} MiB"

    rows = [
        row("original way, a round", lambda m, s: f"{s['original_round']:.0f} s"),
        row(
            "cached, first round (start-up, features)",
            lambda m, s: f"{s['first_cached_round']:.0f} s",
        ),
        row("**cached, later rounds**", lambda m, s: f"**{s['later_cached_round']:.2f} s**"),
        row("original over later", lambda m, s: f"{s['original_over_later']:.0f} times"),
        row("the whole run, 20 rounds", lambda m, s: f"{s['whole_run']:.0f} s"),
        row(
            "one forward pass over its images, bare loop",
            lambda m, s: f"{m['one_pass']['seconds']:.0f} s for {m['one_pass']['images']}",
        ),
        row("whole run over one pass", lambda m, s: f"{s['whole_run_over_one_pass']:.2f}"),
        row(
            "one client's head training over a bare loop", lambda m, s: f"{s['head_over_bare']:.2f}"
        ),
        row(
            "bytes to and from a client, a round",
            lambda m, s: " / ".join(
                f"{m['cached']['traffic'][f'{way}_bytes']:,}" for way in ("down", "up")
            ),
        ),
        row(
            "peak memory of a client, original way",
            lambda m, s: mebibytes(m["original"]["peak_client_bytes"]),
        ),
        row(
            "the same, extracting features",
            lambda m, s: mebibytes(m["cached"]["peak_client_bytes"]),
        ),
        row(
            "the same, features cached before",
            lambda m, s: mebibytes(m["warm"]["peak_client_bytes"]),
        ),
    ]
    start = mean(model["warm"]["seconds"] for model in models.values())
    precision = " and ".join(sorted({model["precision"] for model in models.values()}))
    return (
        f"{table(['', *(f'`{name}`' for name in models)], rows)}\n\n"
        f"Ten clients a round, one local epoch, the same images and clients in every row. The "
        f"original way decodes, crops and computes in float32, features are computed in "
        f"{precision}; memory is PSS. A run of five rounds that finds all features in the cache "
        f"takes {start:.0f} s: Ray, and the imports of PyTorch in three processes.\n\n"
        f"{taken(measured)}"
    )


def original_block() -> str:
    """Return a table of the original way's accuracy beside the cached one's."""
    measured = result("vit-finetune-original")
    texts = {
        "original": "original way: random crops, full forward pass each epoch",
        "cached": "cached features of central crops",
    }
    rows = [
        [text, f"{last(run)['accuracy']:.3f}", f"{best(run):.3f}", f"{run['seconds']:.0f} s"]
        for text, run in ((text, measured["runs"][name]) for name, text in texts.items())
    ]
    header = ["`vit_tiny`, IID, 20 rounds of one local epoch", "accuracy", "best round", "time"]
    seeds = "".join(f"Seed {seed}. " for seed in measured.get("seeds", []))
    return f"{table(header, rows)}\n\n{seeds}{taken(measured)}"


def best(run: dict[str, Any]) -> float:
    return max(entry["evaluate_metrics_serverapp"]["accuracy"] for entry in run["history"])


def gpu_block() -> str:
    measured = found("vit-finetune-gpu")
    if not measured:
        return no_gpu_figure("images a second, seconds of a step and device memory")
    rows = [
        [
            f"`{line['model']}`, {line['precision']}, batch {line['batch']}",
            f"{line['images_a_second']:.0f} images/s",
            f"{line['peak_bytes'] / 2**20:.0f} MiB",
        ]
        for line in measured["feature_pass"]
    ]
    rows += [
        [
            f"`{line['model']}`, original step, float32, batch 32",
            f"{1000 * line['seconds']:.1f} ms",
            f"{line['peak_bytes'] / 2**20:.0f} MiB",
        ]
        for line in measured["original_step"]
    ]
    rows += [
        [
            f"head training on cached features, width {line['width']}",
            f"{1000 * line['seconds']:.1f} ms",
            f"{line['peak_bytes'] / 2**20:.0f} MiB",
        ]
        for line in measured["head_training"]
    ]
    return f"{table(['on the GPU', 'speed', 'peak device memory'], rows)}\n\n{taken(measured)}"


def offline() -> str:
    return offline_on_digits("vit-finetune")


def headline() -> str:
    epochs = result("vit-finetune-accuracy")["tuning"]["best"]["local_epochs"]
    return (
        f"accuracy {mean(accuracies('iid')):.3f} with {epochs} local epochs a round, "
        f"{mean(centralised()):.3f} centralised; a round of 1 local epoch takes "
        f"{seconds('vit_tiny')} s"
    )


def data() -> str:
    """Say on which data the headline was measured."""
    images = result("vit-finetune-accuracy")["images"]["training"]
    return f"a subset of Oxford Flowers-102, {images:,} images"


def seconds(model: str) -> float:
    """Return the seconds of a round of one local epoch that finds its features in the cache."""
    return result("vit-finetune-speed")["summary"][model]["later_cached_round"]


def reached_block() -> str:
    """Say in a sentence what federated training reaches, and how long a round takes."""
    return (
        f"ViT-Ti/16 on a subset of Oxford Flowers-102: accuracy {mean(accuracies('iid')):.3f}, "
        f"{mean(centralised()):.3f} by a centralised head. A round of one local epoch takes "
        f"{seconds('vit_tiny')} s, with ViT-B/16 {seconds('vit_b_16')} s."
    )


def draw_accuracy(path: Path) -> None:
    """Draw the central accuracy over the rounds: mean over seeds, with the range between them."""
    measured = result("vit-finetune-accuracy")
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for colour, split in (("C0", "iid"), ("C1", "dirichlet")):
        for name, style in ((split, "-"), (f"{split}, plain FedAvg", "--")):
            curves = [
                [entry["evaluate_metrics_serverapp"]["accuracy"] for entry in run["history"][1:]]
                for run in measured["runs"][name]
            ]
            rounds = range(1, len(curves[0]) + 1)
            values = list(zip(*curves, strict=True))
            axes.plot(rounds, [mean(v) for v in values], style, color=colour, label=NAMES[name])
            low, high = [min(v) for v in values], [max(v) for v in values]
            axes.fill_between(rounds, low, high, alpha=0.12, color=colour)
    axes.axhline(mean(centralised()), color="black", linewidth=1, label="centralised linear probe")
    axes.set(xlabel="round", ylabel="accuracy", ylim=(0.4, 0.9))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title("Oxford Flowers-102 (subset), vit_tiny, 20 clients: mean and range of 3 seeds")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


ADDS = "a large pretrained model of which only the head is trained, any backbone, a cache"
MODEL = "ViT-Ti/16"
SETTINGS = (
    *("dataset", "partitioning", "model.name", "model.weights", "model.normalization"),
    *("num-server-rounds", "fraction-train", "local-epochs", "learning-rate"),
)
BLOCKS = {"reached": reached_block}
RESULTS = {
    "accuracy": accuracy_block,
    "speed": speed_block,
    "original": original_block,
    "gpu": gpu_block,
}
PLOTS = {"accuracy.png": draw_accuracy}
