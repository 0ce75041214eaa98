"""Figures of flowertune-llm."""

from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from matplotlib.figure import Figure
from measured import (
    found,
    no_gpu_figure,
    offline_seconds,
    processor,
    result,
    table,
    taken,
)

ACCURACY, SPEED, GPU = "flowertune-llm-accuracy", "flowertune-llm-speed", "flowertune-llm-gpu"
PROFILE, BYTES = "flowertune-llm-profile", "flowertune-llm-bytes"
WORTH = "flowertune-llm-worth"
RELEASE_NOTES = "https://nvflare.readthedocs.io/en/2.8.0/release_notes/flare_280.html"
# Source: the models' configs on the Hub: layers, width, rank of the default adapter.
OPEN_LLAMA = {"OpenLLaMA 3B v2": (26, 3200, 32), "OpenLLaMA 7B v2": (32, 4096, 32)}


def ends(name: str) -> list[float]:
    """Return the held-out loss at the end, a number for each seed."""
    return [points[-1][1] for points in result(ACCURACY)["runs"][name]]


def hardest() -> str:
    """Return the name of the centralised training that ends lowest."""
    runs = result(ACCURACY)["runs"]
    return min(
        (name for name in runs if name.startswith("centralised")), key=lambda n: mean(ends(n))
    )


def above(name: str) -> float:
    """Return by how many per cent a run ends above the best centralised training."""
    return 100 * (mean(ends(name)) / mean(ends(hardest())) - 1)


def accuracy_block() -> str:
    measured = result(ACCURACY)
    rows = []
    for name, curves in measured["runs"].items():
        shown = ", ".join(f"{value:.3f}" for value in ends(name))
        gap = "" if name == hardest() else f"{above(name):+.1f} %"
        before = mean(points[0][1] for points in curves)
        rows.append([name, f"{before:.3f}", f"{mean(ends(name)):.3f} ({shown})", gap])
    header = ["training", "before", "after (each seed)", "against the best centralised"]
    steps = measured["rounds"] * measured["steps"]
    return (
        f"{table(header, rows)}\n\n"
        f"Loss in nats per token of held-out answers, SmolLM2-135M on the documentation of "
        f"Python's standard library; seeds {', '.join(map(str, measured['seeds']))}; {steps} "
        f"steps everywhere. Federated: IID, 2 of {measured['clients']} clients a round, "
        f"{measured['steps']} steps of {measured['batch']} examples each, changes in the dtype "
        f"named; centralised: all clients' data, the batch of one client, or of both together. "
        f"{taken(measured)}"
    )


def worth_block() -> str:
    """Return a table of how often each model knows the right one of four answers."""
    if not (measured := found(WORTH)):
        return (
            "No figure has been taken yet; `python benchmarks/flowertune_llm_worth.py` takes them."
        )
    before = known(measured, "before")
    rows = []
    for kind, asked in measured["models"].items():
        shown = ", ".join(f"{100 * mean(seed['acc']):.1f}" for seed in asked)
        right = known(measured, kind)
        gain = [after - first for after, first in zip(right, before, strict=True)]
        cells = [kind, f"{mean(seed['loss'] for seed in asked):.3f}", f"{percent(right)} ({shown})"]
        rows.append([*cells, percent(gain, "+") if any(gain) else ""])
    header = ["SmolLM2-135M", "held-out loss", "right answers, % (each seed)", "more than before"]
    return (
        f"{table(header, rows)}\n\n± one standard error; {len(before)} questions in all, on "
        f"{measured['held_out']} rows for each of the seeds "
        f"{', '.join(map(str, measured['seeds']))} that no client has; 25 % is chance. Federated: "
        f"{measured['rounds']} rounds, 2 of 20 clients, {measured['steps']} steps each; "
        f"centralised: as many steps on the examples of both. Merged by `export.py`, asked by "
        f"{measured['lm_eval']} in {measured['dtype']}. {taken(measured)}"
    )


def known(measured: dict[str, Any], kind: str) -> list[float]:
    """Return 1 or 0 for each question of each seed: whether a model knows the answer."""
    return [value for seed in measured["models"][kind] for value in seed["acc"]]


