"""A profile as one self-contained page of HTML: timeline, memory and both tables."""

from html import escape
from itertools import accumulate
from math import ceil, log10
from typing import Any

from flowertune_llm.profiler.figures import (
    headline,
    in_bytes,
    in_time,
    network_cells,
    notes,
    task_cells,
)
from flowertune_llm.profiler.recorder import Row

WIDTH, LEFT, RIGHT = 1080, 90, 1058  # pixels: width of a chart, and both ends of its time axis
LANE, HEIGHT = 22, 200  # pixels: height of a lane of the timeline, and of the memory chart
MOST_ROUNDS, MOST_LANES = 200, 40  # of the timeline: more would be too small to see
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#ff8ab7", "#9c6b4e")
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #6b7280; --line: #e3e5e9; --page: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7e9; --soft: #9aa1ab; --line: #33373d; --page: #17191c } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 1080px; margin: 40px auto; padding: 0 20px }
h1 { font-size: 24px; margin: 0 } h2 { font-size: 17px; margin: 36px 0 8px }
p { margin: 2px 0 8px; color: var(--soft) }
svg { width: 100%; min-width: 760px; height: auto; display: block }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft) }
svg line { stroke: var(--line) } .lane { fill: var(--line); fill-opacity: .4 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums }
th { color: var(--soft); font-weight: 500 } .name { text-align: left }
.legend span { margin-right: 18px; white-space: nowrap }
.legend i { display: inline-block; width: 11px; height: 11px; margin-right: 6px }
"""


def page(shown: dict[str, Any]) -> str:
    """Return the page of a profile that `figures.complete` has returned."""
    rounds = shown["rounds"][-MOST_ROUNDS:]
    title = f"Run {escape(shown['run_ids'][-1])}"
    parts = [f"<h1>{title}</h1>", f"<p>{escape(headline(shown))}</p>"]
    if rounds:
        axis = Axis(rounds)
        parts += [timeline(axis), memory(axis)]
    if len(rounds) < len(shown["rounds"]):
        parts.append(f"<p>The charts show the last {MOST_ROUNDS} rounds.</p>")
    parts.append(table("Tasks", task_cells(shown["summary"]), 2))
    parts.append(table("Network", network_cells(shown["network"]), 2))
    parts += [f"<p>{escape(note)}</p>" for note in notes(shown)]
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{view}<title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


class Axis:
    """Axis of time, from left to right, round after round, without the gaps before a resume."""

    def __init__(self, rounds: list[dict[str, Any]]) -> None:
        self.rounds = rounds
        self.starts = list(accumulate((entry["seconds"] for entry in rounds), initial=0.0))
        self.total = max(self.starts[-1], 1e-9)

    def x(self, seconds: float) -> float:
        return LEFT + (RIGHT - LEFT) * min(max(seconds / self.total, 0.0), 1.0)

    def grid(self, height: int) -> str:
        """Return a line at the start of each round, its number if there is room, and seconds."""
        parts, free = [text(LEFT - 8, 12, "round", "end")], 0.0
        for entry, start, end in zip(self.rounds, self.starts, self.starts[1:], strict=False):
            x, middle = self.x(start), self.x((start + end) / 2)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{height}"/>')
            if middle >= free:
                parts.append(text(middle, 12, str(entry["round"]), "middle"))
                free = middle + 28
        step = nice(self.total / 8)
        for i in range(1, int(self.total / step) + 1):
            parts.append(text(self.x(i * step), height + 16, f"{i * step:g} s", "middle"))
        return "".join(parts)


def timeline(axis: Axis) -> str:
    """Return a lane for the server and each client, with a bar for each task in each round."""
    rows = [
        (f"round {entry['round']}, {row['task']}", start, row)
        for entry, start in zip(axis.rounds, axis.starts, strict=False)
        for row in entry["tasks"]
    ]
    tasks = sorted({(row["scope"] == "client", row["task"]) for *_, row in rows})
    colours = {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(tasks)}
    nodes = sorted(
        {row["node"] for *_, row in rows}, key=lambda node: (node is not None, node or 0)
    )
    lanes = {node: i for i, node in enumerate(nodes[:MOST_LANES])}
    height = 22 + LANE * len(lanes)
    parts = []
    for node, i in lanes.items():
        y, name = 22 + LANE * i, "server" if node is None else f"client {str(node)[:6]}"
        parts.append(f'<rect class="lane" x="{LEFT}" y="{y}" width="{RIGHT - LEFT}" height="20"/>')
        parts.append(text(LEFT - 8, y + 14, name, "end"))
    parts.append(axis.grid(height))
    for name, start, row in rows:
        if row["node"] in lanes:
            y = 24 + LANE * lanes[row["node"]]
            colour = colours[row["scope"] == "client", row["task"]]
            parts.append(bar(axis, name, start, row, y, colour))
    left_out = len(nodes) - len(lanes)
    more = f"<p>{left_out} more clients are not drawn.</p>" if left_out else ""
    legend = {
        f"{'client' if client else 'server'}: {task}": c for (client, task), c in colours.items()
    }
    return f"<h2>Timeline</h2>{key(legend)}{svg(height + 22, parts)}{more}"


def bar(axis: Axis, name: str, start: float, row: Row, y: int, colour: str) -> str:
    """Return a task's bar, from its first begin to its last end in a round; paler if often idle."""
    left, right = axis.x(start + row["began"]), axis.x(start + row["ended"])
    span = max(row["ended"] - row["began"], 1e-9)
    busy = min(row["seconds_mean"] * row["count"] / span, 1.0)
    label = f"{name}: {row['count']} x {in_time(row['seconds_mean'])}, memory "
    label += in_bytes(row["memory_bytes_max"])
    return (
        f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 1.5):.1f}" height="16" rx="2" '
        f'fill="{colour}" fill-opacity="{max(busy, 0.3):.2f}"><title>{escape(label)}</title></rect>'
    )


