"""An app made from an example: the user's names throughout, nothing of this repository."""

import re
import shutil
import subprocess
import sys

import pytest
from new_app import PAGES, make
from repository import ROOT, example_names, flatten, flower_settings, load_toml, package_of
from test_kit import files
from test_readme_commands import dangling

NAME, PACKAGE = "my-own-app", "my_own_app"
# Mentions of this repository, and of its figures, in a page.
OURS = ("<!--", "_static", "tools/", "`make ", "benchmarks/", "*Measured", "figures above")
OURS += ("repository", "This example", "examples/", "RESULTS.md", "CONTRIBUTING", "](../../")


def new_app(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "new_app.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def spellings(name: str) -> set[str]:
    return {name.replace("-", "_"), name.replace("_", "-"), re.sub("[-_]", "", name)}


@pytest.mark.parametrize("example", example_names())
def test_app_has_its_own_names_and_nothing_of_ours(example, tmp_path):
    done = new_app(example, tmp_path / NAME, "--publisher", "my-team")
    assert done.returncode == 0, done.stderr
    assert f"cd {tmp_path / NAME}" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [NAME]  # nothing half-made beside it

    app, original = tmp_path / NAME, ROOT / "examples" / example
    settings, old = (load_toml(folder / "pyproject.toml") for folder in (app, original))
    assert settings["project"]["name"] == NAME
    assert settings["tool"]["flwr"]["app"]["publisher"] == "my-team"
    assert settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [PACKAGE]
    assert settings["tool"]["flwr"]["app"]["components"] == {
        "serverapp": f"{PACKAGE}.server_app:app",
        "clientapp": f"{PACKAGE}.client_app:app",
    }
    scripts = settings["project"].get("scripts", {})
    assert all(entry.startswith(f"{PACKAGE}.") for entry in scripts.values())

    taken = {example, old["project"]["name"], package_of(original), "flower-examples"}
    unwanted = set.union(*map(spellings, taken))
    assert files(app / PACKAGE / "kit") == files(ROOT / "kit")
    for path in app.rglob("*"):
        assert not [name for name in unwanted if name in str(path.relative_to(app)).lower()]
        if path.is_file():
            text = path.read_text()
            assert not [name for name in unwanted if name in text.lower()], path
            assert path.suffix != ".py" or compile(text, str(path), "exec")


@pytest.mark.parametrize("example", example_names())
def test_app_has_what_git_knows_of_the_example(example, tmp_path):
    original = tmp_path / example
    shutil.copytree(ROOT / "examples" / example, original)
    for litter in ("outputs/a/results.json", ".venv/lib/site.py", "tests/__pycache__/x.pyc"):
        (original / litter).parent.mkdir(parents=True, exist_ok=True)
        (original / litter).write_text("")
    make(original, tmp_path / NAME, "me")

    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=ROOT / "examples" / example, capture_output=True, text=True
    ).stdout.splitlines()
    if not listed:
        pytest.skip("this is no checkout: git does not know the files")
    there = {line for line in listed if (ROOT / "examples" / example / line).is_file()}
    kept = {line for line in there if not line.startswith(("_static/", "RESULTS.md"))}
    package = package_of(original)
    made = {
        str(p.relative_to(tmp_path / NAME)) for p in tmp_path.glob(f"{NAME}/**/*") if p.is_file()
    }
    named = {re.sub(rf"^{package}/", f"{PACKAGE}/", line) for line in kept}
    assert made == named | {"LICENSE"} | {f"docs/{page}.md" for page in PAGES}


@pytest.mark.parametrize("example", example_names())
def test_readme_is_that_of_the_app(example, tmp_path):
    app = tmp_path / NAME
    assert new_app(example, app).returncode == 0
    text = (app / "README.md").read_text()
    assert text.startswith(f"# {NAME}\n\n")
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    original = (ROOT / "examples" / example / "README.md").read_text()
    assert ["What you learn", *sections] == re.findall(r"^## (.*)$", original, re.MULTILINE)
    keys = flatten(flower_settings(app)["app"]["config"])
    settings = (app / "SETTINGS.md").read_text()
    assert not [key for key in keys if f"\n| `{key}` | `" not in settings]


@pytest.mark.parametrize("example", example_names())
def test_pages_of_the_app_are_its_own(example, tmp_path):
    """Its README, and docs/: no word of this repository, no link to nowhere, no lost section."""
    app = tmp_path / NAME
    assert new_app(example, app).returncode == 0
    pages = [path for path in app.rglob("*.md") if "kit" not in path.parts]
    assert {f"docs/{page}.md" for page in PAGES} < {str(p.relative_to(app)) for p in pages}
    for page in pages:
        text = page.read_text()
        assert not [words for words in OURS if words in text], page
        assert not re.search(r"^##+ .*\n+(?=#{1,2} |\Z)", text, re.MULTILINE), page
        assert not [name for name in example_names() if name in text], page
        assert not dangling(page), page


def test_a_name_that_holds_the_examples_is_given_once(tmp_path):
    app = tmp_path / "my-vit-finetune"
    assert new_app("vit-finetune", app).returncode == 0
    assert (app / "README.md").read_text().startswith("# my-vit-finetune\n")
    assert load_toml(app / "pyproject.toml")["project"]["name"] == "my-vit-finetune"
    assert not [p for p in app.rglob("*") if p.is_file() and re.search("my[-_]my", p.read_text())]


@pytest.mark.parametrize(
    ("example", "target", "why"),
    [
        ("nope", "my-app", "there is no example 'nope'; there are pytorch-from-"),
        ("vit-finetune", "My App", "'My App', the last part of the path, is to be its name: up to"),
        ("vit-finetune", "my_app", "single hyphens between them"),
        ("vit-finetune", "a" * 33, "up to 32 small letters"),
        ("vit-finetune", "class", "`import class` means something else already"),
        ("vit-finetune", "json", "`import json` means something else already"),
        ("vit-finetune", "torch", "`import torch` means something else already"),
        ("vit-finetune", "flwr-datasets", "`import flwr_datasets` means something else"),
        ("vit-finetune", "tests", "`import tests` means something else already"),
        ("pytorch-from-centralized-to-federated", "cifar", "`import cifar` means something else"),
        ("vit-finetune", "there", "there exists already"),
        ("vit-finetune", "no/such/my-app", "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(example, target, why, tmp_path):
    (tmp_path / "there").mkdir()
    done = new_app(example, tmp_path / target)
    assert done.returncode == 1
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_app_in_this_repository_is_refused_but_in_examples():
    done = new_app("vit-finetune", ROOT / "my-app")
    assert done.returncode == 1
    assert "is in this repository" in done.stderr


def test_a_copy_that_fails_leaves_nothing(tmp_path):
    """It fails half-way, at a file that is not text."""
    example = tmp_path / "vit-finetune"
    shutil.copytree(ROOT / "examples" / "vit-finetune", example)
    (example / "vit_finetune" / "zzz.bin").write_bytes(b"\xff\xfe")
    (tmp_path / "apps").mkdir()
    with pytest.raises(UnicodeDecodeError):
        make(example, tmp_path / "apps" / NAME, "me")
    assert not list((tmp_path / "apps").iterdir())
