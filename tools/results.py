"""Write measured figures into the pages: tables from results/*.json, and plots.

A page marks their places: `<!-- begin: NAME -->` … `<!-- end: NAME -->`. The text between is made
here, from results of benchmarks/ or from pyproject.toml, and a test compares the two.
"""

import importlib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType

from figures import federation, population, side_by_side
from measured import found, offline_block, offline_seconds, result, table, taken, with_avx2
from repository import ROOT, example_folder, example_names


def figures(example: str) -> ModuleType:
    """Return the module of an example's figures."""
    return importlib.import_module(f"figures.{example.replace('-', '_')}")


def settings(example: str, shown: Collection[str] | None = None) -> str:
    """Return a table of the run-config keys: default, meaning and trade-off.

    Args:
        example: its name.
        shown: the keys to show; by default all.
    """
    text = (example_folder(example) / "pyproject.toml").read_text()
    section = text.split("[tool.flwr.app.config]")[1].split("\n[")[0]
    # A second # marks the wing that a key belongs to.
    keys = re.findall(r"^([\w.-]+) = (.+?)\s+# (.+?)(?: # \w+)?$", section, re.MULTILINE)
    rows = [
        [f"`{key}`", f"`{value}`", why.replace("|", "\\|")]
        for key, value, why in keys
        if shown is None or key in shown
    ]
    return table(["key", "default", "what it is, and the trade-off"], rows)


def offline_measured(example: str) -> str:
    """Say how the time of the offline run, which the README has, was taken."""
    reached = figures(example).offline()
    return f"Reached: {reached}, after {offline_seconds(example)}. {taken(result('offline'))}"


def examples_table() -> str:
    """Return the front page's table: a row for each example, with its offline time and outcome."""
    offline = result("offline")["examples"]
    rows = []
    for name in example_names():
        shown = figures(name)
        seconds = f"{offline[name]['seconds']:.0f} s{with_avx2(name, ' (AVX2 alone: {:.0f} s)')}"
        run = f"{seconds}, {shown.offline()}"
        link = f"[{name}](examples/{name})"
        rows.append([link, shown.ADDS, run, f"{shown.MODEL} on {shown.data()}", shown.headline()])
    header = ["example", "what it adds", "offline run", "measured with", "and the result"]
    return f"{table(header, rows)}\n\n{taken(result('offline'))}"


def newest_flower() -> str:
    """Return a sentence on the newest release that `make test-latest` has passed on."""
    seen = [*filter(None, [found("newest-flower"), found("newest-flower-avx2")])]
    if not seen:
        return "No newer release was seen to pass `make test-latest` yet."
    minutes = " and ".join(
        f"{measured['wall_seconds'] / 60:.0f} with {measured['hardware']['instructions']}"
        for measured in seen
    )
    return (
        f"**flwr {seen[0]['packages']['flwr']}** is the newest release that all of this was last "
        f"seen to pass on: {', '.join(seen[0]['passed'])}; in minutes, {minutes}. {taken(*seen)}"
    )


def blocks(page: Path) -> dict[str, Callable[[], str]]:
    """Return the functions that fill the marked places of a page."""
    if page == ROOT / "README.md":
        return {"examples": examples_table, "newest": newest_flower}
    for shown in (side_by_side, federation, population):
        if page == shown.PAGE:
            return shown.BLOCKS
    example = page.parent.name
    shown = figures(example)
    if page.name == "SETTINGS.md":
        return {"settings": lambda: settings(example)}
    if page.name == "RESULTS.md":
        return {"offline": lambda: offline_measured(example)} | shown.RESULTS
    common = {
        "settings": lambda: settings(example, shown.SETTINGS),
        "offline": lambda: offline_block(example),
    }
    reached = shown.BLOCKS["reached"]
    more = {"reached": lambda: f"{reached()} More in [RESULTS.md](RESULTS.md)."}
    return common | shown.BLOCKS | more


def pages() -> list[Path]:
    """Return the pages that have marked places."""
    names = ("README.md", "SETTINGS.md", "RESULTS.md")
    of_examples = [example_folder(example) / name for example in example_names() for name in names]
    shown = [ROOT / "README.md", side_by_side.PAGE, federation.PAGE, population.PAGE]
    return [*shown, *filter(Path.is_file, of_examples)]


def render(page: Path) -> str:
    """Return a page with all its marked places filled in.

    Raises:
        KeyError: nothing fills a marked place.
    """
    fill = blocks(page)
    return re.sub(
        r"(<!-- begin: ([\w-]+) -->\n).*?(<!-- end: \2 -->)",
        lambda match: f"{match[1]}{fill[match[2]]()}\n{match[3]}",
        page.read_text(),
        flags=re.DOTALL,
    )


def main() -> None:
    for page in pages():
        page.write_text(render(page))
        print(page.relative_to(ROOT))
    for shown in (side_by_side, population):
        folder = shown.PAGE.parent / "_static"
        folder.mkdir(exist_ok=True)
        shown.draw(folder / shown.PLOT)
    for name in example_names():
        folder = example_folder(name) / "_static"
        folder.mkdir(exist_ok=True)
        for plot, draw in figures(name).PLOTS.items():
            draw(folder / plot)


if __name__ == "__main__":
    main()
