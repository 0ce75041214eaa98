"""What a key of the run config may be, and how all of them are read and checked."""

from dataclasses import field, fields
from typing import Any

KINDS = {int: "whole number", float: "number", bool: "truth value", str: "text"}


def key(check: Any, allowed: str, name: str = "") -> Any:
    """Declare a run-config key.

    Args:
        check: tells whether a value is valid.
        allowed: what is, for the error.
        name: of the key, where it is not the field's with hyphens.
    """
    return field(metadata={"check": check, "allowed": allowed, "name": name})


def at_least(low: float, name: str = "") -> Any:
    return key(lambda v: low <= v < float("inf"), f"a number of at least {low}", name)


def positive(name: str = "") -> Any:
    return key(lambda v: 0 < v < float("inf"), "a number above 0", name)


def fraction(name: str = "", *, zero: bool = False, one: bool = True) -> Any:
    bounds = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    return key(
        lambda v: (v >= 0 if zero else v > 0) and (v <= 1 if one else v < 1),
        f"a number in {bounds}",
        name,
    )


def one_of(*choices: Any, name: str = "") -> Any:
    return key(choices.__contains__, f"one of {', '.join(map(str, choices))}", name)


def some_text(name: str = "") -> Any:
    return key(lambda v: v.strip() != "", "a non-empty text", name)


def anything(allowed: str, name: str = "") -> Any:
    return key(lambda v: True, allowed, name)


def checked(config: type, run_config: dict[str, Any]) -> dict[str, Any]:
    """Return the value of each field of a dataclass that was declared as a key.

    Args:
        config: the dataclass.
        run_config: Flower's, flat.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    values = {}
    for f in fields(config):
        if "check" not in f.metadata:
            continue
        name = f.metadata["name"] or f.name.replace("_", "-")
        if name not in run_config:
            raise ValueError(f"run config: key '{name}' is missing; pyproject.toml lists all")
        value = run_config[name]
        if f.type is float and type(value) is int:
            value = float(value)
        if type(value) is not f.type or not f.metadata["check"](value):
            raise ValueError(
                f"run config: {name} = {run_config[name]!r} is not valid; "
                f"allowed: {f.metadata['allowed']} ({KINDS[f.type]})"
            )
        values[f.name] = value
    return values
