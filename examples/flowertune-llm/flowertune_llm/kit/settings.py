# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Settings: the run config as one typed, checked object."""

import json
import re
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, Self

SHARE = re.compile(r"(?!0+(\.0*)?%)\d{1,2}(\.\d+)?%")  # above 0% and below 100%
KINDS = {int: "whole number", float: "number", bool: "truth value", str: "text"}


def key(check: Any, allowed: str, name: str = "", *, may_change: bool = False) -> Any:
    """Declare a run-config key.

    Args:
        check: tells whether a value is valid.
        allowed: the valid values in words, for the error.
        name: of the key; by default the field's, with hyphens.
        may_change: whether a resumed run may have another value.
    """
    return field(
        metadata={"check": check, "allowed": allowed, "name": name, "may_change": may_change}
    )


def at_least(low: float, name: str = "", *, may_change: bool = False) -> Any:
    allowed = f"a number of at least {low}"
    return key(lambda v: low <= v < float("inf"), allowed, name, may_change=may_change)


def above(low: float, name: str = "", *, may_change: bool = False) -> Any:
    return key(lambda v: v > low, f"a number above {low}", name, may_change=may_change)


def positive(name: str = "", *, may_change: bool = False) -> Any:
    return key(lambda v: 0 < v < float("inf"), "a number above 0", name, may_change=may_change)


def fraction(
    name: str = "", *, zero: bool = False, one: bool = True, may_change: bool = False
) -> Any:
    bounds = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    return key(
        lambda v: (v >= 0 if zero else v > 0) and (v <= 1 if one else v < 1),
        f"a number in {bounds}",
        name,
        may_change=may_change,
    )


def one_of(*choices: Any, name: str = "", may_change: bool = False) -> Any:
    allowed = f"one of {', '.join(map(str, choices))}"
    return key(choices.__contains__, allowed, name, may_change=may_change)


def some_text(name: str = "", *, may_change: bool = False) -> Any:
    return key(lambda v: v.strip() != "", "a non-empty text", name, may_change=may_change)


def split_or_share(name: str = "") -> Any:
    return key(
        lambda v: SHARE.fullmatch(v) or (re.fullmatch(r"[^\W\d]\w*(\.\w+)*", v) and v != "train"),
        "the name of a split other than train, or a share of the training split, '20%'",
        name,
    )


def anything(allowed: str, name: str = "", *, may_change: bool = False) -> Any:
    return key(lambda v: True, allowed, name, may_change=may_change)


def true_or_false(name: str = "", *, may_change: bool = False) -> Any:
    return anything("true or false", name, may_change=may_change)


@dataclass(frozen=True)
class Settings:
    """The keys of `[tool.flwr.app.config]` that every example has; a subclass adds its own.

    pyproject.toml explains them. A subclass may declare a field again, to rename its key.
    """

    dataset: str = some_text()
    num_server_rounds: int = at_least(1, may_change=True)
    stop_after: int = at_least(0, may_change=True)
    min_replies: int = at_least(1, may_change=True)
    max_update_ratio: float = above(1, may_change=True)
    round_timeout: float = positive(may_change=True)
    seed: int = at_least(0)
    output_dir: str = some_text(may_change=True)
    resume_from: str = anything("a folder of an earlier run, or empty", may_change=True)

    @classmethod
    def from_run_config(cls, run_config: dict[str, Any]) -> Self:
        """Read and check every key of Flower's flat run config.

        Raises:
            ValueError: names the key, its value and what is allowed.
        """
        return cls(**cls.checked(run_config))

    @classmethod
    def checked(cls, run_config: dict[str, Any]) -> dict[str, Any]:
        """Return the checked value of each field that is a key; raises as above."""
        values = {}
        for f, name in cls.declared():
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

    @classmethod
    def declared(cls) -> Iterator[tuple[Field, str]]:
        """Yield each field that is a key, with the key's name."""
        for f in fields(cls):
            if "check" in f.metadata:
                yield f, f.metadata["name"] or f.name.replace("_", "-")

    @classmethod
    def key_of(cls, field_name: str) -> str:
        """Return the key of a field, for errors and logs."""
        return next(name for f, name in cls.declared() if f.name == field_name)

    @classmethod
    def may_change(cls) -> set[str]:
        """Return the keys that may have other values when a run is resumed."""
        return {name for f, name in cls.declared() if f.metadata["may_change"]}


def as_run_config(settings: dict[str, Any]) -> str:
    """Return {"a.b": 1} as `a.b=1`, the form that --run-config takes."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
