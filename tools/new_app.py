"""Copy an example out as an app of your own, under your names, without the rest of the repository.

The last part of the path is the app's name; that of its package has underscores for hyphens. The
kit in it stays word for word as it is. The copy is made beside its place and moved there when it is
whole. Needs Python and no packages.
"""

import argparse
import keyword
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NoReturn

from repository import ROOT, example_names, load_toml, package_of

NAME = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"
LONGEST = 32  # newer Flower refuses longer names
PUBLISHER = "your-name"
FIRST_SECTION = "\n## Run it\n"  # before it: what we teach and measured
PAGES = ("running", "exam", "deployment", "scaling", "troubleshooting", "newest-flwr")  # in docs/
# What speaks of this repository: its other folders, its commands, its figures.
OURS = r"repository|`make |^make |&& make |\.\./examples/|benchmarks/|tools/|RESULTS\.md|_static/|"
OURS += r"\*Measured|CONTRIBUTING|tests/test_|compose|containers?\b"


def refuse(why: str) -> NoReturn:
    raise SystemExit(f"No app was made: {why}")


def check(example: str, target: Path) -> None:
    """Check that the app can be made, and would work.

    Raises:
        SystemExit: it cannot; the text says why, in a line.
    """
    name, package = target.name, target.name.replace("-", "_")
    if example not in example_names():
        refuse(f"there is no example {example!r}; there are {', '.join(example_names())}")
    if not re.fullmatch(NAME, name) or len(name) > LONGEST:
        refuse(
            f"{name!r}, the last part of the path, is to be its name: up to {LONGEST} small "
            "letters and digits, single hyphens between them, the first a letter"
        )
    if has_a_meaning(package, ROOT / "examples" / example):
        refuse(f"{name!r} cannot be its name: `import {package}` means something else already")
    if os.path.lexists(target):
        refuse(f"{target} exists already")
    if not target.parent.is_dir():
        refuse(f"there is no folder {target.parent}")
    if ROOT in target.parents and target.parent != ROOT / "examples":
        refuse(f"{target} is in this repository: make it beside it (or in examples/, to add one)")


def has_a_meaning(package: str, example: Path) -> bool:
    """Tell whether a package's name is taken: it could not be imported, or would hide a module.

    Taken are Python's keywords and modules, packages installed here, the app's dependencies, and
    the folders and scripts that will lie beside the package.
    """
    dependencies = load_toml(example / "pyproject.toml")["project"]["dependencies"]
    required = {re.match(r"[\w.-]+", line)[0].replace("-", "_") for line in dependencies}
    beside = {path.stem for path in example.iterdir() if path.is_dir() or path.suffix == ".py"}
    # The first of sys.path is this script's folder, which an app does not see.
    here = PathFinder.find_spec(package, [p for p in sys.path if p != str(Path(__file__).parent)])
    return (
        keyword.iskeyword(package)
        or package in {"outputs", *sys.stdlib_module_names, *required, *beside}
        or here is not None
    )


def own_readme(text: str, name: str, description: str) -> str:
    """Return an example's README as that of an app made from it: what it teaches goes."""
    text = f"# {name}\n\n{description}.\n{FIRST_SECTION}{text.split(FIRST_SECTION)[1]}"
    return own_page(text)


