# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Questions on the data: what is trained on, what leaves a client, and what is kept of it."""

import ast
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..exam import Exam, Steps
from ..inputs import shape_of
from ..results import parted_files, parted_models
from ..verdict import Verdict, failed, not_asked, passed

ALIKE = 0.01  # between the shapes of an example and of what is sent
TRIED = 3  # functions of a file that are changed
CHANGE = """

def _other(value):
    if isinstance(value, tuple):
        values = map(_other, value)
        return type(value)(*values) if hasattr(value, "_fields") else tuple(values)
    if hasattr(value, "getbands"):
        return value.point(lambda level: 255 - level)
    kind = str(getattr(value, "dtype", ""))
    if "uint8" in kind:
        return 255 - value
    return value * 0.5 if "float" in kind else value


def _change(function):
    import functools

    @functools.wraps(function)
    def changed(*args, **kwargs):
        return _other(function(*args, **kwargs))

    return changed


{name} = _change({name})
"""


def held_out(exam: Exam) -> Steps:
    """Held-out examples never appear in training, also after a resume."""
    runs = [exam.good]
    if exam.app.key("resume") and exam.good.snapshots:
        half = exam.good.snapshots[len(exam.good.snapshots) // 2]
        runs += yield [exam.case("resumed-and-seen", start=half, inputs=True)]
    trained: dict[bytes, tuple[int, int]] = {}
    tested: dict[bytes, tuple[int, int]] = {}
    for run in runs:
        for (partition, use, number), rows in run.seen.items():
            found = {"train": trained, "evaluate": tested}.get(use, {})
            found |= dict.fromkeys(rows - found.keys(), (partition, number))
    if not trained or not tested:
        return not_asked("models that are trained and tested in the process of the ClientApp")
    seen = exam.good.seen
    rounds = {n for _, use, n in seen if use == "train"}
    repeated = {
        row
        for p in exam.good.nodes
        for n in rounds
        for m in rounds
        if n < m
        for row in seen.get((p, "train", n), set()) & seen.get((p, "train", m), set())
    }
    both = trained.keys() & tested.keys()
    if both:
        row = min(both)
        (trainer, number), (tester, _) = trained[row], tested[row]
        who = f"client {tester}" if tester >= 0 else "the server"
        text = f"{len(both)} of {len(tested)} examples that are tested on are trained on: "
        text += f"client {trainer} trains on one in round {number} that {who} tests on"
        return failed(text, "split once, by the seed; look for duplicates in the data, too")
    floats = all(row.startswith(b"f") for row in trained)  # tokens are not augmented
    if floats and not repeated and exam.app.rounds > 1:
        return not_asked("inputs that come back: no example looked the same twice (augmented?)")
    resumed = ", also after a resume" if len(runs) > 1 else ""
    count = len(repeated or trained)
    return passed(f"{count} examples trained on, none of {len(tested)} inputs tested on{resumed}")


def leaves(exam: Exam) -> Verdict:
    """What leaves a client is the model, figures, and no example."""
    first, told, problems = exam.good, dict[str, str](), list[str]()
    listed: dict[str, list[Any]] = {}
    for reply in first.replies:
        if reply["error"]:
            continue
        listed.setdefault(reply["type"], reply["items"])
        told.setdefault(reply["type"], summary(reply))
        count = max([int(v) for k, v in reply["metrics"].items() if "num" in k], default=0)
        for name, value in reply["beside"].items():
            what = f"{name} ({value.dtype}, {value.shape}) of client {reply['partition']}"
            if count > 16 and value.shape[:1] == (count,):
                problems.append(f"{what} has a row for each of {count} examples")
            elif is_example(value, first.shapes.get(reply["partition"], [])):
                problems.append(f"{what} is an example")
    if problems:
        way_out = "send the model and sums only; what is made of one example stays where it is"
        return failed(f"{problems[0]}; {len(problems)} such", way_out, sent=listed)
    return passed("; ".join(f"{sort}: {text}" for sort, text in told.items()), sent=listed)


def summary(reply: dict[str, Any]) -> str:
    """Return in a line what a reply holds."""
    size = sum(value.nbytes for value in reply["arrays"].values())
    parts = [f"the model's {len(reply['arrays'])} arrays, {size:,} bytes"] if size else []
    parts += [
        f"{name} {value.shape} {value.nbytes:,} bytes" for name, value in reply["beside"].items()
    ]
    names = [item[2] for item in reply["items"] if item[1] != "array"]
    return ", ".join([*parts, *names])


def is_example(value: np.ndarray, shapes: list[np.ndarray]) -> bool:
    """Tell whether an array, or a row of it, is an input; scaled, shifted or reordered, too."""
    if not shapes or value.dtype.kind not in "fiu":
        return False
    rows = [value, *value.reshape(len(value), -1)] if value.ndim > 1 else [value]
    known = np.stack(shapes)
    for row in rows[:1024]:
        shape = shape_of(row)
        if shape is not None and (np.abs(known - shape).max(axis=1) < ALIKE).any():
            return True
    return False


def cache(exam: Exam) -> Steps:
    """What was cached under older code is not used by newer."""
    common: dict[str, Any] = {"settings": exam.app.one_round, "echo": exam.good.trainers()[0]}
    if not files_below(exam.scratch / "cache"):
        return not_asked("arrays that are kept on disk between runs")
    folder = exam.scratch / "caches"
    [cold] = yield [exam.case("cold", cache=folder / "old", calls=True, **common)]
    [warm] = yield [exam.case("warm", cache=folder / "old", calls=True, **common)]
    if text := cold.error or warm.error:
        return failed(text, "a second run must do with what the first has cached")
    makers = sorted(cold.calls - warm.calls)
    if not makers:
        made = f"the {files_below(folder / 'old')} files in the cache are made otherwise"
        return not_asked(f"functions of the app that return what is kept on disk; {made}")
    tried = []
    for file in sorted({file for file, _ in makers}):
        names = [name for maker, name in makers if maker == file and can_change(exam, file, name)]
        for name in names[:TRIED]:
            app = changed_copy(exam, file, name)
            old, new = folder / f"old-{len(tried)}-{name}", folder / f"new-{len(tried)}-{name}"
            shutil.copytree(folder / "old", old)
            both = [exam.case(f"changed-{name}", app=app, cache=c, **common) for c in (new, old)]
            fresh, used = yield both
            if fresh.error or not (
                parted_models(cold, fresh) or parted_files(cold.outputs, fresh.outputs)
            ):
                continue  # it makes no difference
            text = (
                used.error
                or parted_models(fresh, used)
                or parted_files(fresh.outputs, used.outputs)
            )
            if text:
                told = (
                    f"{file}: {name} was changed, and what it had made before is still used: {text}"
                )
                return failed(
                    told, f"make {file} part of the cache's key, its text's hash for instance"
                )
            tried.append(f"{Path(file).name}: {name}")
            break
    if not tried:
        return not_asked(f"a function whose change shows; tried {', '.join(n for _, n in makers)}")
    return passed(f"changed {', '.join(tried)}: as with an empty cache")


def files_below(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def can_change(exam: Exam, file: str, name: str) -> bool:
    """Tell whether a function is a plain one, or a plain method of a class."""
    body: Any = ast.parse((exam.app.folder / file).read_text("utf-8"))
    for part in name.split("."):
        found = [n for n in body.body if getattr(n, "name", "") == part]
        if not found:
            return False
        body = found[-1]
    plain = ("staticmethod", "classmethod", "property", "cached_property")
    return isinstance(body, ast.FunctionDef) and not any(
        getattr(decorator, "id", "") in plain for decorator in body.decorator_list
    )


def changed_copy(exam: Exam, file: str, name: str) -> Path:
    """Return a copy of the app in which what a function returns is another."""
    copy = exam.scratch / "copies" / f"{Path(file).stem}-{name}" / exam.app.folder.name
    shutil.copytree(exam.app.folder, copy, ignore=left_out)
    path = copy / file
    path.write_text(path.read_text("utf-8") + textwrap.dedent(CHANGE).format(name=name))
    return copy


def left_out(folder: str, names: list[str]) -> Iterator[str]:
    """Yield what a copy of an app need not have."""
    return (n for n in names if n in ("outputs", "__pycache__", "wandb") or n.startswith("."))
