# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""What two runs have in common: the models that the server sent, and the files that it wrote."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from .runs import Outcome
from .witness import Arrays, visible

CONFIG = "config.json"  # holds the settings, which differ when a run is resumed
Files = dict[str, Any]


def parted_models(
    run: Outcome, other: Outcome, tolerance: float = 0.0, phases: int | None = None
) -> str:
    """Return where the models that were sent part; empty: they do not.

    Args:
        run, other: to be compared.
        tolerance: how much they may differ, as a share of what the model has moved.
        phases: how many of the models are compared; by default all.
    """
    ours, theirs = run.models, other.models
    for (kind, number, arrays), (_, _, others) in zip(ours[:phases], theirs, strict=False):
        if text := parted(arrays, others, ours[0][2], tolerance):
            return f"the model sent to {kind} in round {number}: {text}"
    if len(ours) != len(theirs):
        return f"{len(ours)} phases, and {len(theirs)}"
    return ""


def parted(arrays: Arrays, others: Arrays, start: Arrays, tolerance: float = 0.0) -> str:
    """Return where two models part, or an empty text; `start` is what both began with."""
    if arrays.keys() != others.keys():
        return f"other names: {', '.join(sorted(arrays.keys() ^ others.keys())[:3])}"
    moved = {
        name: distance(value, start.get(name, np.zeros_like(value)))
        for name, value in arrays.items()
        if value.dtype == others[name].dtype and value.shape == others[name].shape
    }
    # What hardly moves is noise: it counts as a thousandth of the whole.
    least = max(math.hypot(*moved.values()) / 1000, 1e-12)
    worst, where = 0.0, ""
    for name, value in arrays.items():
        other = others[name]
        if name not in moved:
            return f"{name} is {other.dtype} {other.shape}, not {value.dtype} {value.shape}"
        if value.tobytes() != other.tobytes():
            apart = distance(value, other)
            if tolerance and value.dtype.kind == "f" and apart <= rounding(value):
                continue
            share = apart / max(moved[name], least)
            if not share <= worst or not where:
                worst, where = share, name
    if not where or worst <= tolerance:
        return ""
    return f"{where} differs by {worst:.2g} of its length"


def rounding(value: np.ndarray) -> float:
    """Return how far apart an array's sums may be for their order alone."""
    return 8 * float(np.finfo(value.dtype).eps * np.linalg.norm(value.astype(np.float64).ravel()))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return how far apart two arrays are; infinite if one is not finite."""
    with np.errstate(all="ignore"):
        length = float(np.linalg.norm((a.astype(np.float64) - b.astype(np.float64)).ravel()))
    return length if math.isfinite(length) else math.inf


def files_of(folder: Path | None) -> Files:
    """Return what a run's files hold: its results, and its tensors."""
    files: Files = {}
    for name in visible(folder) if folder else []:
        path = Path(folder, name)
        if path.suffix == ".json" and path.name != CONFIG:
            files[name] = json.loads(path.read_text("utf-8"))
        elif path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="numpy") as file:
                files[name] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return files


def parted_files(folder: Path | None, other: Path | None) -> str:
    """Return where the files of two runs part; empty: they do not."""
    try:
        ours, theirs = files_of(folder), files_of(other)
    except (ValueError, safetensors.SafetensorError) as error:
        return f"a file cannot be read ({error})"
    if ours.keys() != theirs.keys():
        return f"only one has {', '.join(sorted(ours.keys() ^ theirs.keys())[:3])}"
    for name, value in ours.items():
        if name.endswith(".safetensors"):
            if text := parted(value, theirs[name], {}):
                return f"{name}: {text}"
        elif value != theirs[name]:
            return f"{name}: {parted_json(value, theirs[name])}"
    return ""


def parted_json(value: Any, other: Any, path: str = "") -> str:
    """Return where two values of JSON part first."""
    match value, other:
        case dict(), dict() if value.keys() == other.keys():
            pairs = [(f"{path}.{key}", value[key], other[key]) for key in value]
        case list(), list() if len(value) == len(other):
            both = zip(value, other, strict=True)
            pairs = [(f"{path}[{i}]", *pair) for i, pair in enumerate(both)]
        case list(), list():
            return f"{path or 'it'} has {len(other)} entries, not {len(value)}"
        case _:
            return f"{path} is {other!r:.60}, not {value!r:.60}"
    return next(parted_json(a, b, p) for p, a, b in pairs if a != b)


def losses(run: Outcome) -> tuple[str, list[float]]:
    """Return a run's loss by round, and where it was measured; none if nobody has."""
    for name, content in files_of(run.outputs).items():
        if isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
            for part in ("evaluate_metrics_serverapp", "evaluate_metrics_clientapp"):
                found = [loss_in(entry.get(part) or {}) for entry in content]
                measured = [value for value in found if value is not None]
                if len(measured) > 1:
                    return f"{part} in {name}", measured
    for kind, told in (("evaluate", "told by clients who test"), ("train", "told in training")):
        rounds: dict[int, list[float]] = {}
        for reply in run.replies:
            loss = loss_in(reply["metrics"]) if reply["kind"] == kind else None
            if loss is not None:
                rounds.setdefault(reply["round"], []).append(loss)
        if len(rounds) > 1:
            return told, [float(np.mean(rounds[number])) for number in sorted(rounds)]
    return "", []


def loss_in(metrics: dict[str, Any]) -> float | None:
    found = [v for k, v in metrics.items() if "loss" in k and isinstance(v, int | float)]
    return float(found[0]) if found else None
