"""The examples of this repository and their declarations, for tools and tests."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def load_toml(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return tomllib.load(file)


def example_names() -> list[str]:
    """Return the names of the examples, as listed in the root pyproject.toml."""
    return load_toml(ROOT / "pyproject.toml")["tool"]["flower-examples"]["examples"]


def example_folder(name: str) -> Path:
    """Return an example's folder.

    Raises:
        SystemExit: there is no such example.
    """
    if name not in example_names():
        raise SystemExit(f"EXAMPLE={name}: no such example; there are {', '.join(example_names())}")
    return ROOT / "examples" / name


def flower_settings(folder: Path) -> dict[str, Any]:
    """Return [tool.flwr] of an app: its components, run config and federations."""
    return load_toml(folder / "pyproject.toml")["tool"]["flwr"]


def package_of(app: Path) -> str:
    return flower_settings(app)["app"]["components"]["serverapp"].split(".")[0]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}, the form of Flower's run config."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
