# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Any Flower strategy, as the loop sees it: its layers, its weight, and its state."""

from collections.abc import Collection, Iterator
from copy import deepcopy
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.common import log
from flwr.serverapp.strategy import Strategy

from .buffers import OnlyTrained

PLAIN = (bool, int, float, str, type(None))
# Attributes with which Flower's strategies draw clients, set to take all: the loop draws.
SAMPLING = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
}


def layers(strategy: Strategy, path: str = "") -> Iterator[tuple[str, Strategy]]:
    """Yield a strategy and those that it wraps, each with its path ("", "strategy.", …)."""
    yield path, strategy
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            yield from layers(value, f"{path}{name}.")


def only_trained(strategy: Strategy, buffers: Collection[str]) -> Strategy:
    """Show the innermost of wrapped strategies only the trained arrays.

    Wrappers, privacy for instance, see the buffers, too.
    """
    if not buffers:
        return strategy
    *outer, (_, innermost) = layers(strategy)
    inner = OnlyTrained(innermost, buffers, weight_key(innermost))
    for _, wrapper in outer:
        for name, value in vars(wrapper).items():
            if value is innermost:
                setattr(wrapper, name, inner)
    return strategy if outer else inner


def take_all(strategy: Strategy) -> None:
    """Make a strategy take every node that it sees.

    Raises:
        ValueError: it has a share of its own to draw.
    """
    for _, layer in layers(strategy):
        for name, value in SAMPLING.items():
            own = vars(layer).get(name)
            if name.startswith("fraction") and own not in (None, 0.0, 1.0):
                raise ValueError(
                    f"{type(layer).__name__}({name}={own}): the loop draws the clients; give the "
                    f"share to it, draw=Draw(...), and leave {name} out"
                )
            if own:
                vars(layer)[name] = value


def weight_key(strategy: Strategy) -> str:
    """Return the metric by which a strategy weighs clients."""
    found = [vars(layer).get("weighted_by_key") for _, layer in layers(strategy)]
    return next(filter(None, found), "num-examples")


class Keeper:
    """The state of a strategy between rounds, to be saved with the run.

    It is the strategy's `state_dict()`, if it has one; else all attributes that hold arrays, or
    have changed since the keeper was made. Each wrapped strategy has its own. A changed attribute
    that cannot be saved is logged once.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.made = {
            path: {name: deepcopy(v) if is_kept(v) else v for name, v in vars(layer).items()}
            for path, layer in layers(strategy)
        }
        self.told: set[str] = set()

    def state(self) -> dict[str, Any]:
        """Return the state: the strategy's name, and what each layer keeps."""
        kept = {path: self.of(path, layer) for path, layer in layers(self.strategy)}
        return {"strategy": self.name, "kept": kept}

    @property
    def name(self) -> str:
        """Name of the strategy's class, and of those that it wraps."""
        return " around ".join(type(layer).__name__ for _, layer in layers(self.strategy))

    def of(self, path: str, layer: Any) -> dict[str, Any]:
        if hasattr(layer, "state_dict"):
            return layer.state_dict()
        made, kept = self.made.get(path, {}), {}
        for name, value in vars(layer).items():
            if not is_kept(value):
                if value is not made.get(name):
                    self.tell(f"{type(layer).__name__}.{name}", value)
            elif holds_arrays(value) or name not in made or value != made[name]:
                kept[name] = value
        return kept

    def tell(self, name: str, value: Any) -> None:
        """Warn, once, of an attribute that a resumed run would not have."""
        if name not in self.told:
            self.told.add(name)
            message = "%s is a %s, which is not saved: a resumed run begins it anew; see state_dict"
            log(WARNING, message, name, type(value).__name__)

    def restore(self, state: dict[str, Any]) -> None:
        """Give the strategy its saved state; a new run's is empty.

        Raises:
            ValueError: the state is another strategy's.
        """
        if state and state["strategy"] != self.name:
            raise ValueError(
                f"resume-from: the strategy was {state['strategy']} and is {self.name} now; "
                "set it back, or start a new run without resume-from"
            )
        for path, layer in layers(self.strategy):
            kept = state.get("kept", {}).get(path, {})
            if hasattr(layer, "load_state_dict"):
                layer.load_state_dict(kept)
            else:
                vars(layer).update(kept)


def is_kept(value: Any) -> bool:
    """Tell whether a value can be written into a checkpoint."""
    if isinstance(value, dict | ArrayRecord):
        return all(isinstance(k, PLAIN) and is_kept(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_kept, value))
    return isinstance(value, (*PLAIN, bytes, np.ndarray, np.generic, Array))


def holds_arrays(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(holds_arrays, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_arrays, value))
    return isinstance(value, np.ndarray | Array | ArrayRecord)


def pack(value: Any, tensors: dict[str, np.ndarray]) -> Any:
    """Return a kept value as JSON; its arrays go into `tensors`, under names in the JSON."""

    def put(array: np.ndarray) -> str:
        name = f"strategy/{len(tensors)}"
        tensors[name] = array
        return name

    match value:
        case dict():
            return {"dict": [[k, pack(v, tensors)] for k, v in value.items()]}
        case list():
            return {"list": [pack(v, tensors) for v in value]}
        case tuple():
            return {"tuple": [pack(v, tensors) for v in value]}
        case ArrayRecord():
            return {"record": [[k, put(v.numpy())] for k, v in value.items()]}
        case Array():
            return {"Array": put(value.numpy())}
        case bytes():
            return {"bytes": put(np.frombuffer(value, np.uint8))}
        case np.generic():
            return {"scalar": put(np.asarray(value))}
        case np.ndarray():
            return {"array": put(value)}
    return value


def unpack(packed: Any, tensors: dict[str, np.ndarray]) -> Any:
    """Return the value that `pack` has packed."""
    if not isinstance(packed, dict):
        return packed
    [(kind, content)] = packed.items()
    match kind:
        case "dict":
            return {k: unpack(v, tensors) for k, v in content}
        case "list":
            return [unpack(v, tensors) for v in content]
        case "tuple":
            return tuple(unpack(v, tensors) for v in content)
        case "record":
            return ArrayRecord({k: Array(tensors[name]) for k, name in content})
        case "Array":
            return Array(tensors[content])
        case "bytes":
            return tensors[content].tobytes()
        case "scalar":
            return tensors[content][()]
    return tensors[content]
