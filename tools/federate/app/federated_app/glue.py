"""What lies between a script and its federation: random numbers, passes, figures."""

import io
import math
import random
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from numbers import Number
from typing import Any

import numpy as np
import torch

NUMBER = r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?"
PRINTED = re.compile(rf"(\w*(?:loss|acc)\w*)\W+?({NUMBER})(?:\s*/\s*({NUMBER}))?", re.IGNORECASE)
# Figures that differ from one run to the next, or are none of the model's.
LEFT_OUT = re.compile(r"time|per_second|flos|epoch|step")


def reseed(seed: int) -> None:
    """Start the random numbers of Python, NumPy and PyTorch anew."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def command_line(program: str, arguments: str) -> Iterator[None]:
    """Have the script read these words as its command line.

    Raises:
        ValueError: it refuses them.
    """
    before, said = sys.argv, io.StringIO()
    sys.argv = [program, *shlex.split(arguments)]
    try:
        with redirect_stderr(said):
            yield
    except SystemExit:
        why = said.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(
            f"run config: arguments = {arguments!r} is not valid; allowed: what the script takes "
            f"on its command line ({why})"
        ) from None
    finally:
        sys.argv = before


def passes(own: range, epochs: int) -> range:
    """Return the epochs to train: so many, counted as the script counts; 0 for all of its own."""
    return range(own.start, own.start + epochs * own.step, own.step) if epochs else own


def figures(result: Any, *names: str) -> dict[str, float]:
    """Return numbers by name, from what a function of the script returns.

    Args:
        result: a number, several, a dict of them or a list of dicts, or an object with `metrics`.
        names: of the numbers, in their order, where it is no dict.
    """
    result = getattr(result, "metrics", result)
    if isinstance(result, list) and result:  # one for each epoch, or for each loader
        result = {k: v for each in result for k, v in each.items()} if is_dicts(result) else result
        result = result[-1] if isinstance(result, list) else result
    if not isinstance(result, dict):
        values = result if isinstance(result, tuple) else (result,)
        result = dict(zip(names, values, strict=False))
    named = {short(name): value for name, value in result.items() if is_number(value)}
    chosen = {name: value for name, value in named.items() if not LEFT_OUT.search(name)}
    return {k: v.item() if isinstance(v, torch.Tensor) else float(v) for k, v in chosen.items()}


def is_dicts(values: list[Any]) -> bool:
    return all(isinstance(each, dict) for each in values)


def is_number(value: Any) -> bool:
    one = isinstance(value, torch.Tensor | np.ndarray) and math.prod(value.shape) == 1
    return one or (isinstance(value, Number) and not isinstance(value, bool))


def short(name: str) -> str:
    """Return a figure's name without what says in which phase it was measured."""
    name = re.sub(r"^(train|training|test|eval|val|valid)_", "", name)
    return re.sub(r"^acc$", "accuracy", name)


def printed(test: Callable[[], Any]) -> dict[str, float]:
    """Return losses and accuracies from what a test prints: `Loss: 0.3`, `accuracy = 9/10`.

    Raises:
        RuntimeError: there are none in it.
    """
    with redirect_stdout(io.StringIO()) as text:
        test()
    found = {
        "loss" if "loss" in name.lower() else "accuracy": float(value) / float(whole or 1)
        for name, value, whole in PRINTED.findall(text.getvalue())
    }
    if not found:
        raise RuntimeError(
            f"no loss or accuracy in what the test prints: {text.getvalue()[-200:]!r}; have it "
            "return them, and name them in evaluate() of task.py"
        )
    return found
