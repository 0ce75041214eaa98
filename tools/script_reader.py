"""What a training script does: what makes its model and data, what trains, what tests.

A script has a *driver*: its `main()`, or what is under `if __name__ == "__main__":`. There it makes
a model and data, calls what trains, and calls what tests.
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from syntax import (
    assigned,
    base,
    called,
    callers,
    defaults,
    expression,
    is_definition,
    last,
    lines,
    methods_that_train,
    names,
    parameters,
    refuse,
    results,
    statements,
    tests_only,
    trains,
)

MODEL_NAMES = {"model", "net", "network", "classifier", "module", "lit_model"}
EPOCHS = {"epochs", "num_epochs", "n_epochs", "nb_epochs", "max_epochs", "num_train_epochs"}
DATA = re.compile(r"load|data|set\b|_set|_dl\b|_ds\b|\bdl\b|\bds\b|batches|_iter\b", re.IGNORECASE)
TESTS = re.compile(r"test|val|eval|dev_|dev\b", re.IGNORECASE)
TRAINS = re.compile(r"train|fit|learn|tr_", re.IGNORECASE)
BASES = re.compile(r"(Lightning)?Module$|PreTrainedModel$|^Sequential$")
MAKERS = re.compile(
    r"from_pretrained|from_config|create_model|Sequential|resnet\w*|\w+For[A-Z]\w+|\w+Model|vit_\w+"
)
# The parameters of what libraries' trainers take, as far as they are given by position.
KNOWN = {
    "Trainer": ["model", "args", "data_collator", "train_dataset", "eval_dataset"],
    "fit": ["model", "train_dataloaders", "val_dataloaders", "datamodule"],
    "test": ["model", "dataloaders"],
    "validate": ["model", "dataloaders"],
    "evaluate": ["eval_dataset"],
}
LAUNCHERS = {
    "init_process_group": "torch.distributed",
    "DistributedDataParallel": "torch.distributed",
    "FullyShardedDataParallel": "torch.distributed",
    "torch_xla": "a TPU",
    "deepspeed": "DeepSpeed",
    "horovod": "Horovod",
}
MAIN = '`if __name__ == "__main__":`'
DEVICE = "torch.device('cuda' if torch.cuda.is_available() else 'cpu')"
Driver = ast.FunctionDef | None  # None: what is under `if __name__ == "__main__":`


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


class Script:
    """A training script, read but not run.

    Args:
        path: the file.
        chosen: what the user named, of "model", "train", "test" and "data"; each "function" or
            "module:function", for data also two of them, with a comma.
    """

    def __init__(self, path: Path, chosen: dict[str, str]) -> None:
        self.path, self.tree = path, ast.parse(path.read_bytes(), str(path))
        self.block: list[ast.stmt] = []  # under `if __name__ == "__main__":`
        self.top: list[ast.stmt] = []  # what an import runs
        for each in self.tree.body:
            is_block = isinstance(each, ast.If) and "__main__" in ast.unparse(each.test)
            (self.block if is_block else self.top).extend(each.body if is_block else [each])
        self.loose = [s for s in self.top if not is_definition(s)]
        self.globals = names(self.loose, ast.Store) | {d.name for d in self.top if is_definition(d)}
        self.beside = list(siblings(path, self.tree))
        self.modules = {p.stem: ast.parse(p.read_bytes(), str(p)) for p in self.beside}
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

    def checked(self, kind: str, given: str) -> str:
        """Return the name in what a user gave for a kind."""
        module, _, name = given.rpartition(":")
        if module and module not in (self.path.stem, *self.modules):
            known = ", ".join([self.path.stem, *self.modules])
            refuse(f"{kind.upper()}={given}: there is no module {module!r} here; there are {known}")
        if name not in self.defined and not (kind == "data" and name in self.globals):
            known = ", ".join(self.defined) or "nothing"
            refuse(f"{kind.upper()}={given}: {self.path.name} has no {name!r}; it defines {known}")
        if name not in self.globals:  # of a module beside it
            refuse(f"{kind.upper()}={given}: import {name} in {self.path.name}")
        return name

    def check_launcher(self) -> None:
        for node in ast.walk(self.tree):
            name = getattr(node, "id", getattr(node, "attr", getattr(node, "module", None)))
            imported = [a.name.split(".")[0] for a in getattr(node, "names", [])] + [name]
            for found in (each for each in imported if each in LAUNCHERS):
                refuse(
                    f"{found}, line {node.lineno}: it trains in processes that {LAUNCHERS[found]} "
                    "starts. A client is one process: train without it there, in a function that "
                    "takes the model and a loader (many GPUs: one client on each)"
                )

    def check_installed(self) -> None:
        wanted = {a.name for s in self.loose if isinstance(s, ast.Import) for a in s.names}
        wanted |= {s.module for s in self.loose if isinstance(s, ast.ImportFrom) and s.module}
        for name in sorted({each.split(".")[0] for each in wanted} - self.modules.keys()):
            if find_spec(name) is None:
                refuse(f"it imports {name}, which is not installed in {sys.prefix}")

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

    # What trains ------------------------------------------------------------------------------

    def training(self) -> "Found":
        """Find what trains, and where it is called.

        Raises:
            CannotBeConverted: it is not there, or cannot be called.
        """
        direct = {name: function for name, function in self.functions.items() if trains(function)}
        self.check_loops(direct)
        wanted = {*self.chosen.get("train", direct)}
        sites = list(self.sites(wanted))
        self.check_import(wanted | {driver.name for driver, _ in sites if driver})
        ends = [self.climbed(driver, node) for driver, node in sites]
        found = {ast.dump(end.call.node.func): end for end in ends if isinstance(end, Found)}
        uncalled = {end for end in ends if isinstance(end, str) and end}
        if len(found) > 1:
            where = "; ".join(f"{e.call.name}, {lines(e.call.node)}" for e in found.values())
            refuse(f"there is more than one training: {where}. Name one: TRAIN=function")
        if found:
            return next(iter(found.values()))
        if sites and not uncalled:
            node = sites[0][1]
            refuse(
                f"{ast.unparse(node)}, line {node.lineno}, is given no model that its caller "
                "makes: a client has its own model and data, so have it take both as parameters, "
                "`train(model, train_loader, …)`, and make the model in main()"
            )
        if uncalled or wanted:
            return self.without_driver(uncalled or wanted)
        refuse(
            f"nothing in {self.path.name} trains: no function with `.backward()`, no "
            "`trainer.fit(…)`, no `Trainer(…).train()`. Name it: TRAIN=function"
        )

    def check_loops(self, direct: dict[str, ast.FunctionDef]) -> None:
        """Refuse a training loop that is no function of model and data."""
        places = {"at the top of the file, where an import runs it": self.loose}
        places[f"under {MAIN}"] = self.block
        for name, function in direct.items():
            if self.models & {c for s in function.body for _, c in called(s)}:
                places[f"in {name}(), which makes the model, too"] = function.body
        for where, body in places.items():
            loop = next((s for s in body if "backward" in {name for _, name in called(s)}), None)
            if loop and "train" not in self.chosen:
                before = [s for s in body if s.lineno < loop.lineno]
                made = names([s for s in before if isinstance(s, ast.Assign)], ast.Store)
                needed = sorted((names(loop) & made) - names(loop, ast.Store))
                refuse(
                    f"the training loop, {lines(loop)}, is {where}: a client cannot call it. "
                    f"Indent it under `def train({', '.join(needed)}):`, call that where the loop "
                    f"was, and put what the file does by itself under {MAIN}"
                )

    def check_import(self, training: set[str]) -> None:
        """Refuse a file that trains when it is imported."""
        training = callers(self.functions, training)
        for node, name in (each for s in self.loose for each in called(s)):
            methods = self.training_methods(self.trainer_of(node, self.loose))
            if name in training | methods:
                refuse(
                    f"{ast.unparse(node)}, line {node.lineno}, trains when the file is imported, "
                    f"and each client imports it: put what the file does by itself under {MAIN}"
                )

    def sites(self, wanted: set[str]) -> Iterator[tuple[Driver, ast.Call]]:
        """Yield where what trains is called, and in which driver."""
        for driver, body in self.drivers():
            inside = "train" not in self.chosen or (driver and driver.name in wanted)
            for node, name in (each for s in body for each in called(s)):
                if (name in wanted and not (driver and driver.name in wanted)) or (
                    inside and name in self.training_methods(self.trainer_of(node, body))
                ):
                    yield driver, node

    def training_methods(self, maker: ast.Call | None) -> set[str]:
        """Return the methods that train, of the object that a call makes."""
        if maker is None:
            return set()
        owner = self.classes.get(last(maker.func))
        return methods_that_train(owner) if owner else {"fit", "train"}

    def climbed(self, driver: Driver, node: ast.Call) -> "Found | str":
        """Go from a call to its caller's, up to where the model is made.

        Returns the training there; or the name of the function that nothing calls; or nothing,
        where no model is given.
        """
        while True:
            call = self.bound(node, self.body(driver))
            model = self.model_of(call, self.body(driver))
            if not (driver and model in parameters(driver)):
                return Found(self, driver, call) if model else ""
            outer = [
                (d, n)
                for d, body in self.drivers()
                for s in body
                for n, name in called(s)
                if name == driver.name and d is not driver
            ]
            if not outer:
                return driver.name
            driver, node = outer[0]

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
        for parameter, value, _ in call.arguments:
            if isinstance(value, ast.Name):
                makers = assigned(value.id, body)
                surely = bool(makers & self.models) or any(map(MAKERS.fullmatch, makers))
                if surely or parameter in MODEL_NAMES:
                    found[surely].add(value.id)
            elif parameter in MODEL_NAMES:
                refuse(
                    f"line {value.lineno}: the model of {call.name}() has no name there; write "
                    f"`model = {ast.unparse(value)}` before it"
                )
        models = found[True] or found[False]
        if len(models) > 1:
            refuse(
                f"{call.name}() takes more than one model ({', '.join(sorted(models))}): put them "
                "into one nn.Module, or name it: MODEL=class"
            )
        return next(iter(models), "")

    # Where nothing calls what trains ------------------------------------------------------------

    def without_driver(self, wanted: set[str]) -> "Found":
        """Return a call of what trains by its parameters, since the script has none."""
        for kind, found in {"train": wanted, "model": self.models}.items():
            if len(found) != 1:
                which = ", ".join(sorted(found)) or "no class of nn.Module's"
                refuse(f"{which}: name what is meant, {kind.upper()}=function")
        [name], [model] = wanted, self.models
        maker = self.defined[model]
        if isinstance(maker, ast.ClassDef):
            maker = next((m for m in maker.body if getattr(m, "name", "") == "__init__"), None)
        self.check_callable(model, maker, "MODEL")
        before = statements(f"model = {model}()")
        data, more = self.data_alone()
        node = self.called_by_name(self.functions[name], data, {})
        return Found(self, None, self.bound(node, []), before + more, data)

    def check_callable(self, name: str, function: ast.FunctionDef | None, kind: str) -> None:
        """Refuse a function that cannot be called without arguments."""
        needed = [p for p in parameters(function) if p != "self"] if function else []
        missing = [p for p in needed if p not in defaults(function)]
        if missing:
            refuse(
                f"{name}() needs {', '.join(missing)}, and nothing in the file calls it: give "
                f"defaults, or name a function without parameters: {kind}=function"
            )

    def data_alone(self) -> tuple[dict[str, ast.expr], list[ast.stmt]]:
        """Return training and test data, and the statements that make them."""
        loose = sorted(n for n in names(self.loose, ast.Store) if DATA.search(n))
        loose = sorted(loose, key=lambda n: "load" not in n.lower())  # loaders before datasets
        given = self.chosen.get("data", [])
        if not given:
            tests = [n for n in loose if TESTS.search(n)]
            given = [n for n in loose if TRAINS.search(n) and n not in tests][:1] + tests[:1]
        if not given:
            given = [n for n, f in self.functions.items() if DATA.search(n) and loads(f)]
            given = [n for n in given if n not in self.models]
        if len(given) not in (1, 2) or (set(given) & set(loose) and len(given) == 1):
            refuse(
                "a function without parameters is needed that returns training and test data "
                f"(Datasets or DataLoaders); there is {', '.join(given) or 'none'}. Name it: "
                "DATA=function, or DATA=train_function,test_function"
            )
        for name in given:
            self.check_callable(name, self.functions.get(name), "DATA")
        values = [name if name in loose else f"{name}()" for name in given]
        data = {kind: expression(f"{kind}_data") for kind in ("train", "test")}
        if len(given) == 2:
            values.sort(key=lambda text: bool(TESTS.search(text)))
            return data, statements(f"train_data = {values[0]}\ntest_data = {values[1]}")
        value = next(iter(results(self.functions[given[0]])), None)
        texts = [ast.unparse(e) for e in value.elts] if isinstance(value, ast.Tuple) else ["", ""]
        test = next((i for i, text in enumerate(texts) if TESTS.search(text)), 1)
        targets = ["_"] * len(texts)
        targets[0 if test else 1], targets[test] = "train_data", "test_data"
        return data, statements(f"{', '.join(targets)} = {values[0]}")

    def called_by_name(
        self, function: ast.FunctionDef, data: dict[str, ast.expr], known: dict[str, ast.expr]
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


def loads(function: ast.FunctionDef) -> bool:
    """Tell whether a function may be one that returns data."""
    takes_model = MODEL_NAMES & {*parameters(function)}
    return bool(results(function)) and not (takes_model or trains(function))


def siblings(path: Path, tree: ast.Module) -> Iterator[Path]:
    """Yield the files beside a script that it imports, and those that these import."""
    seen, waiting = {path.resolve()}, [tree]
    while waiting:
        for node in ast.walk(waiting.pop()):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            for module in modules:
                file = path.parent / f"{module.split('.')[0]}.py"
                if file.is_file() and file.resolve() not in seen:
                    seen.add(file.resolve())
                    yield file
                    waiting.append(ast.parse(file.read_bytes(), str(file)))


class Found:
    """The training of a script, with its model, data and test.

    Args:
        script: the script.
        driver: what calls it.
        call: of what trains.
        before: statements to be run first, where the script itself has none.
        data: training and test data, where the script itself calls nothing.
    """

    def __init__(
        self,
        script: Script,
        driver: Driver,
        call: Call,
        before: Sequence[ast.stmt] = (),
        data: dict[str, ast.expr] | None = None,
    ) -> None:
        self.script, self.driver, self.call, self.alone = script, driver, call, bool(data)
        self.before, self.statement, self.after = list(before), ast.Expr(call.node), []
        if not self.alone:
            self.before, self.statement, self.after = around(script.body(driver), call.node)
            self.before = self.callers(driver) + self.before
        does = {n for n, f in script.functions.items() if tests_only(f) or trains(f)}
        self.earlier = [s for s in self.before if does & {name for _, name in called(s)}]
        self.before = [s for s in self.before if s not in self.earlier]
        self.model = "model" if self.alone else script.model_of(call, script.body(driver))
        self.left_out: list[ast.stmt] = []  # of a loop over epochs
        self.check_model()
        known = data or self.data_of(call)
        self.test = self.find_test(known)
        tested = self.data_of(self.test, known)
        for kind, each, found in (("train", call, known), ("test", self.test, tested)):
            if kind not in found:
                where = f"line {each.node.lineno}" if hasattr(each.node, "lineno") else "not called"
                refuse(
                    f"{each.name}(…), {where}, is given no data: it is to take one Dataset or "
                    f"DataLoader, as a parameter named {kind}_loader or {kind}_dataset"
                )
        self.train_data, self.test_data = known["train"], tested["test"]

    @property
    def place(self) -> str:
        return f"in {self.driver.name}()" if self.driver else "under `if __name__ …`"

    def callers(self, function: Driver) -> list[ast.stmt]:
        """Return what is run before a function is called, its parameters included."""
        if function is None:
            return []
        found, given = [], defaults(function)
        for driver, body in self.script.drivers():
            for node, name in (each for s in body for each in called(s)):
                if name == function.name and driver is not function:
                    bound = arguments(node, parameters(function))
                    given |= {a.parameter: a.value for a in bound}
                    found = self.callers(driver) + around(body, node)[0]
                    break
        missing = [name for name in parameters(function) if name not in given]
        if missing:
            refuse(f"nothing calls {function.name}({', '.join(missing)}): call it in a main()")
        return found + [
            ast.Assign([ast.Name(name, ast.Store())], given[name], lineno=function.lineno)
            for name in parameters(function)
            if ast.unparse(given[name]) != name
        ]

    def check_model(self) -> None:
        """Refuse a model that a client cannot make once, for itself."""
        loop = self.statement
        if isinstance(loop, ast.While):
            refuse(
                f"{lines(loop)}: a `while` around the training has no number of epochs; use `for`"
            )
        if isinstance(loop, ast.For) and self.model in names(loop, ast.Store):
            refuse(
                f"{lines(loop)}: each pass of the loop makes a model of its own (folds, seeds). A "
                "federation trains one: call the training once"
            )
        if not any(self.model in names(s, ast.Store) for s in self.before):
            refuse(
                f"the model {self.model!r} is made at the top of the file, where an import makes "
                "it: make it where it is trained, in main() for instance"
            )

    def find_test(self, data: dict[str, ast.expr]) -> Call:
        """Find what tests: called by the driver, else by its parameters."""
        script, body = self.script, self.script.body(self.driver)
        candidates = [n for n, f in script.functions.items() if tests_only(f)]
        candidates = script.chosen.get("test", [n for n in candidates if n != self.call.name])
        found = []
        for node, name in (each for s in body for each in called(s)):
            library = name in ("test", "evaluate", "validate") and script.trainer_of(node, body)
            call = script.bound(node, body)
            takes_model = self.model in {n for a in call.arguments for n in names(a.value)}
            if library or (name in candidates and takes_model):
                found.append(call)
        if found:
            return min(found, key=lambda c: (not c.name.startswith("test"), -c.node.lineno))
        if not candidates:
            refuse(
                f"nothing in {script.path.name} tests: no function with `no_grad` or `.eval()` "
                "that takes the model. Write one that returns loss and accuracy, or name it: "
                "TEST=function"
            )
        name = min(candidates, key=lambda n: "test" not in n)
        if "test" not in data:
            refuse(f"nothing says which data {name}() tests on: call it {self.place}")
        known = {
            a.parameter: a.value for a in self.call.arguments if a.parameter not in MODEL_NAMES
        }
        known = {n: v for n, v in known.items() if not DATA.search(n)}
        known |= {n: expression(self.model) for n in MODEL_NAMES}
        node = script.called_by_name(script.functions[name], {"test": data["test"]}, known)
        return script.bound(node, body)

    def data_of(self, call: Call, known: dict[str, ast.expr] | None = None) -> dict[str, ast.expr]:
        """Return training and test data among a call's arguments.

        Args:
            call: of what trains; or of what tests, if `known` is given.
            known: the data of the training.
        """
        found: dict[str, list[ast.expr]] = {"train": [], "test": [], "either": []}
        body = [*self.before, *self.script.body(self.driver)]
        for parameter, value, _ in call.arguments:
            text = ast.unparse(value)
            if parameter == "datamodule":
                refuse(
                    f"{call.name}(…), line {call.node.lineno}, is given a datamodule, of which a "
                    f"client cannot get a part: call `{text}.setup('fit')`, and give it "
                    f"`{text}.train_dataloader()`, as trainer.test() `{text}.test_dataloader()`"
                )
            makers = assigned(base(value), body) | {base(value)}
            if self.alone:
                makers |= names(self.before)
            chosen = makers & {*self.script.chosen.get("data", makers)}
            if (
                isinstance(value, ast.Constant)
                or not (DATA.search(parameter) or DATA.search(text))
                or not chosen
                or "collator" in parameter
                or text == self.model
            ):
                continue
            for_test = TESTS.search(parameter) or TESTS.search(text)
            for_training = TRAINS.search(parameter) or TRAINS.search(text)
            found["test" if for_test else "train" if for_training else "either"].append(value)
        if known:  # whatever its name, a test's data is for testing
            others = found["test"] or found["either"] or found["train"]
            return {"test": others[0]} if others else {}
        training = found["train"] or found["either"]
        if len(training) > 1:
            given = ", ".join(map(ast.unparse, training))
            refuse(
                f"{call.name}(…), line {call.node.lineno}, is given more than one that may be its "
                f"data ({given}): name what makes it, DATA=function, or have one with `train` in "
                "its name"
            )
        return {kind: v[0] for kind, v in {"train": training, "test": found["test"]}.items() if v}


def around(
    body: Sequence[ast.stmt], node: ast.AST
) -> tuple[list[ast.stmt], ast.stmt, list[ast.stmt]]:
    """Return the statements before the one with a call, that one, and those after it."""
    for i, statement in enumerate(body):
        if holds(statement, node):
            before, found, after = [], statement, []
            if isinstance(statement, ast.If | ast.With | ast.Try):
                other = getattr(statement, "orelse", [])
                inner = other if any(holds(s, node) for s in other) else statement.body
                before, found, after = around(inner, node)
            return [*body[:i], *before], found, [*after, *body[i + 1 :]]
    raise AssertionError(ast.unparse(node))


def holds(statement: ast.stmt, node: ast.AST) -> bool:
    return any(node is each for each in ast.walk(statement))
