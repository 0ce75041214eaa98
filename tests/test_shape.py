"""All examples have the same shape: files, keys, pins and README sections."""

import re
import subprocess
from pathlib import Path

import pytest
from flwr.serverapp import strategy
from repository import ROOT, example_folder, example_names, flatten, load_toml, package_of

COMMON_KEYS = {"num-server-rounds", "seed", "dataset", "output-dir"}
# The section of a README that lists what to change.
CHANGES = r"\n## Make it yours\n([\s\S]*?)(?:\n## |\Z)"
TREE = r"\n## How it works\n[\s\S]*?\n```text\n([\s\S]*?)```"
# Beside what is tracked, what runs and environments leave in an example's folder.
LITTER = {"outputs", "wandb", "build", "dist"}

each_example = pytest.mark.parametrize("example", example_names())


def settings(example: str) -> dict:
    return load_toml(example_folder(example) / "pyproject.toml")


def package(example: str) -> str:
    return package_of(example_folder(example))


def test_examples_are_those_in_the_list():
    examples = sorted(example_names())
    assert examples
    tracked = subprocess.run(
        ["git", "ls-files", "examples/*/pyproject.toml"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    folders = [path.parent.name for path in (ROOT / "examples").glob("*/pyproject.toml")]
    assert sorted(folders) == examples
    assert not tracked or sorted(Path(path).parent.name for path in tracked) == examples


@each_example
def test_files(example):
    folder = example_folder(example)
    names = ["README.md", "SETTINGS.md", "RESULTS.md", "pyproject.toml", "offline.toml"]
    names += [".gitignore"]
    names += [f"{package(example)}/{n}.py" for n in ("client_app", "server_app", "task")]
    missing = [name for name in names if not (folder / name).is_file()]
    assert not missing
    assert list((folder / "tests").glob("test_*.py"))


@each_example
def test_flower_settings(example):
    app = settings(example)["tool"]["flwr"]["app"]
    assert app["components"] == {
        "serverapp": f"{package(example)}.server_app:app",
        "clientapp": f"{package(example)}.client_app:app",
    }
    assert app["config"].keys() >= COMMON_KEYS
    federations = settings(example)["tool"]["flwr"]["federations"]
    assert federations["default"] == "local-simulation"
    assert {"local-simulation", "local-sim-gpu"} <= federations.keys()


@each_example
def test_every_key_has_its_trade_off(example):
    text = (example_folder(example) / "pyproject.toml").read_text()
    section = text.split("[tool.flwr.app.config]")[1].split("\n[")[0]
    lines = [line for line in section.splitlines() if re.match(r"[\w.-]+ = ", line)]
    assert len(lines) > 5
    assert not [line for line in lines if " # " not in line]


@each_example
def test_offline_settings_are_known_keys(example):
    keys = flatten(settings(example)["tool"]["flwr"]["app"]["config"]).keys()
    offline = load_toml(example_folder(example) / "offline.toml")
    assert flatten(offline).keys() <= keys


def test_one_flwr_pin():
    def pin(path: Path) -> str:
        [line] = re.findall(r'"(flwr\[simulation\]==[^"]+)"', path.read_text())
        return line

    pins = {pin(path) for path in [ROOT / "pyproject.toml", *ROOT.glob("[!.]*/**/pyproject.toml")]}
    assert len(pins) == 1
    [version] = pins
    locked = re.findall(r"^flwr==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert locked == [version.replace("[simulation]", "")]


@each_example
def test_dependencies_are_bounded(example):
    dependencies = settings(example)["project"]["dependencies"]
    assert not [d for d in dependencies if "==" not in d and not ("<" in d and ">=" in d)]


def test_constraints_are_names_and_versions_only():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(lines) > 50
    assert not [line for line in lines if not re.match(r"[\w.-]+==[\w.+!]+( ; .*)?$", line)]


@each_example
def test_no_import_from_outside(example):
    """An example imports nothing of the repository but itself: people copy one folder."""
    for path in (example_folder(example) / package(example)).rglob("*.py"):
        modules = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
        ours = {"kit", *map(package, example_names())}
        assert {m.split(".")[0] for m in modules} & ours <= {package(example)}
        if path.name == "task.py":
            assert not [m for m in modules if m.split(".")[0] == "flwr"]


def test_readmes_have_the_same_sections_in_the_same_order():
    pages = [(example_folder(name) / "README.md").read_text() for name in example_names()]
    orders = [re.findall(r"^## (.*)$", page, re.MULTILINE) for page in pages]
    assert len(set(map(tuple, orders))) == 1, orders
    assert len(orders[0]) > 5


@each_example
def test_readme_is_read_in_minutes(example):
    text = (example_folder(example) / "README.md").read_text()
    assert len(text.split()) <= 1300
    lines = text.splitlines()
    assert lines.index("```bash") + 2 <= 25  # the first command


@each_example
def test_tree_is_the_folder(example):
    """The README's tree has what is in the folder and the package, each with its kind."""
    folder = example_folder(example)
    [tree] = re.findall(TREE, (folder / "README.md").read_text())
    shown, kinds = {package(example)}, {}
    for line in tree.splitlines():
        indent, name, kind = re.match(r"( *)(\S+)(?: +(yours|wing|kit) +\S.*)?$", line).groups()
        assert kind or name == f"{package(example)}/", line
        path = f"{package(example)}/{name}" if indent else name
        shown.add(path.rstrip("/"))
        kinds[name] = kind
    there = {
        str(path.relative_to(folder))
        for inside in (folder, folder / package(example))
        for path in inside.iterdir()
        if path.name not in {"__init__.py", "__pycache__", "_static", *LITTER}
        and not path.name.startswith(".")
        and path.suffix not in {".md", ".egg-info"}
    }
    assert shown == there
    assert [name for name, kind in kinds.items() if kind == "kit"] == ["kit/"]
    for name in (name for name, kind in kinds.items() if kind == "wing" and name.endswith("/")):
        wing = folder / package(example) / name / "__init__.py"
        assert "To leave this wing out" in wing.read_text().replace("to leave", "To leave")


@each_example
def test_what_to_change_is_there(example):
    """Each file, name and key that the README's list of changes has in backticks exists."""
    folder = example_folder(example)
    [text] = re.findall(CHANGES, (folder / "README.md").read_text())
    items = re.findall(r"^(?:\d+\.|-) (.*)$", text, re.MULTILINE)
    assert len(items) >= 4
    app = settings(example)["tool"]["flwr"]["app"]
    keys = {"name", *app, *flatten(app["config"])}
    for item in items:
        quoted = re.findall(r"`([^`]+)`", item)
        files = [word for word in quoted if word.endswith((".py", ".toml"))]
        paths = [folder / file for file in files] + [folder / package(example) / f for f in files]
        found = [path for path in paths if path.is_file()]
        assert len(found) == len(files), item
        code = [path for path in found if path.suffix == ".py"]
        code = code or list((folder / package(example)).rglob("*.py"))
        words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in code)))
        rest = [
            word for word in quoted if word not in files and word.split("=")[0].strip() not in keys
        ]
        names = re.findall(r"[A-Za-z_]\w*", " ".join(word.split("(")[0] for word in rest))
        assert not {*names} - words - {*strategy.__all__}, item