def percent(values: list[float], sign: str = "") -> str:
    error = stdev(values) / len(values) ** 0.5
    return f"{100 * mean(values):{sign}.1f} ± {100 * error:.1f}"


def traffic_block() -> str:
    rows = []
    for name, (layers, width, rank) in OPEN_LLAMA.items():
        values = layers * 2 * 2 * width * rank
        sizes = [f"{values * size / 1e6:.1f} MB" for size in (4, 2)]
        rows.append([f"{name}, r = {rank}", f"{values:,}", *sizes, "arithmetic"])
    sent = result(ACCURACY)["sent_bytes"]
    sizes = [f"{sent[dtype] / 1e6:.1f} MB" for dtype in ("float32", "bfloat16")]
    values = sent["float32"] // 4
    rows.append(["SmolLM2-135M, r = 16", f"~{values:,}", *sizes, "measured"])
    return table(["adapter", "values", "float32", "bfloat16", ""], rows)


def bytes_block() -> str:
    measured = result(BYTES)
    base = last("float32")
    rows = []
    for name, curves in measured["runs"].items():
        loss, sent = last(name)
        each = ", ".join(f"{points[-1]['loss']:.3f}" for points in curves)
        rows.append(
            [
                *(name, str(measured["rounds"][name]), f"{sent / 1e6:.2f} MB"),
                *(f"{sent / base[1]:.1%}", f"{loss:.3f} ({each})", f"{loss / base[0] - 1:+.1%}"),
            ]
        )
    header = [
        "way",
        "rounds",
        "to and from a site",
        "of float32's",
        "loss (each seed)",
        "against it",
    ]
    before = mean(points[0]["loss"] for points in measured["runs"]["float32"])
    return (
        f"{table(header, rows)}\n\n"
        f"{measured['sites']} sites, all in every round, {measured['steps']} local steps each, "
        f"whatever the rounds; before training the loss is {before:.3f}. {taken(measured)}"
    )


def last(way: str) -> tuple[float, float]:
    """Return the loss at the end, the mean of the seeds, and the bytes to and from a site."""
    curves = result(BYTES)["runs"][way]
    return mean(p[-1]["loss"] for p in curves), mean(p[-1]["bytes"] for p in curves)