def own_page(text: str) -> str:
    """Return a page without what speaks of this repository.

    That are marked parts with figures that were measured, and paragraphs, items, rows of tables
    and lines of commands in which `OURS` is found; headings under which nothing is left go, too.
    """
    marked = re.compile(r"<!-- begin: ([\w-]+) -->\n(.*?)<!-- end: \1 -->\n", re.DOTALL)
    text = marked.sub(lambda match: "" if "*Measured" in match[2] else match[2], text)
    parts = re.split(r"(^ *```.*?^ *```\n)", text, flags=re.DOTALL | re.MULTILINE)
    text = "".join(own_code(part) if "```" in part else own_prose(part) for part in parts)
    text = text.strip() + "\n"
    for level in range(6, 1, -1):
        empty = rf"^#{{{level}}} [^\n]*\n+(?=#{{2,{level}}} |\Z)"
        text = re.sub(empty, "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text.replace("../../docs/", "docs/")).strip() + "\n"


def own_code(block: str) -> str:
    lines = [line for line in block.splitlines() if not re.search(rf"{OURS}|^cd |docs/", line)]
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def own_prose(text: str) -> str:
    """Return the paragraphs, and of lists and tables the lines, without what `OURS` finds."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        kept = [line for line in lines if not re.search(OURS, line)]
        if len(kept) == len(lines) or re.match(r"\n?(\||- |\d+\. )", paragraph):
            paragraphs.append("\n".join(kept))
    return "\n\n" + "\n\n".join(paragraphs) + "\n\n"


def own_docs(rename: Callable[[str], str], example: str, name: str) -> dict[str, str]:
    """Return the pages of docs/ as those of an app: each example in them stands for the app."""
    package = name.replace("-", "_")
    stand_ins = {
        r"examples/[\w-]+": ".",
        r"python -m (kit|my_app\.kit)\.": f"python -m {package}.kit.",
    }
    for other in example_names():
        if other != example:
            stand_ins[rf"\b{other}\b"] = name
            stand_ins[rf"\b{package_of(ROOT / 'examples' / other)}\b"] = package
    pages = {}
    for page in PAGES:
        text = rename(own_page((ROOT / "docs" / f"{page}.md").read_text()))
        for pattern, replacement in stand_ins.items():
            text = re.sub(pattern, replacement, text)
        pages[page] = text
    return pages


def renamer(example: Path, name: str, publisher: str) -> Callable[[str], str]:
    """Return a function that replaces the example's names in a text by the new app's."""
    old_project = load_toml(example / "pyproject.toml")["project"]["name"]
    old_package, package = package_of(example), name.replace("-", "_")
    names = {
        'publisher = "flower-examples"': f'publisher = "{publisher}"',
        f"flower-examples/{example.name}": name,  # a folder for caches
        f'"flower-examples", "{example.name}"': f'"{name}"',  # the same
        "flower-examples": name,
        "FLOWER_EXAMPLES": package.upper(),
        "this example": "this app",
        example.name: name,
        old_project: name,
        old_package: package,
        old_package.upper(): package.upper(),
    }
    old = re.compile("|".join(map(re.escape, names)))
    return lambda text: old.sub(lambda match: names[match[0]], text)


def left_behind(example: Path) -> Callable[..., set[str]]:
    """Return `ignore` for `shutil.copytree`: files that git ignores, and our figures."""
    ignored = "\n".join((folder / ".gitignore").read_text() for folder in (ROOT, example))
    patterns = [line.rstrip("/") for line in ignored.splitlines() if not line.startswith("#")]
    return shutil.ignore_patterns(*patterns, "_static", "RESULTS.md")


def make(example: Path, target: Path, publisher: str) -> None:
    """Make the app, whole or not at all.

    Args:
        example: the folder of an example.
        target: the app's folder; must not exist, but its parent must.
        publisher: of the app, a part of its identity for Flower.
    """
    name, old_package = target.name, package_of(example)
    description = load_toml(example / "pyproject.toml")["project"]["description"]
    rename = renamer(example, name, publisher)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as folder:
        app = Path(folder, name)
        shutil.copytree(example, app, ignore=left_behind(example))
        package = (app / old_package).rename(app / name.replace("-", "_"))
        for path in app.rglob("*"):
            if path.is_file() and package / "kit" not in path.parents:
                path.write_text(rename(path.read_text()))
        for path in app.rglob("*.md"):
            if package / "kit" not in path.parents:
                path.write_text(own_page(path.read_text()))
        readme = app / "README.md"
        readme.write_text(own_readme(readme.read_text(), name, rename(description)))
        (app / "docs").mkdir()
        for page, text in own_docs(rename, example.name, name).items():
            (app / "docs" / f"{page}.md").write_text(text)
        shutil.copy(ROOT / "LICENSE", app)
        app.rename(target)


def next_steps(target: str) -> str:
    """Return what a user does now with an app, told by the path that they gave."""
    package = Path(target).resolve().name.replace("-", "_")
    return (
        f"Now:\n\n    cd {target}\n"
        "    python -m venv .venv && source .venv/bin/activate\n"
        "    pip install -e .\n"
        "    flwr run . --run-config offline.toml\n"
        f"    python -m {package}.kit.exam"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", help="a folder in examples/")
    parser.add_argument("target", help="where the app goes, ../my-app for instance")
    parser.add_argument("--publisher", default=PUBLISHER, help="of the app, in its pyproject.toml")
    arguments = parser.parse_args()
    target = Path(arguments.target).resolve()
    check(arguments.example, target)
    make(ROOT / "examples" / arguments.example, target, arguments.publisher)
    print(
        f"{target} is yours, made from {arguments.example}. {next_steps(arguments.target)}\n\n"
        "Its README.md says what to change, under Make it yours. The publisher, in "
        f'pyproject.toml, is "{arguments.publisher}".'
    )


if __name__ == "__main__":
    main()
