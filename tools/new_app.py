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
# Generated parts of a README that are true for the new app, too.
OWN_PARTS = ("settings", "code", "addition", "offline")
FIRST_SECTION = "\n## Run it offline\n"  # what stands before it is about the example
# Mentions of the repository, or of its figures, in a README.
REWORDED = {
    r" \*Measured on [^*]+\*": "",
    r"(\*\*TLS and authentication\.\*\*) In a clone of .*? In short: s": r"\1 S",
    r"No GPU figure has been taken yet: .*\n\n": "",
    r", see above\.": ".",
    r"(## What to change first) when you copy it": r"\1",
    r"\d+\. \*\*The names\*\*: .*\n": "",
}


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
    """Return the README of an app made from an example.

    How to run it, its settings, files and troubleshooting stay. What the example teaches, its
    figures, and links to the rest of the repository go.
    """
    text = f"# {name}\n\n{description}.\n{FIRST_SECTION}{text.split(FIRST_SECTION)[1]}"
    for part in OWN_PARTS:
        text = re.sub(rf"<!-- (begin|end): {part} -->\n", "", text)
    text = re.sub(r"<!-- begin: ([\w-]+) -->.*?<!-- end: \1 -->\n\n?", "", text, flags=re.DOTALL)
    for pattern, replacement in REWORDED.items():
        text = re.sub(pattern, replacement, text)
    return text


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
        readme = app / "README.md"
        readme.write_text(own_readme(readme.read_text(), name, rename(description)))
        shutil.copy(ROOT / "LICENSE", app)
        app.rename(target)


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
        f"{target} is yours, made from {arguments.example}. Now:\n\n"
        f"    cd {arguments.target}\n"
        "    pip install -e .\n"
        "    flwr run . --run-config offline.toml\n\n"
        "The end of its README.md says what to change first. The publisher, in pyproject.toml, is "
        f'"{arguments.publisher}".'
    )


if __name__ == "__main__":
    main()
