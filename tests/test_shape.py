"""The house keeps its shape: the same examples, files, keys, pins and README order everywhere."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import federation
import gpu_scaling.federation
import pytest
from centralized_to_federated import task as cifar
from gpu_scaling import decoding
from on_this_machine import BIN
from repository import ROOT, example_folder, example_names, flatten, load_toml, package_of

COMMON_KEYS = {"num-server-rounds", "seed", "dataset", "output-dir"}
README_ORDER = [
    "What you learn",
    "Expected result",
    "Run it offline",
    "Run it for real",
    "Settings",
    "What is logged, and where files go",
    "How it works, file by file",
    "Resume",
    "Deploy",
    "Troubleshooting",
    "What to change first when you copy it",
]

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
    text = (example_folder(example) / "pyproject.toml").read_text()
    section = text.split("[tool.flwr.app.config]")[1].split("\n[")[0]
    lines = [line for line in section.splitlines() if re.match(r"[\w.-]+ = ", line)]
    assert len(lines) > 5
    assert not [line for line in lines if " # " not in line]


# Keys whose meaning or choices differ between the examples.
OWN_COMMENTS = {"dataset", "partitioning", "test-fraction", "cache-dir", "learning-rate"}
OWN_COMMENTS |= {"model.name", "wandb.mode"}


def test_a_key_of_one_meaning_has_one_comment():
    comments: dict[str, set[str]] = {}
    for example in example_names():
        text = (example_folder(example) / "pyproject.toml").read_text()
        section = text.split("[tool.flwr.app.config]")[1].split("\n[")[0]
        for key, why in re.findall(r"^([\w.-]+) = .+?\s+# (.+)$", section, re.MULTILINE):
            comments.setdefault(key.removeprefix("strategy."), set()).add(why)
    assert {key for key, found in comments.items() if len(found) > 1} == OWN_COMMENTS


@each_example
def test_offline_settings_are_known_keys(example):
    keys = flatten(settings(example)["tool"]["flwr"]["app"]["config"]).keys()
    offline = load_toml(example_folder(example) / "offline.toml")
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
    for path in (example_folder(example) / package(example)).rglob("*.py"):
        modules = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
        own = {m.split(".")[0] for m in modules} & {package(e) for e in example_names()}
        assert own <= {package(example)}
        if path.name == "task.py":
            assert not [m for m in modules if m.split(".")[0] == "flwr"]


COPIES = ["rounds.py", "replies.py", "errors.py", "checkpoint.py", "outputs.py", "plot.py"]
COPIES += ["keys.py", "node.py", "momentum.py"]


@pytest.mark.parametrize("name", [*COPIES, "tests/running.py", ".gitignore"])
def test_copies_are_equal(name):
    """Each example is complete by itself, so some files stand in several: word for word.

    The name of the package, from which they import, is another one in each.
    """
    others = {
        "outputs.py": {"flowertune_llm"},
        "plot.py": {"pytorch_example", "flowertune_llm"},
        "momentum.py": {"flowertune_llm"},  # plain FedAvg
    }
    texts = []
    for example in example_names():
        if package(example) not in others.get(name, ()):
            path = example_folder(example) / (package(example) if name in COPIES else "") / name
            texts.append(path.read_text().replace(package(example), "package"))
    assert len(texts) >= 2
    assert len(set(texts)) == 1


FUNCTIONS = {"run_config": 5, "finished": 5, "state_of": 5, "history_in": 5}
FUNCTIONS |= {"load_rows": 5, "load_images": 4}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_equal(name):
    """As the files above: where the rest of a file is the example's own."""
    texts = []
    for path in (ROOT / "examples").glob("*/*/*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                texts.append(ast.unparse(node))
    assert len(texts) == FUNCTIONS[name]
    assert len(set(texts)) == 1


def test_digits_in_the_form_of_cifar_are_equal():
    assert inspect.getsource(cifar.load_digits) == inspect.getsource(decoding.load_digits)


@pytest.mark.parametrize("copy", ["superlink.py", "executors/orphans.py"])
def test_gpu_scaling_and_the_tools_have_the_same_files(copy):
    """It starts a federation of its own, and is to be copied alone."""
    folder = example_folder("gpu-scaling") / "gpu_scaling"
    assert (folder / copy).read_bytes() == (ROOT / "tools" / Path(copy).name).read_bytes()


@pytest.mark.parametrize("name", ["cores", "free_addresses", "answers"])
def test_gpu_scaling_and_the_tools_have_the_same_functions(name):
    ours, copy = (inspect.getsource(getattr(m, name)) for m in (federation, gpu_scaling.federation))
    assert ours == copy


@pytest.mark.parametrize(
    "start", ["**TLS and authentication.**", "**Clients that fail.**", "**Installation.**"]
)
def test_paragraphs_are_equal(start):
    """What several READMEs say of the same, they say in the same words."""
    found = [
        line.replace(example, "example").replace("`strategy.", "`")
        for example in example_names()
        for line in (example_folder(example) / "README.md").read_text().splitlines()
        if line.startswith(start)
    ]
    assert len(found) >= 4  # gpu-scaling has more to say of what goes wrong
    assert len(set(found)) == 1


@each_example
def test_readme_order(example):
    text = (example_folder(example) / "README.md").read_text()
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
    folder = example_folder(example)
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
    shutil.copytree(example_folder(example), app, ignore=shutil.ignore_patterns("outputs", ".venv"))
    for litter in ("outputs/a/b/config.json", ".venv/lib/site.py", "wandb/x.py", "outputs/n.py"):
        (app / litter).parent.mkdir(parents=True, exist_ok=True)
        (app / litter).write_text("")
    done = subprocess.run(
        [BIN / "flwr", "build", "--app", app],
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
