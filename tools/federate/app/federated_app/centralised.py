"""The centralised question: does one client with all the data train as the script does?

    python -m federated_app.centralised

The script itself is run, from the copy in own/, up to the end of its training; then a federation of
one client, for one round of as many epochs. Both start from the same weights and random numbers.
What the script does between its epochs, and `train` in task.py does not, gets random numbers of
its own. Prints whether the weights are the same, bit for bit, or where they part; exits with 1 if
they do.
"""

import argparse
import ast
import contextlib
import io
import logging
import random
import shlex
import sys
import tempfile
import tomllib
import traceback
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.common.config import get_fused_config_from_dir, parse_config_args
from safetensors.numpy import load_file
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from federated_app import glue, parts, task
from federated_app.config import Config
from federated_app.kit import app_folder, models
from federated_app.kit.in_process import pytorch_threads, run_app, threads_of_a_client
from federated_app.kit.replies import Arrays
from federated_app.kit.run import CHECKPOINT
from federated_app.kit.seeds import derive_seed

ALONE = {"num-server-rounds": 1, "min-replies": 1, "fraction-evaluate": 0.0, "resume-from": ""}


class Trained(BaseException):
    """The end of the script's training; what it does then is not asked for."""


class Verdict(NamedTuple):
    """Whether the weights are the same, and that in words."""

    same: bool
    text: str


class Steps:
    """What an optimizer did: after each step, a checksum of each tensor, and its settings."""

    def __init__(self) -> None:
        self.checksums: list[list[int]] = []
        self.settings: list[dict[str, Any]] = []
        self.tensors: list[nn.Parameter] = []
        self.every: dict[int, nn.Parameter] = {}  # of all optimizers, by identity
        self.others = 0  # of these, tensors that are not the model's
        self.names: list[str] = []  # of the tensors
        self.examples = 0  # that are trained on, where that is known

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        handle = register_optimizer_step_post_hook(self.note)
        try:
            yield
        finally:
            handle.remove()

    def name(self, network: nn.Module) -> None:
        """Note the tensors' names in a network."""
        known = {id(value): name for name, value in network.named_parameters()}
        self.names = [known.get(id(value), "a tensor") for value in self.tensors]
        self.others = len(self.every.keys() - known.keys())

    def note(self, optimizer: Optimizer, *_: Any) -> None:
        self.tensors = [value for group in optimizer.param_groups for value in group["params"]]
        self.every |= {id(value): value for value in self.tensors}
        self.checksums.append([zlib.crc32(bits(value)) for value in self.tensors])
        numbers = {k: v for k, v in optimizer.param_groups[0].items() if isinstance(v, int | float)}
        self.settings.append(numbers)


def bits(value: torch.Tensor) -> np.ndarray:
    return value.detach().cpu().flatten().view(torch.uint8).numpy()


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Put the random numbers back to where they were."""
    python, numpy_ = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy_)


@contextlib.contextmanager
def saved_in_memory() -> Iterator[None]:
    """Keep what `torch.save` writes in memory: the user's files stay as they are."""
    save, load, kept = torch.save, torch.load, dict[Path, bytes]()

    def keep(value: Any, file: Any, *more: Any, **options: Any) -> None:
        named = isinstance(file, str | Path)
        target = io.BytesIO() if named else file
        save(value, target, *more, **options)
        if named:
            kept[Path(file).absolute()] = target.getvalue()

    def read(file: Any, *more: Any, **options: Any) -> Any:
        known = kept.get(Path(file).absolute()) if isinstance(file, str | Path) else None
        return load(io.BytesIO(known) if known else file, *more, **options)

    torch.save, torch.load = keep, read
    try:
        yield
    finally:
        torch.save, torch.load = save, load


def threads() -> int:
    """Return the number of threads that a client of this app has."""
    text = (app_folder() / "pyproject.toml").read_text()
    return threads_of_a_client(tomllib.loads(text)["tool"]["flwr"])


def call(name: str, *arguments: str) -> ast.expr:
    return ast.parse(f"{name}({', '.join(arguments)})", mode="eval").body


class Marked(ast.NodeTransformer):
    """The script with a call before its training and one after, found by their lines."""

    def visit(self, node: ast.AST) -> Any:
        self.generic_visit(node)
        if not isinstance(node, ast.stmt):
            return node
        lines, about = (node.lineno, node.end_lineno), task.TRAINING
        if lines == about["lines"]:
            names = (about["model"], about["data"])
            before, after = call("__begins__", *names), call("__ends__", about["model"])
            return [ast.Expr(before), node, ast.Expr(after)]
        if lines in about["aside"]:
            return ast.With([ast.withitem(call("__aside__"))], [node])
        return node


def script_alone(config: Config, initial: Arrays, steps: Steps) -> Arrays:
    """Run the script's own training and return the weights."""
    seed, kept = derive_seed(config.seed, 1, 0), {}
    if not task.TRAINING:  # the script calls its functions nowhere
        network, both = task.build(config), task.data(config)
        models.load(network, initial)
        with steps.watched():
            network, _ = task.train(config, seed, network, *both)
        steps.name(network)
        return models.to_arrays(network)

    def begins(network: nn.Module, data: Any) -> None:
        models.load(network, initial)
        steps.examples = parts.size(data)
        glue.reseed(seed)

    def ends(network: nn.Module) -> None:
        steps.name(network)
        kept.update(models.to_arrays(network))
        raise Trained

    path = Path(task.script.__file__)
    tree = ast.fix_missing_locations(Marked().visit(ast.parse(path.read_bytes())))
    module = types.ModuleType("__main__")
    module.__dict__.update(
        __file__=str(path), __begins__=begins, __ends__=ends, __aside__=own_random_numbers
    )
    own = sys.modules["__main__"], sys.argv, sys.path[:]
    arguments = shlex.split(getattr(config, "arguments", ""))
    try:
        sys.modules["__main__"], sys.argv = module, [path.name, *arguments]
        sys.path.insert(0, str(path.parent))
        glue.reseed(config.seed)
        with steps.watched(), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(tree, path, "exec"), module.__dict__)
    except Trained:
        return kept
    except Exception as error:
        where = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        raise ValueError(
            f"{path.name} itself ends with {type(error).__name__}, line {where[-1]}: {error}"
        ) from error
    finally:
        sys.modules["__main__"], sys.argv, sys.path[:] = own
    raise RuntimeError(f"{path.name} ended before its training did, lines {task.TRAINING['lines']}")