def draw_bytes(path: Path) -> None:
    """Draw the held-out loss over the bytes: mean over seeds after each round."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curves in result(BYTES)["runs"].items():
        rounds = list(zip(*curves, strict=True))[1:]
        sent = [mean(p["bytes"] for p in points) / 1e6 for points in rounds]
        loss = [mean(p["loss"] for p in points) for points in rounds]
        style = {"linestyle": "--", "marker": "s"} if "DiLoCo" in name else {"marker": "o"}
        [line] = axes.plot(sent, loss, label=name, markersize=4, **style)
        ends = [p["loss"] for p in rounds[-1]]
        axes.vlines(sent[-1], min(ends), max(ends), color=line.get_color(), alpha=0.5)
    axes.set(xscale="log", xlabel="MB to and from a site", ylabel="held-out loss (nats per token)")
    axes.set_title("The same steps, fewer bytes: mean of 3 seeds, range at the end")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def speed_block() -> str:
    measured = result(SPEED)
    rows = [
        [name, f"{m['tokens_a_second']:,.0f}", f"{m['peak_bytes'] / 2**20:,.0f} MiB"]
        for name, m in measured["memory"].items()
    ]
    loop, federated, tokens = (
        [value for repeat in measured["speed"] for value in repeat[name]]
        for name in ("seconds", "federated_seconds", "tokens")
    )
    ratio, rate = median(federated) / median(loop), mean(tokens) / median(federated)
    imports = mean(m["imports"] for m in measured["memory"].values()) / 2**20
    header = ["SmolLM2-135M, one thread", "tokens a second", "peak of the process"]
    return (
        f"{table(header, rows)}\n\nBatches of {measured['batch']} times 256 tokens; the imports "
        f"alone take {imports:,.0f} MiB. A client's whole round through Flower, on short rows, "
        f"takes {ratio:.2f} times the same steps in a bare loop ({rate:.0f} tokens a second, "
        f"once its worker has started). {taken(measured)}"
    )


def layerwise_block() -> str:
    """Return tables of memory and time of averaging whole models, and the parts of the time."""
    memory, published, whole = (
        result(f"flowertune-llm-layerwise-{part}") for part in ("memory", "published", "70b")
    )
    rows = [layerwise_row("2 GB", row, memory) for row in memory["rows"]]
    rows += [layerwise_row("5 GB", row, published) for row in published["rows"]]
    rows.append(layerwise_row("141 GB, as Llama-3.1-70B", whole["row"], whole))
    header = ["model", "clients", "mode", "server's peak", "of it its own, above idle"]
    header += ["a client's peak", "rate"]
    others = ", ".join(f"{gb:g}" for gb in published["published_gigabytes"].values())
    row = whole["row"]
    cpu, copies = row["cpu_seconds"], whole["copy_mb_a_second"]
    return (
        f"{table(header, rows)}\n\n"
        f"- **Memory** is that of the largest process of its kind, in simulation. What is not its "
        f"own is Ray's memory for messages, mapped into all of its processes.\n"
        f"- **The rate** counts all clients' bytes. No disk and no network is in it: weights are "
        f"made in memory, other ones for each client; the start of each averaged slice is checked, "
        f"then the slice is discarded.\n"
        f"- **The {row['round_seconds']:.0f} s of the model of 141 GB** are "
        f"{cpu['server app']:.0f} s of one core in the server (adding up, rounding), "
        f"{cpu['client app']:.0f} s in the clients (making weights, copying them into Ray's "
        f"memory) and {cpu['Ray'] + cpu['other']:.0f} s in Ray. A core there copies "
        f"{copies['into used memory']:,.0f} MB/s into memory in use and "
        f"{copies['into new memory']:,.0f} MB/s into new.\n"
        f"- **NVIDIA FLARE** shows {others} GB for the server's peak with a model of 5 GB and 4, "
        f"8, 12 and 16 clients, and about 21 GB with its disk offload. These are read off a chart "
        f"in its [release notes]({RELEASE_NOTES}), which name neither hardware nor time, so they "
        f"were taken under other conditions than ours.\n\n"
        f"{taken(memory, published, whole)}"
    )


def flare_block() -> str:
    """Return a table of GPT-2 large from 6 clients, here and as NVIDIA FLARE states it."""
    measured = result("flowertune-llm-layerwise-gpt2-large")
    flare, row, hardware = measured["published"], measured["row"], measured["hardware"]
    rows = []
    for way, stated in flare["ways"].items():
        took = stated["seconds"]
        cells = [f"{took['down']:.1f} s", f"{took['up'] + took['aggregation']:.1f} s"]
        cells += [stated["server"], stated["client"]]
        rows.append([f"NVIDIA FLARE {flare['version']}, {way}", flare["hardware"], *cells])
    peaks = [f"{row['peak_bytes'][kind] / 2**30:.2f} GiB" for kind in ("server app", "client app")]
    here = f"{hardware['cores']} cores, {hardware['memory_gib']} GiB"
    rows.append(["`layerwise`", here, "not part of it", f"{row['round_seconds']:.1f} s", *peaks])
    header = ["way", "machine", "to the clients", "back, and averaged"]
    header += ["server's peak", "a client's peak"]
    return (
        f"{table(header, rows)}\n\n"
        f"- **NVIDIA FLARE's figures** are those of its [comparison]({flare['source']}), taken in "
        f"Docker. The way back is the sum of its upload and its aggregation.\n"
        f"- **Ours** are of processes of a simulation, with made weights and a result that is "
        f"discarded. So compare the memory, not the seconds: between real processes ours take "
        f"longer, at the rates of the next table.\n\n"
        f"{taken(measured)}"
    )


def processes_block() -> str:
    """Return a table of whole models between real processes, by release and size of a slice."""
    name = "flowertune-llm-layerwise-processes"
    measured = [result(name), *filter(None, [found(f"{name}-newest")])]
    kinds = ("server app", "SuperLink", "SuperNode", "client app")
    rows = [
        [one["packages"]["flwr"], f"{row['slice_megabytes']} MiB", f"{row['mb_a_second']} MB/s"]
        + [mebibytes(row["peak_bytes"][kind]) for kind in kinds]
        for one in measured
        for row in one["rows"]
    ]
    header = ["flwr", "a slice", "rate", *(f"peak of the {kind}" for kind in kinds)]
    return (
        f"{table(header, rows)}\n\nFour layers of Llama-3.1-70B from 2 clients, over TLS on one "
        f"machine. {taken(*measured)}"
    )


def layerwise_row(model: str, row: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    peaks, there_is = row["peak_bytes"], measured["hardware"]["memory_gib"]
    own = mebibytes(row["own_peak_bytes"]["server app"] - row["idle_server_bytes"])
    ended = f" when ended: too much for {there_is} GiB" if row["too_much"] else ""
    rate = f"{row['mb_a_second']:,} MB/s" if "mb_a_second" in row else ""
    cells = [mebibytes(peaks["server app"]) + ended, own, mebibytes(peaks["client app"]), rate]
    return [model, str(row["clients"]), f"`{row['mode']}`", *cells]


def mebibytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def draw_layerwise(path: Path) -> None:
    """Draw the server's peak memory over the number of clients, both ways."""
    measured = result("flowertune-llm-layerwise-memory")
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for mode, label in (("layerwise", "slice by slice"), ("all_at_once", "all at once")):
        rows = [row for row in measured["rows"] if row["mode"] == mode]
        whole = [row for row in rows if not row["too_much"]]
        values = [row["peak_bytes"]["server app"] / 1e9 for row in whole]
        [line] = axes.plot([row["clients"] for row in whole], values, marker=".", label=label)
        ended = [row["clients"] for row in rows if row["too_much"]]
        if ended:
            limit = measured["hardware"]["memory_gib"] * 2**30 / 1e9
            style = {"marker": "^", "linestyle": "none", "color": line.get_color()}
            axes.plot(ended, [limit] * len(ended), label="needs more than there is", **style)
    axes.set(xlabel="clients", ylabel="server's peak memory (GB)", ylim=(0, None))
    axes.set_title("Averaging a model of 2 GB")
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    figure.savefig(path, dpi=110)