def memory(axis: Axis) -> str:
    """Return a chart of resident and GPU memory at the end of each round: the most of any task."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry, end in zip(axis.rounds, axis.starts[1:], strict=True):
        for scope in ("server", "client"):
            rows = [row for row in entry["tasks"] if row["scope"] == scope]
            for name, label in (("memory", scope), ("device", f"{scope}, GPU")):
                value = max((row[f"{name}_bytes_max"] for row in rows), default=0)
                if value:
                    curves.setdefault(label, []).append((end, value))
    most = max((value for points in curves.values() for _, value in points), default=1)
    step = nice(most / 2**20 / 4) * 2**20
    top = step * ceil(most / step)
    parts = [axis.grid(HEIGHT)]
    for i in range(round(top / step) + 1):
        y = HEIGHT - (HEIGHT - 36) * i * step / top
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(LEFT - 8, y + 4, f"{i * step / 2**20:,.0f} MiB", "end"))
    colours = dict(zip(curves, COLOURS, strict=False))
    for label, points in curves.items():
        places = [(axis.x(x), HEIGHT - (HEIGHT - 36) * y / top, y) for x, y in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colours[label]}" stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colours[label]}">'
            f"<title>{label}: {in_bytes(value)}</title></circle>"
            for x, y, value in places
        ]
    return f"<h2>Memory</h2>{key(colours)}{svg(HEIGHT + 22, parts)}"


def table(title: str, rows: list[dict[str, str]], names: int) -> str:
    """Return a table: names in its first columns, figures in the others."""
    if not rows:
        return ""
    head = "".join(
        f"<th{' class=name' * (i < names)}>{escape(n)}</th>" for i, n in enumerate(rows[0])
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=name' * (i < names)}>{escape(cell)}</td>"
            for i, cell in enumerate(row.values())
        )
        + "</tr>\n"
        for row in rows
    )
    return f'<h2>{title}</h2><div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def key(colours: dict[str, str]) -> str:
    entries = [
        f'<span><i style="background:{c}"></i>{escape(n)}</span>' for n, c in colours.items()
    ]
    return f'<p class="legend">{"".join(entries)}</p>'


def svg(height: float, parts: list[str]) -> str:
    drawn = f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'
    return f'<div class="scroll">{drawn}</div>'


def text(x: float, y: float, content: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def nice(step: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** int(log10(step) // 1)
    return next(power * n for n in (1, 2, 5, 10) if power * n >= step)
