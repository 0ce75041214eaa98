"""The house keeps its shape: the same examples, files, keys, pins and README order everywhere."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from repository import flatten

ROOT = Path(__file__).parents[1]
EXAMPLES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flower-examples"][
    "examples"
]
PACKAGES = {
    "advanced-pytorch": "pytorch_example",
    "flowertune-llm": "flowertune_llm",
    "gpu-scaling": "gpu_scaling",
    "pytorch-from-centralized-to-federated": "centralized_to_federated",
}
COMMON_KEYS = {"num-server-rounds", "seed", "dataset", "output-dir"}
README_ORDER = [
    "What you learn",
    "Expected result",
    "Run it in one minute, offline",
    "Run it for real",
    "Settings",
    "What is logged, and where files go",
    "How it works, file by file",
    "Resume",
    "Deploy",
    "Troubleshooting",
    "What to change first when you copy it",
]

each_example = pytest.mark.parametrize("example", EXAMPLES)


def settings(example: str) -> dict:
    return tomllib.loads((ROOT / "examples" / example / "pyproject.toml").read_text())


def package(example: str) -> str:
    return PACKAGES.get(example, example.replace("-", "_"))


def test_examples_are_those_in_the_list():
    assert EXAMPLES
    tracked = subprocess.run(
        ["git", "ls-files", "examples/*/pyproject.toml"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    folders = [path.parent.name for path in (ROOT / "examples").glob("*/pyproject.toml")]
    assert sorted(folders) == sorted(EXAMPLES)
    assert not tracked or sorted(Path(path).parent.name for path in tracked) == sorted(EXAMPLES)


@each_example
def test_files(example):
    folder = ROOT / "examples" / example
    names = ["README.md", "pyproject.toml", "offline.toml", ".gitignore"]
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
    text = (ROOT / "examples" / example / "pyproject.toml").read_text()
    section = text.split("[tool.flwr.app.config]")[1].split("\n[")[0]
    lines = [line for line in section.splitlines() if re.match(r"[\w.-]+ = ", line)]
    assert len(lines) > 5
    assert not [line for line in lines if " # " not in line]


# Keys whose meaning or choices differ between the examples.
OWN_COMMENTS = {"dataset", "partitioning", "test-fraction", "cache-dir", "learning-rate"}
OWN_COMMENTS |= {"model.name", "wandb.mode"}


def test_a_key_of_one_meaning_has_one_comment():
    comments: dict[str, set[str]] = {}
    for example in EXAMPLES:
        text = (ROOT / "examples" / example / "pyproject.toml").read_text()
        section = text.split("[tool.flwr.app.config]")[1].split("\n[")[0]
        for key, why in re.findall(r"^([\w.-]+) = .+?\s+# (.+)$", section, re.MULTILINE):
            comments.setdefault(key.removeprefix("strategy."), set()).add(why)
    assert {key for key, found in comments.items() if len(found) > 1} == OWN_COMMENTS


@each_example
def test_offline_settings_are_known_keys(example):
    keys = flatten(settings(example)["tool"]["flwr"]["app"]["config"]).keys()
    offline = tomllib.loads((ROOT / "examples" / example / "offline.toml").read_text())
    assert flatten(offline).keys() <= keys


def test_one_flwr_pin():
    def pin(path: Path) -> str:
        [line] = re.findall(r'"(flwr\[simulation\]==[^"]+)"', path.read_text())
        return line

    pins = {pin(path) for path in [ROOT / "pyproject.toml", *ROOT.glob("*/*/pyproject.toml")]}
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
    for path in (ROOT / "examples" / example / package(example)).rglob("*.py"):
        modules = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
        own = {m.split(".")[0] for m in modules} & {package(e) for e in EXAMPLES}
        assert own <= {package(example)}
        if path.name == "task.py":
            assert not [m for m in modules if m.split(".")[0] == "flwr"]


@pytest.mark.parametrize(
    "name",
    [
        *("rounds.py", "replies.py", "errors.py", "checkpoint.py", "outputs.py", "plot.py"),
        *("keys.py", "node.py", "momentum.py"),
    ],
)
def test_copies_are_equal(name):
    """Each example is complete by itself, so some files stand in several: word for word.

    The name of the package, from which they import, is another one in each.
    """
    copies = list((ROOT / "examples").glob(f"*/*/{name}"))
    others = {
        "outputs.py": {"flowertune_llm"},
        "plot.py": {"pytorch_example", "flowertune_llm"},
    }
    copies = [path for path in copies if path.parent.name not in others.get(name, ())]
    assert len(copies) >= 2
    texts = {path.read_text().replace(path.parent.name, "package") for path in copies}
    assert len(texts) == 1


@pytest.mark.parametrize("start", ["**TLS and authentication.**", "**Clients that fail.**"])
def test_paragraphs_are_equal(start):
    """What several READMEs say of the same, they say in the same words."""
    found = [
        line.replace(example, "example").replace("`strategy.", "`")
        for example in EXAMPLES
        for line in (ROOT / "examples" / example / "README.md").read_text().splitlines()
        if line.startswith(start)
    ]
    assert len(found) >= 4  # gpu-scaling has more to say of what goes wrong
    assert len(set(found)) == 1


@each_example
def test_readme_order(example):
    text = (ROOT / "examples" / example / "README.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == README_ORDER


def names_in(path: Path) -> set[str]:
    """Return what a Python file defines, imports or sets, on modules, classes and objects."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Attribute(ctx=ast.Store()):
                names.add(node.attr)
            case ast.alias():
                names.add(node.asname or node.name)
    return names


@each_example
def test_what_to_change_is_there(example):
    """Each file, name and key that the README's last list has in backticks exists."""
    folder = ROOT / "examples" / example
    text = (folder / "README.md").read_text().split(f"\n## {README_ORDER[-1]}\n")[1]
    items = re.findall(r"^\d+\. (.*)$", text, re.MULTILINE)
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
        known = set.union(*map(names_in, code))
        names = {re.split(r"[ (]", word)[0] for word in quoted if word not in files} - keys
        assert not [name for name in names if not set(name.split(".")) <= known], item


@each_example
def test_bundle_holds_the_app_and_nothing_else(example, tmp_path):
    """`flwr build` leaves out what runs and environments leave behind."""
    app = tmp_path / "app"
    shutil.copytree(
        ROOT / "examples" / example, app, ignore=shutil.ignore_patterns("outputs", ".venv")
    )
    for litter in ("outputs/a/b/config.json", ".venv/lib/site.py", "wandb/x.py", "outputs/n.py"):
        (app / litter).parent.mkdir(parents=True, exist_ok=True)
        (app / litter).write_text("")
    flwr = Path(sys.executable).parent / "flwr"
    done = subprocess.run(
        [flwr, "build", "--app", app],
        cwd=tmp_path,
        env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [bundle] = tmp_path.glob("*.fab")
    names = [name for name in zipfile.ZipFile(bundle).namelist() if not name.startswith(".info")]
    assert f"{package(example)}/client_app.py" in names
    assert not [n for n in names if n.startswith(("outputs", ".venv", "wandb", "data"))]
    assert not [n for n in names if Path(n).suffix not in {".py", ".toml", ".md", ""}]
    assert bundle.stat().st_size < 400_000