def profile_block() -> str:
    measured = result(PROFILE)
    shortest = min(measured["simulated_seconds"])
    return (
        f"What it costs: {1000 * measured['message_seconds']:.2f} ms a message, "
        f"{1000 * measured['round_seconds']:.1f} ms a round of {measured['clients']} clients with "
        f"all it writes, {100 * measured['share']:.2f} % of the shortest round of the offline run "
        f"({shortest:.1f} s). {taken(measured)}"
    )


def gpu_block() -> str:
    measured = found(GPU)
    if not measured:
        return no_gpu_figure("device memory of a client and tokens a second for a model of 3B")
    rows = [
        [row["precision"], f"{row['peak_bytes'] / 1e9:.1f} GB", f"{row['tokens_a_second']:,.0f}"]
        for row in measured["rows"]
    ]
    left_out = "".join(f" Left out: {name} ({why})." for name, why in measured["left_out"].items())
    header = [
        "this code, a Llama of 3B with random weights",
        "peak device memory",
        "tokens a second",
    ]
    return (
        f"{table(header, rows)}\n\nBatches of {measured['batch']} times {measured['length']} "
        f"tokens.{left_out} {taken(measured)}"
    )


def offline_block() -> str:
    run = result("offline")["examples"][NAME]
    return (
        f"In four rounds of 2 of 20 clients the held-out loss falls from "
        f"{run['first']['loss']:.2f} to {run['last']['loss']:.2f} nats per token. With fetching "
        f"and converting the model it takes {offline_seconds(NAME)}."
    )


