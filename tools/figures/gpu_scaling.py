"""Figures of gpu-scaling."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measured import found, no_gpu_figure, offline_on_digits, result, table, taken

GIB, MIB = 2**30, 2**20
NAME = "gpu-scaling"
EXECUTORS = ("pool", "inline", "spawn")


def part(name: str) -> dict[str, Any]:
    """Return what was measured of a part."""
    return result(f"{NAME}-{name}")


def run_of(executor: str, clients: int) -> dict[str, Any] | None:
    """Return a simulation's figures, None where that executor was not run with that many."""
    runs = part("simulation")["runs"]
    chosen = [r for r in runs if (r["executor"], r["clients"]) == (executor, clients)]
    return chosen[0] if chosen else None


def growth(executor: str, few: int = 10, many: int = 300) -> float:
    """Return how many times the memory of few clients many take."""
    return run_of(executor, many)["peak_bytes"] / run_of(executor, few)["peak_bytes"]


def drift(first: int = 5) -> float:
    """Return by how much memory grows from the fifth round to the last, at most; a fraction."""
    held = part("rounds")["round_bytes"][first - 1 :]
    return max(held) / held[0] - 1


def executors_block() -> str:
    measured = part("executors")
    speeds = measured["steps_a_second"]
    start = {
        "inline": "none, after the first",
        "pool": "none, after the pool's",
        "spawn": "each step's",
    }
    rows = [
        [f"`{name}`", f"{speeds[name]:.2f}", f"{1000 / speeds[name]:,.0f} ms", start[name]]
        for name in EXECUTORS
    ]
    return (
        f"{table(['executor', 'steps a second', 'a step', 'imports'], rows)}\n\n"
        f"One client after the other, each one epoch over {measured['images']:.0f} images in "
        f"batches of 16, on one thread, without Flower: the pool is "
        f"{measured['pool_over_spawn']:.0f} times as fast as spawned processes, and takes "
        f"{measured['inline_over_pool']:.2f} times as long as no process at all. {taken(measured)}"
    )


def memory_block() -> str:
    measured = part("simulation")
    sizes = sorted({run["clients"] for run in measured["runs"]})
    columns = {
        "peak memory": lambda run: f"{run['peak_bytes'] / GIB:.2f} GiB",
        "steps a second": lambda run: f"{run['steps_a_second']:.3g}",
        "start-up": lambda run: f"{run['start_seconds']:.0f} s",
    }
    if measured["hardware"]["gpu"]:
        columns["peak device memory"] = lambda run: f"{run['device_bytes'] / GIB:.2f} GiB"
    rows = []
    for executor in EXECUTORS:
        for what, value in columns.items():
            runs = [run_of(executor, size) for size in sizes]
            rows.append([f"`{executor}`, {what}", *(value(r) if r else "" for r in runs)])
    header = ["a simulation of", *(f"{size} clients" for size in sizes)]
    return (
        f"{table(header, rows)}\n\nWith the pool, 300 clients take {growth('pool'):.2f} times the "
        f"memory of 10. Each client has {measured['images']} images; up to 100 clients are sampled "
        f"a round, 10 with `spawn`. Steps a second are those of whole rounds, the central test on "
        f"{measured['test_images']:,} images included.\n\n{taken(measured)}"
    )


def rounds_block() -> str:
    measured = part("rounds")
    held = measured["round_bytes"]
    return (
        f"{measured['clients']} clients, {len(held)} rounds, pool: {held[4] / GIB:.2f} GiB after "
        f"round 5, {held[-1] / GIB:.2f} GiB after the last, {100 * drift():.1f} % more at most. "
        f"{taken(measured)}"
    )


def workers_block() -> str:
    measured = part("workers")
    rows = [
        [
            str(run["workers"]),
            f"{run['pool_bytes'] / MIB:,.0f} MiB",
            f"{run['own_bytes'] / MIB:.1f} MiB",
            f"{1000 * run['replaced_seconds']:.0f} ms",
        ]
        for run in measured["runs"]
    ]
    header = ["workers", "the pool together", "a worker's own", "a dead one is replaced within"]
    return (
        f"{table(header, rows)}\n\nOn the CPU, after ten steps each; a further worker takes "
        f"{measured['further_worker_bytes'] / MIB:.1f} MiB. {taken(measured)}"
    )


def thousand_block() -> str:
    measured = part("thousand")
    seconds = measured["round_seconds"]
    return (
        f"1,000 clients in simulation, 100 of them trained and 100 tested in each of "
        f"{len(seconds)} rounds: {measured['total_seconds']:.0f} s, start-up of "
        f"{measured['start_seconds']:.0f} s included; the rounds took "
        f"{', '.join(f'{s:.0f} s' for s in seconds)}; peak memory "
        f"{measured['peak_bytes'] / GIB:.2f} GiB in {measured['processes']} processes. "
        f"{taken(measured)}"
    )


