"""A training script: what it defines, what it does by itself, and what its calls are given.

A script has a *driver*: its `main()`, or what the file does by itself, at the top or under
`if __name__ == "__main__":`. There it makes a model and data, trains, by a call or by a loop that
stands right there, and tests.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

from .app.federated_app.definitions import binds_and_reads, definitions, is_main_block
from .python_trees import (
    assigned,
    called,
    callers,
    defaults,
    expression,
    is_definition,
    is_seed,
    last,
    lines,
    methods_that_train,
    names,
    parameters,
    refuse,
    results,
    trains,
)
from .words import BASES, DATA, EPOCHS, KNOWN, LAUNCHERS, MAKERS, MODEL_NAMES, TESTS

DEVICE = "torch.device('cuda' if torch.cuda.is_available() else 'cpu')"
Driver = ast.FunctionDef | None  # None: what the file does by itself


class Argument(NamedTuple):
    """An argument of a call, by the name of the parameter that takes it."""

    parameter: str
    value: ast.expr
    call: ast.Call


class Call(NamedTuple):
    """A call of the script's: of what trains, or of what tests."""

    node: ast.Call
    arguments: list[Argument]  # its own, and those of what made the object whose method it is
    function: ast.FunctionDef | None  # what is called, where it is the script's
    name: str
    # A loop that stands in the driver in the place of a call, and what of it goes through the data.
    loop: ast.stmt | None = None
    data_loop: ast.For | None = None