def time_block() -> str:
    """Return a table of where the time of the offline run goes, on each kind of processor."""
    measured = result("offline")
    if "again" not in measured["examples"][NAME]:
        return "No figure has been taken yet; `python benchmarks/offline.py` takes them."
    kinds = {processor(measured["hardware"]): "examples", "the same with AVX2 alone": "avx2"}
    rows = []
    for name, key in kinds.items():
        if key in measured:
            first, again = measured[key][NAME]["seconds"], measured[key][NAME]["again"]
            train, test = again["train"], again["evaluate"]
            seconds = [first, again["seconds"], again["seconds"] - again["rounds"]]
            seconds += [train, test, again["rounds"] - train - test]
            rows.append([name, *(f"{value:.0f} s" for value in seconds)])
    header = ["processor", "first time", "again", "of that start-up", "training", "testing", "rest"]
    return (
        f"{table(header, rows)}\n\nThe first time with fetching and converting the model. Training "
        f"is that of the slowest client in each round. {taken(measured)}"
    )


def offline() -> str:
    """Return in short what the offline run reached."""
    run = result("offline")["examples"][NAME]
    return f"loss {run['first']['loss']:.2f} → {run['last']['loss']:.2f}"


def headline() -> str:
    federated, central = mean(ends("federated, float32")), mean(ends(hardest()))
    return f"loss {federated:.3f}, {central:.3f} centralised"


def data() -> str:
    """Say on which data the headline was measured."""
    return "the documentation of Python's standard library"


def reached_block() -> str:
    """Return a sentence on what federated training reaches."""
    measured = result(ACCURACY)
    name = "federated, float32"
    before = mean(points[0][1] for points in measured["runs"][name])
    return (
        f"After {measured['rounds'] * measured['steps']} steps the loss on answers that no client "
        f"has is {mean(ends(name)):.3f} nats per token, {before:.3f} before, and "
        f"{mean(ends(hardest())):.3f} after as many steps of centralised training.{answers()}"
    )


def answers() -> str:
    """Return a sentence on how many answers the models know, if that was measured."""
    if not (measured := found(WORTH)):
        return ""
    kinds = ("federated", "before", "centralised")
    after, before, central = (f"{100 * mean(known(measured, kind)):.0f}" for kind in kinds)
    return (
        f" Of four answers, one of them right, the federated model chooses the right one for "
        f"{after} of 100 questions: {before} before, {central} after centralised training."
    )


def draw_loss(path: Path) -> None:
    """Draw the held-out loss over the steps: mean over seeds, with the range between them."""
    measured = result(ACCURACY)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, curves in measured["runs"].items():
        steps = [step for step, _ in curves[0]]
        values = [[points[i][1] for points in curves] for i in range(len(steps))]
        central = name.startswith("centralised")
        style = {"linestyle": "none", "marker": "D"} if central else {"marker": "."}
        places, means = (steps, [mean(v) for v in values])
        if central:
            places, means, values = places[-1:], means[-1:], values[-1:]
        [line] = axes.plot(places, means, label=name, **style)
        low, high = [min(v) for v in values], [max(v) for v in values]
        if not central:
            axes.fill_between(places, low, high, alpha=0.12, color=line.get_color())
    axes.set(xlabel="steps of each client", ylabel="held-out loss (nats per token)")
    axes.set_title("SmolLM2-135M learns Python's documentation: mean and range of 3 seeds")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


NAME = "flowertune-llm"
ADDS = "language models: LoRA over frozen 4-bit weights, small messages, whole models by slices"
MODEL = "SmolLM2-135M"
SETTINGS = (
    *("dataset", "model.name", "model.quantization", "model.prompt-template"),
    *("model.lora.peft-lora-r", "train.learning-rate-max", "train.training-arguments.max-steps"),
    *("num-server-rounds", "strategy.fraction-train"),
)
BLOCKS = {"reached": reached_block, "offline": offline_block}
RESULTS = {
    "accuracy": accuracy_block,
    "worth": worth_block,
    "traffic": traffic_block,
    "bytes": bytes_block,
    "time": time_block,
    "speed": speed_block,
    "gpu": gpu_block,
    "layerwise": layerwise_block,
    "flare": flare_block,
    "processes": processes_block,
    "profile": profile_block,
}
PLOTS = {"loss.png": draw_loss, "bytes.png": draw_bytes, "layerwise.png": draw_layerwise}