def supernodes_block() -> str:
    measured = part("supernodes")
    count, each = measured["supernodes"], measured["supernode_bytes"]
    memory = measured["hardware"]["memory_gib"]
    others = measured["bytes"]["others"]
    fit = int((memory * GIB - others) / each)
    rounds = ", ".join(f"{s:.0f} s" for s in measured["round_seconds"])
    end = "ran to the end" if measured["completed"] else "did not end well"
    return (
        f"`./run.sh {count} {count} {measured['sampled']} 2` {end}: all SuperNodes were connected "
        f"after {measured['start_seconds']:.0f} s, the rounds took {rounds}. A SuperNode takes "
        f"{each / MIB:.0f} MiB with the process that starts its ClientApps; the peak of everything "
        f"was {measured['peak_bytes'] / GIB:.1f} GiB. By memory about {fit} would fit into "
        f"{memory} GiB. {taken(measured)}"
    )


def gpu_block() -> str:
    measured = found(f"{NAME}-gpu")
    if not measured:
        return no_gpu_figure("steps a second and device memory of 200 clients with 1 to 16 workers")
    rows = [
        [
            str(line["workers"]),
            f"{line['steps_a_second']:.1f}",
            f"{line['peak_bytes'] / GIB:.2f} GiB",
            line["note"],
        ]
        for line in measured["rows"]
    ]
    rows += [
        [f"`{line['executor']}`, one client at a time", f"{line['steps_a_second']:.2f}", "", ""]
        for line in measured["others"]
    ]
    header = ["workers", "steps a second", "peak device memory", "what the pool says"]
    return (
        f"{table(header, rows)}\n\n{measured['clients']} clients, each one epoch over "
        f"{measured['images']} images in batches of {measured['batch']}. {taken(measured)}"
    )


def offline() -> str:
    return offline_on_digits(NAME)


def headline() -> str:
    most = run_of("pool", 300)
    return (
        f"300 clients in {most['peak_bytes'] / GIB:.1f} GiB of memory, {growth('pool'):.2f} times "
        f"that of 10"
    )


def data() -> str:
    """Say on which data the headline was measured."""
    return f"a subset of CIFAR-10, {part('simulation')['images']} images a client"


def reached_block() -> str:
    """Say in a sentence that memory is flat and the pool is quick."""
    few, most = (run_of("pool", count)["peak_bytes"] / GIB for count in (10, 300))
    measured = part("executors")
    return (
        f"A simulation of 10 clients takes {few:.2f} GiB, one of 300 clients {most:.2f} GiB. A "
        f"step in the pool takes {measured['inline_over_pool']:.2f} times as long as in the "
        f"client's own process; in a spawned process, {measured['pool_over_spawn']:.0f} times as "
        f"long as in the pool."
    )


def draw_memory(path: Path) -> None:
    """Draw memory over the number of clients, and over rounds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_clients(left)
    draw_rounds(right)
    for axes in (left, right):
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
        axes.set(ylabel="memory of all processes (GiB)")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_clients(axes: Axes) -> None:
    measured = part("simulation")
    for executor in EXECUTORS:
        runs = sorted(
            (run for run in measured["runs"] if run["executor"] == executor),
            key=lambda run: run["clients"],
        )
        peaks = [run["peak_bytes"] / GIB for run in runs]
        axes.plot([run["clients"] for run in runs], peaks, marker="o", label=executor)
    axes.legend(loc="lower right")
    axes.set(title="over clients, peak", xlabel="clients in the simulation")


def draw_rounds(axes: Axes) -> None:
    measured = part("rounds")
    held = [size / GIB for size in measured["round_bytes"]]
    axes.plot(range(1, len(held) + 1), held, label=f"pool, {measured['clients']} clients")
    axes.legend(loc="lower right")
    axes.set(title="over rounds", xlabel="round")


ADDS = "hundreds of clients on one device with flat memory, and populations of a million"
MODEL = "a small CNN"
SETTINGS = (
    *("executor", "workers", "memory-share", "dataset", "population", "partitioning"),
    *("num-server-rounds", "clients-to-train", "learning-rate"),
)
BLOCKS = {"reached": reached_block}
RESULTS = {
    "executors": executors_block,
    "memory": memory_block,
    "rounds": rounds_block,
    "workers": workers_block,
    "thousand": thousand_block,
    "supernodes": supernodes_block,
    "gpu": gpu_block,
}
PLOTS = {"memory.png": draw_memory}
