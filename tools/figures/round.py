"""Diagram of a round: server, clients, and the messages between them."""

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyBboxPatch, Rectangle

INK, PALE = "#1f2328", "#59636e"
CARD, EDGE = "#ffffff", "#d0d7de"  # its own background: the page may be light or dark
SERVER, CLIENT, DATA = "#0969da", "#1a7f37", "#6639ba"
FONTS = ["DejaVu Sans", "Verdana", "sans-serif"]
WIDTH, HEIGHT = 100, 46


def draw_round(path: Path) -> None:
    """Draw a round into an SVG."""
    # Text as text, and no random names: the same file each time.
    style = {"svg.fonttype": "none", "svg.hashsalt": "round", "font.sans-serif": FONTS}
    with rc_context(style):
        figure = Figure(figsize=(10, 4.6))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axes.axis("off")
        box(axes, (0.6, 0.6), (WIDTH - 1.2, HEIGHT - 1.2), CARD, EDGE)
        draw_server(axes)
        draw_clients(axes)
        draw_messages(axes)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})


def draw_server(axes: Axes) -> None:
    box(axes, (3, 4), (25, 38), "#ddf4ff", SERVER)
    words(axes, (15.5, 38.3), "Server", SERVER, size=15, weight="bold")
    steps = {
        32: "draws the clients",
        22.5: "checks what comes back,\naverages it, weighted by\nnumber of examples",
        9: "tests the model on the\ncentral test set, and\nsaves the round",
    }
    for height, text in steps.items():
        words(axes, (15.5, height), text)


def draw_clients(axes: Axes) -> None:
    for shift in (2, 1, 0):  # a pile: a round has several
        box(axes, (69 + shift, 11.5 - 1.1 * shift), (26, 30.5), "#dafbe1", CLIENT)
    words(axes, (82, 38.3), "Each drawn client", CLIENT, size=15, weight="bold")
    words(axes, (82, 32), "trains the model\non its own data")
    words(axes, (82, 16.5), "tests the new model\non its own test data")
    drum(axes, (82, 24.2))
    words(axes, (82, 23.4), "its data stays here", CARD, size=11, weight="bold")
    words(axes, (83, 5.4), "The other clients rest until they are drawn.", PALE, size=9.5)


def draw_messages(axes: Axes) -> None:
    """Draw what travels, from above in the order of time."""
    down, up = (29, 68), (68, 29)
    for height, number, (start, end), text, color in (
        (33.5, 1, down, "the global model", SERVER),
        (25, 2, up, "its model, loss, number of examples", CLIENT),
        (16.5, 3, down, "the new global model", SERVER),
        (8, 4, up, "its accuracy and loss", CLIENT),
    ):
        arrow = {"arrowstyle": "-|>,head_width=0.4,head_length=0.8", "color": color, "lw": 2.2}
        axes.annotate("", (end, height), (start, height), arrowprops=arrow | {"shrinkA": 0})
        words(axes, (33.2, height + 2.4), str(number), color, size=12, weight="bold")
        words(axes, (35.5, height + 2.4), text, ha="left")


def box(
    axes: Axes, corner: tuple[float, float], size: tuple[float, float], fill: str, edge: str
) -> None:
    style = "round,pad=0,rounding_size=1.5"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, fc=fill, ec=edge, lw=1.5))


def drum(axes: Axes, center: tuple[float, float]) -> None:
    """Draw a data store."""
    (x, y), width, height, flat = center, 21, 4.6, 1.8
    kind = partial(Ellipse, width=width, height=flat, fc=DATA, ec=CARD, lw=1)
    axes.add_patch(kind((x, y - height / 2)))
    axes.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, fc=DATA, lw=0))
    axes.add_patch(kind((x, y + height / 2)))


def words(
    axes: Axes,
    place: tuple[float, float],
    text: str,
    color: str = INK,
    size: float = 11,
    **style: Any,
) -> None:
    """Write text around a place, each line by itself: its reader's font may be another."""
    (x, y), lines = place, text.split("\n")
    style = {"color": color, "size": size, "ha": "center", "va": "center"} | style
    for number, line in enumerate(lines):
        height = y + 2.2 * ((len(lines) - 1) / 2 - number)
        axes.text(x, height, line, **style)
