"""Figures of the examples beside what else one could pick: benchmarks/README.md."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from measured import result, table, taken
from repository import ROOT, example_names

PAGE = ROOT / "benchmarks" / "README.md"
PLOT = "side_by_side.png"
WAYS = {
    "plain": "plain PyTorch loop",
    "example": "our example",
    "straightforward": "straightforward Flower app",
}
GIB = 2**30


def named(measured: dict[str, Any], way: str) -> str:
    """Return what a table calls a way; our own stands out."""
    text = WAYS.get(way) or measured["other"]["name"]
    return f"**{text}**" if way == "example" else text


def link(job: str) -> str:
    return f"[{job}](../examples/{job})"


def rounds_block() -> str:
    measured = result("side-by-side")
    rows = []
    for job, ways in measured["jobs"].items():
        for number, (way, run) in enumerate(ways.items()):
            seconds, first = run["seconds_a_round"], run["rounds"][0]["after"]
            cells = ["" if number else link(job), named(measured, way), f"{seconds:.2f}"]
            cells += [f"{seconds / ways['plain']['seconds_a_round']:.2f}"]
            cells += [f"{first:.0f}", f"{run['peak_bytes'] / GIB:.2f}"]
            rows.append([*cells, f"{run['bytes_a_round'] / 1e6:.2f}", f"{run['score']:.3f}"])
    header = ["job", "way", "seconds a round", "times plain", "first result after, s"]
    header += ["memory, GiB", "MB a round", "score"]
    return (
        f"{table(header, rows)}\n\n![Seconds a round](_static/{PLOT})\n\n"
        f"{lengths(measured)} The other framework is {measured['other']['package']}. "
        f"{taken(measured)}"
    )


def lengths(measured: dict[str, Any]) -> str:
    """Say after how many rounds each score was taken."""
    counts = {job: len(ways["example"]["rounds"]) for job, ways in measured["jobs"].items()}
    return f"Rounds: {', '.join(f'{job} {count}' for job, count in counts.items())}."


def fresh_block() -> str:
    measured, rows = result("side-by-side-fresh"), []
    for job in example_names():
        for number, (way, run) in enumerate(measured["jobs"][job].items()):
            cells = ["" if number else link(job), named(measured, way)]
            cells += [f"{run['install_seconds']:.0f}", f"{run['installed_bytes'] / GIB:.2f}"]
            rows.append([*cells, f"{run['first_result_seconds']:.0f}"])
    header = ["job", "way", "installation, s", "installed, GiB", "first result after, s"]
    return f"{table(header, rows)}\n\n{taken(measured)}"


def draw(path: Path) -> None:
    """Draw the seconds a round of each way, as a multiple of the plain loop's."""
    measured = result("side-by-side")
    jobs = measured["jobs"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for number, way in enumerate([*list(WAYS)[1:], "other"]):
        places, ratios = [], []
        for place, ways in enumerate(jobs.values()):
            if way in ways:
                places.append(place + 0.27 * (number - 1))
                plain = ways["plain"]["seconds_a_round"]
                ratios.append(ways[way]["seconds_a_round"] / plain)
        bars = axes.bar(places, ratios, 0.25, label=WAYS.get(way) or measured["other"]["name"])
        axes.bar_label(bars, fmt="%.3g", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8, label=WAYS["plain"])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xticks(range(len(jobs)), [job.replace("-to-", "-\nto-") for job in jobs], fontsize=8)
    axes.set(ylabel="seconds a round, times plain")
    axes.set_title("The same work in different ways: lower is faster")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


PFL_WAYS = {
    "plain": WAYS["plain"],
    "example": f"**{WAYS['example']}**, 2 workers",
    "pfl": "pfl-research, one process",
    "pfl-two": "pfl-research, two processes",
}


def pfl_block() -> str:
    measured, rows = result("side-by-side-pfl"), []
    for job, ways in measured["jobs"].items():
        ours = ways["example"]["seconds_a_round"]
        for number, (way, run) in enumerate(ways.items()):
            cells = ["" if number else job, PFL_WAYS[way], f"{run['seconds_a_round']:.2f}"]
            cells += [f"{run['seconds_a_round'] / ours:.2f}", f"{run['rounds'][0]['after']:.0f}"]
            rows.append([*cells, f"{run['peak_bytes'] / GIB:.2f}", f"{run['score']:.3f}"])
    header = ["job", "way", "seconds a round", "times ours", "first result after, s"]
    return (
        f"{table([*header, 'memory, GiB', 'score'], rows)}\n\n"
        f"The package is {measured['other']['package']}. {taken(measured)}"
    )


def guard_block() -> str:
    measured = result("guard")
    rows = []
    names = ("classes", "alpha", "epochs", "updates", "left_out", "left_out_by_median")
    for setting in measured["settings"]:
        rows.append([*(f"{setting[name]:g}" for name in names), f"{setting['accuracy']:.2f}"])
    header = [
        "classes",
        "alpha",
        "epochs",
        "updates",
        "left out",
        "by the median alone",
        "accuracy",
    ]
    return f"{table(header, sorted(rows))}\n\n{taken(measured)}"


BLOCKS = {"rounds": rounds_block, "fresh": fresh_block, "pfl": pfl_block, "guard": guard_block}