def alone(run_config: dict[str, Any]) -> Arrays:
    """Return the weights after the script's own training; the settings are pyproject.toml's."""
    config = Config.from_run_config(run_config)
    with saved_in_memory():
        arrays = script_alone(config, models.to_arrays(task.build(config)), Steps())
    return {name: np.atleast_1d(value) for name, value in arrays.items()}  # as they are sent


def one_client(overrides: dict[str, Any], steps: Steps) -> Arrays:
    """Run the federation of one client for one round and return the weights."""
    with tempfile.TemporaryDirectory() as folder:
        with steps.watched(), contextlib.redirect_stdout(io.StringIO()):
            run_app(app_folder(), 1, overrides | {"output-dir": folder})
        [path] = Path(folder).glob(f"*/*/{CHECKPOINT}")
        arrays = load_file(path)
    return {
        name.removeprefix("arrays/"): value
        for name, value in arrays.items()
        if name.startswith("arrays/")
    }


def compare(overrides: dict[str, Any] | None = None) -> Verdict:
    """Train both and compare; `overrides` is what differs from the run config."""
    known = get_fused_config_from_dir(app_folder(), {})
    epochs = {"local-epochs": 0} if "local-epochs" in known else {}
    overrides = (overrides or {}) | ALONE | epochs
    config = Config.from_run_config(known | overrides)
    try:
        parts.load(config, 0, 1)
    except TypeError as why:
        raise ValueError(why) from why
    initial = models.to_arrays(task.build(config))
    script, client = Steps(), Steps()
    with saved_in_memory():
        with pytorch_threads(threads()):
            expected = script_alone(config, initial, script)
        arrays = one_client(overrides, client)
    counts = f"{len(expected)} tensors, {len(script.checksums)} steps"
    if all(same(value, arrays[name]) for name, value in expected.items()):
        moved = [name for name, value in initial.items() if not same(value, expected[name])]
        if not moved:
            return Verdict(False, f"Neither changes any weight ({counts}): nothing was trained")
        if script.others:
            return Verdict(
                False,
                f"The model's weights are the same ({counts}), but the script also trains tensors "
                f"that are not the model's ({script.others}): a federation would begin anew with "
                "them in each round. Make them a part of the model",
            )
        return Verdict(True, f"The same weights, bit for bit ({counts})")
    client.examples = parts.size(parts.load(config, 0, 1)[0])
    again = Steps()
    with pytorch_threads(threads()):
        repeated = script_alone(config, initial, again)
    reason = where_they_part(script, client)
    if not all(same(value, repeated[name]) for name, value in expected.items()):
        reason += "; and the script's own training does not repeat with the same random numbers"
    gaps = {
        name: float(np.abs(value.astype(np.float64) - arrays[name]).max(initial=0.0))
        for name, value in expected.items()
    }
    worst = max(gaps, key=gaps.__getitem__)
    return Verdict(
        False,
        f"Not the same weights, {gaps[worst]:.3g} apart at most, in {worst} ({counts}). {reason}",
    )


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()


def where_they_part(script: Steps, client: Steps) -> str:
    """Return the first step and tensor that differ, with the probable reason."""
    if client.examples and script.examples and client.examples != script.examples:
        return (
            f"The script trains on {script.examples} examples, the client on {client.examples}: "
            "data() of task.py gives other data"
        )
    pairs = list(zip(script.checksums, client.checksums, strict=False))
    step = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if step is None:
        if len(script.checksums) != len(client.checksums):
            return (
                f"All steps are the same as far as they go, but the script takes "
                f"{len(script.checksums)}, the client {len(client.checksums)}: another number of "
                "epochs, or a loop that ends early"
            )
        return "All steps are the same: what differs is moved by no optimizer of PyTorch's"
    a, b = pairs[step]
    tensor = next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), 0)
    where = f"They part at step {step + 1}, in {script.names[tensor]}"
    theirs, ours = script.settings[step], client.settings[step]
    other = [f"{key} = {v}, not {ours.get(key)}" for key, v in theirs.items() if ours.get(key) != v]
    if other:
        return f"{where}: there the script's optimizer has {', '.join(other)} as in train()"
    if step == 0:
        return (
            f"{where}, the first: probably another first batch or another dropout, from random "
            "numbers drawn before it, or an example that another process would read differently"
        )
    return (
        f"{where}: the settings of the optimizer are the same, so probably random numbers were "
        "drawn in between, or the sum of another number of threads rounds otherwise"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run-config", action="append", default=[], help="'key=value key=value'")
    overrides = parse_config_args(parser.parse_args().run_config)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        verdict = compare(overrides)
    except ValueError as why:
        verdict = Verdict(False, f"This cannot be asked: {why}")
    print(verdict.text)
    return int(not verdict.same)


if __name__ == "__main__":
    sys.exit(main())