class Script:
    """A training script, read but not run.

    Args:
        path: the file.
        chosen: what the user named, of "model", "train", "test" and "data"; each "function" or
            "module:function", for data also two of them, with a comma.
    """

    def __init__(self, path: Path, chosen: dict[str, str]) -> None:
        self.path, self.tree = path, ast.parse(path.read_bytes(), str(path))
        kept = definitions(self.tree)  # what an import runs
        self.block: list[ast.stmt] = []  # what the file does by itself
        self.under: list[ast.stmt] = []  # of that, what is under `if __name__ == "__main__":`
        for each in self.tree.body:
            if is_main_block(each):
                self.under += each.body
                self.block += each.body
            elif each not in kept or is_seed(each):
                self.block.append(each)
        self.loose = [s for s in kept if not is_definition(s)]
        self.globals = names(self.loose, ast.Store) | {d.name for d in kept if is_definition(d)}
        self.beside = list(siblings(path, self.tree))
        self.folders = {p.relative_to(path.parent).parts[0] for p in self.beside}
        self.modules = {module(p, path.parent): ast.parse(p.read_bytes()) for p in self.beside}
        trees = [*self.modules.values(), self.tree]
        self.defined = {d.name: d for t in trees for d in t.body if is_definition(d)}
        self.functions = {n: d for n, d in self.defined.items() if isinstance(d, ast.FunctionDef)}
        self.classes = {n: d for n, d in self.defined.items() if isinstance(d, ast.ClassDef)}
        self.chosen: dict[str, list[str]] = {}
        for kind, given in chosen.items():
            for each in filter(None, given.split(",")):
                self.chosen.setdefault(kind, []).append(self.checked(kind, each))
        self.models = {*self.chosen.get("model", self.model_makers())}
        self.check_launcher()
        self.check_installed()
        self.check_import()

    def checked(self, kind: str, given: str) -> str:
        """Return the name in what a user gave for a kind."""
        module, _, name = given.rpartition(":")
        if module and module not in (self.path.stem, *self.modules):
            known = ", ".join([self.path.stem, *self.modules])
            refuse(f"{kind.upper()}={given}: there is no module {module!r} here; there are {known}")
        top = self.globals | names(self.block, ast.Store)
        if name not in self.defined and not (kind == "data" and name in top):
            known = ", ".join(self.defined) or "nothing"
            refuse(f"{kind.upper()}={given}: {self.path.name} has no {name!r}; it defines {known}")
        if name not in top:  # of a module beside it
            refuse(f"{kind.upper()}={given}: import {name} in {self.path.name}")
        return name

    def check_launcher(self) -> None:
        for node in ast.walk(self.tree):
            name = getattr(node, "id", getattr(node, "attr", getattr(node, "module", None)))
            aliases = node.names if isinstance(node, ast.Import | ast.ImportFrom) else []
            imported = [a.name.split(".")[0] for a in aliases] + [name]
            if name == "get_ipython":
                refuse(f"get_ipython(), line {node.lineno}, is there in a notebook only: delete it")
            for found in (each for each in imported if each in LAUNCHERS):
                refuse(
                    f"{found}, line {node.lineno}: it trains in processes that {LAUNCHERS[found]} "
                    "starts. A client is one process: train without it there, in a function that "
                    "takes the model and a loader (many GPUs: one client on each)"
                )

    def check_installed(self) -> None:
        wanted = {a.name for s in self.loose if isinstance(s, ast.Import) for a in s.names}
        wanted |= {s.module for s in self.loose if isinstance(s, ast.ImportFrom) and s.module}
        for name in sorted(
            {each.split(".")[0] for each in wanted} - self.modules.keys() - self.folders
        ):
            if find_spec(name) is None:
                refuse(f"it imports {name}, which is not installed in {sys.prefix}")

    def check_import(self) -> None:
        """Refuse a file whose functions need what its training binds: an import would train."""
        training = callers(self.functions, {n for n, f in self.functions.items() if trains(f)})
        for statement in self.loose:
            if trains(statement) or training & {name for _, name in called(statement)}:
                name = min(names(statement, ast.Store), key=lambda n: not self.reader(n))
                refuse(
                    f"{self.reader(name)}, a global name, and {lines(statement)}, which bind it, "
                    "train: give it to the function as a parameter"
                )

    def reader(self, name: str) -> str:
        """Return text on a function that reads a global name, or what is made of it."""
        for each in self.defined.values():
            reads = binds_and_reads(each)[1]
            for first in sorted(reads, key=lambda n: n != name):
                found = {first} if first in names(self.loose, ast.Store) else set()
                while more := names([s for s in self.loose if names(s, ast.Store) & found]) - found:
                    found |= more
                if name in found:
                    return f"{each.name}() reads {first!r}"
        return ""

    def refuse_global(self, model: str) -> NoReturn:
        reader = self.reader(model) or "a function reads what is made of it"
        refuse(
            f"the model {model!r} is a global name: {reader}. A client has a model of its own: "
            "give the function as parameters what it needs"
        )

    def model_makers(self) -> set[str]:
        """Return the classes of models, and the functions that return one."""
        found: set[str] = set()
        for _ in self.classes:  # a class may derive from one that derives from nn.Module
            for name, each in self.classes.items():
                if any(BASES.search(last(b)) or last(b) in found for b in each.bases):
                    found.add(name)
        for name, function in self.functions.items():
            makers = {c for r in results(function) for _, c in called(r)}
            makers |= {c for r in results(function) for c in assigned(last(r), function.body)}
            hint = function.returns and BASES.search(ast.unparse(function.returns))
            if hint or makers & found:
                found = found | {name}
        return found

    def makes_model(self, makers: set[str]) -> bool:
        return bool(makers & self.models) or any(map(MAKERS.fullmatch, makers))

    def drivers(self) -> Iterator[tuple[Driver, list[ast.stmt]]]:
        yield None, self.block
        for function in self.functions.values():
            yield function, function.body

    def body(self, driver: Driver) -> list[ast.stmt]:
        return driver.body if driver else self.block

    def trainers(self, body: Sequence[ast.stmt]) -> dict[str, ast.Call]:
        """Return the objects made in a body that can train, each with the call that makes it."""
        return {
            each.targets[0].id: each.value
            for s in body
            for each in ast.walk(s)
            if isinstance(each, ast.Assign)
            and isinstance(each.targets[0], ast.Name)
            and self.makes_trainer(each.value)
        }

    def makes_trainer(self, value: ast.expr) -> bool:
        name = last(value.func) if isinstance(value, ast.Call) else ""
        own = name in self.classes and bool(methods_that_train(self.classes[name]))
        return own or name.endswith("Trainer")

    def trainer_of(self, node: ast.Call, body: Sequence[ast.stmt]) -> ast.Call | None:
        """Return what makes the trainer whose method is called."""
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if isinstance(owner, ast.Name):
            return self.trainers(body).get(owner.id)
        return owner if self.makes_trainer(owner) else None

    def training_methods(self, maker: ast.Call | None) -> set[str]:
        """Return the methods that train, of the object that a call makes."""
        if maker is None:
            return set()
        owner = self.classes.get(last(maker.func))
        return methods_that_train(owner) if owner else {"fit", "train"}

    def bound(self, node: ast.Call, body: Sequence[ast.stmt]) -> Call:
        """Return a call with its arguments by the parameters that take them."""
        name, own, maker = last(node.func), [], self.trainer_of(node, body)
        if maker is None:
            function = self.functions.get(name)
            known = parameters(function) if function else KNOWN.get(name, [])
        else:
            owner = self.classes.get(last(maker.func))
            methods = {m.name: m for m in owner.body if is_definition(m)} if owner else {}
            function = methods.get(name)
            known = parameters(function)[1:] if function else KNOWN.get(name, [])
            init = methods.get("__init__")
            own = arguments(maker, parameters(init)[1:] if init else KNOWN["Trainer"])
        return Call(node, arguments(node, known) + own, function, name)

    def model_of(self, call: Call, body: Sequence[ast.stmt]) -> str:
        """Return the name of the model among a call's arguments."""
        found: dict[bool, set[str]] = {True: set(), False: set()}
        named = set()
        for parameter, value, _ in call.arguments:
            if isinstance(value, ast.Name):
                makers = assigned(value.id, body)
                surely = self.makes_model(makers)
                if surely or parameter in MODEL_NAMES:
                    found[surely].add(value.id)
                    named |= {value.id} if parameter in MODEL_NAMES else set()
            elif parameter in MODEL_NAMES:
                refuse(
                    f"line {value.lineno}: the model of {call.name}() has no name there; write "
                    f"`model = {ast.unparse(value)}` before it"
                )
        models = found[True] or found[False]
        models = named if len(models & named) == 1 else models  # beside a loss that is a module
        if len(models) > 1:
            refuse(
                f"{call.name}() takes more than one model ({', '.join(sorted(models))}): put them "
                "into one nn.Module, or name it: MODEL=class"
            )
        return next(iter(models), "")

    def called_by_name(
        self,
        function: ast.FunctionDef,
        data: dict[str, ast.expr],
        known: dict[str, ast.expr],
    ) -> ast.Call:
        """Return a call of a function, each argument by its parameter's name.

        Raises:
            CannotBeConverted: names a parameter that nothing is known for.
        """
        known = {"device": expression(DEVICE)} | known if "torch" in self.globals else known
        given = []
        for name in parameters(function):
            if name in known:
                value = known[name]
            elif name in MODEL_NAMES:
                value = expression("model")
            elif DATA.search(name):
                value = data["test" if TESTS.search(name) or "train" not in data else "train"]
            elif name in EPOCHS:
                value = defaults(function).get(name) or ast.Constant(1)
            elif name in defaults(function):
                continue
            else:
                refuse(
                    f"{function.name}() needs {name!r}, and nothing in {self.path.name} says what "
                    f"that is: give it a default, or call {function.name}() in a main()"
                )
            given.append(ast.keyword(name, value))
        return ast.Call(ast.Name(function.name, ast.Load()), [], given)


def arguments(node: ast.Call, known: list[str]) -> list[Argument]:
    """Return a call's arguments; `known` are the parameters that take those without a name."""
    found = [Argument(name, value, node) for name, value in zip(known, node.args, strict=False)]
    return found + [Argument(k.arg, k.value, node) for k in node.keywords if k.arg]


def module(file: Path, folder: Path) -> str:
    """Return the name by which a file in a folder is imported."""
    return ".".join(file.relative_to(folder).with_suffix("").parts)


def siblings(path: Path, tree: ast.Module) -> Iterator[Path]:
    """Yield the files beside a script that it imports, and those that these import.

    Of a folder, these are all its Python files.
    """
    seen, waiting = {path.resolve()}, [tree]
    while waiting:
        for node in ast.walk(waiting.pop()):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for name in (module.split(".")[0] for module in modules):
                for file in (
                    path.parent / f"{name}.py",
                    *sorted((path.parent / name).rglob("*.py")),
                ):
                    if file.is_file() and file.resolve() not in seen:
                        seen.add(file.resolve())
                        yield file
                        waiting.append(ast.parse(file.read_bytes(), str(file)))
