"""What a training script does, read from its syntax tree, and the same as functions of its parts.

A script has a *driver*: its `main()`, or what is under `if __name__ == "__main__":`. There it makes
a model and data, calls what trains, and calls what tests. Each of the functions of task.py holds
those of the driver's statements that it needs, found backwards from the names in a call.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

MODEL_NAMES = {"model", "net", "network", "classifier", "module", "lit_model"}
EPOCHS = {"epochs", "num_epochs", "n_epochs", "nb_epochs", "max_epochs", "num_train_epochs"}
DATA = re.compile(r"load|data|set\b|_set|_dl\b|_ds\b|\bdl\b|\bds\b|batches|_iter\b", re.IGNORECASE)
TESTS = re.compile(r"test|val|eval|dev_|dev\b", re.IGNORECASE)
TRAINS = re.compile(r"train|fit|learn|tr_", re.IGNORECASE)
# Calls that say or keep something, and change nothing that is trained.
NOISE = re.compile(
    r"print|log|log_\w+|logger|info|debug|warning|summary|watch|save\w*|makedirs|mkdir|add_scalars?"
    r"|write|append|show|imshow|plot|savefig|close|set_description|set_postfix|tqdm|dump|flush"
)
SEEDS = re.compile(r"\w*seed\w*")
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


class CannotBeConverted(Exception):
    """What in the script stands in the way, and what to change."""


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


def refuse(why: str) -> NoReturn:
    raise CannotBeConverted(why)


def names(node: ast.AST | Iterable[ast.AST], kind: type = ast.Load) -> set[str]:
    """Return the names that are read (or, with ast.Store, bound) anywhere in it."""
    nodes = [node] if isinstance(node, ast.AST) else list(node)
    found = set()
    for each in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(each, ast.Name) and isinstance(each.ctx, kind):
            found.add(each.id)
        elif kind is ast.Store and isinstance(each, ast.FunctionDef | ast.ClassDef):
            found.add(each.name)
        elif kind is ast.Store and isinstance(each, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in each.names}
    return found


def base(node: ast.AST) -> str:
    """Return the name that `a.b[c].d` begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def last(node: ast.expr) -> str:
    """Return the name that `a.b.c` ends with."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def called(node: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for each in ast.walk(node):
        if isinstance(each, ast.Call):
            yield each, last(each.func)


def changed(statement: ast.stmt) -> set[str]:
    """Return the names whose objects it may change, or that it binds."""
    found = names(statement, ast.Store)
    for each in ast.walk(statement):
        if isinstance(each, ast.Attribute | ast.Subscript) and isinstance(each.ctx, ast.Store):
            found.add(base(each))
        elif isinstance(each, ast.Expr) and isinstance(each.value, ast.Call) and not noise(each):
            found |= names(each)
    return found


def noise(statement: ast.stmt) -> bool:
    """Tell whether it says something, saves something or seeds, and no more."""
    if isinstance(statement, ast.If | ast.With):
        return all(map(noise, statement.body + getattr(statement, "orelse", [])))
    if isinstance(statement, ast.Expr):
        if isinstance(statement.value, ast.Constant):
            return True
        if isinstance(statement.value, ast.Call):
            name = last(statement.value.func)
            return bool(NOISE.fullmatch(name) or SEEDS.fullmatch(name))
    return isinstance(statement, ast.Pass)


def is_seed(statement: ast.stmt) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and bool(SEEDS.fullmatch(last(call.func)))


def sliced(
    before: Sequence[ast.stmt], wanted: set[str], stop: set[str] = frozenset(), seeds: bool = False
) -> list[ast.stmt]:
    """Return the statements that names are made by, in their order; not those that `stop` is."""
    chosen, wanted = [], set(wanted) - stop
    for statement in reversed(before):
        hit = seeds and is_seed(statement)
        if not hit and not noise(statement):
            hit = bool(changed(statement) & wanted) and not names(statement, ast.Store) & stop
        if hit:
            chosen.append(statement)
            wanted |= names(statement) - stop
    return chosen[::-1]


def lines(node: ast.AST) -> str:
    if node.lineno == node.end_lineno:
        return f"line {node.lineno}"
    return f"lines {node.lineno} to {node.end_lineno}"


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def statements(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    return [each.arg for each in given.posonlyargs + given.args + given.kwonlyargs]


def defaults(function: ast.FunctionDef) -> dict[str, ast.expr]:
    given = function.args
    positional = [each.arg for each in given.posonlyargs + given.args]
    first = len(positional) - len(given.defaults)
    found = dict(zip(positional[first:], given.defaults, strict=True))
    keywords = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return found | {each.arg: value for each, value in keywords if value is not None}


def returned(function: ast.FunctionDef | None) -> list[str] | None:
    """Return a name for each figure that a function returns; None where it returns nothing."""
    found = [e.value for e in own_nodes(function) if isinstance(e, ast.Return) and e.value]
    if not found:
        return None
    value = found[-1]
    parts = value.elts if isinstance(value, ast.Tuple) else [value]
    return [figure(part) for part in parts]


def own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield the nodes of a function's body, without those of functions in it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            waiting[:0] = list(ast.iter_child_nodes(node))


def figure(value: ast.expr) -> str:
    text = ast.unparse(value).lower()
    for name, sign in (("loss", "loss"), *(("accuracy", s) for s in ("acc", "correct", "argmax"))):
        if sign in text:
            return name
    return last(value) or "figure"


class Script:
    """A training script, read but not run.

    Args:
        path: the file.
        chosen: what the user named, of "model", "train", "test" and "data"; each "function" or
            "module:function".
    """

    def __init__(self, path: Path, chosen: dict[str, str]) -> None:
        self.path, self.tree = path, ast.parse(path.read_bytes(), str(path))
        self.chosen = {kind: given.rpartition(":")[2] for kind, given in chosen.items() if given}
        self.block: list[ast.stmt] = []  # under `if __name__ == "__main__":`
        self.top: list[ast.stmt] = []  # what an import runs
        for statement in self.tree.body:
            is_block = isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)
            (self.block if is_block else self.top).extend(
                statement.body if is_block else [statement]
            )
        self.globals = names(
            [s for s in self.top if not isinstance(s, ast.FunctionDef | ast.ClassDef)], ast.Store
        )
        self.beside = list(siblings(path, self.tree))
        self.modules = {p.stem: ast.parse(p.read_bytes(), str(p)) for p in self.beside}
        trees = [*self.modules.values(), self.tree]
        kinds = (ast.FunctionDef, ast.ClassDef)
        self.defined = {d.name: d for t in trees for d in t.body if isinstance(d, kinds)}
        self.globals |= {d.name for d in self.top if isinstance(d, kinds)}
        for kind, given in chosen.items():
            for each in given.split(",") if given else ():
                self.check_named(kind, each)
        self.functions = {n: d for n, d in self.defined.items() if isinstance(d, ast.FunctionDef)}
        self.classes = {n: d for n, d in self.defined.items() if isinstance(d, ast.ClassDef)}
        self.models = set(self.model_classes())
        self.check_launcher()

    def check_named(self, kind: str, given: str) -> None:
        module, _, name = given.rpartition(":")
        if module and module not in (self.path.stem, *self.modules):
            known = ", ".join([self.path.stem, *self.modules])
            refuse(f"{kind.upper()}={given}: there is no module {module!r} here; there are {known}")
        if name not in self.defined and not (kind == "data" and name in self.globals):
            known = ", ".join(self.defined) or "none"
            refuse(f"{kind.upper()}={given}: {self.path.name} has no {name!r}; it defines {known}")
        if name not in self.globals:  # of a module beside it that the script has not imported
            refuse(f"{kind.upper()}={given}: import {name} in {self.path.name}")

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

    def model_classes(self) -> Iterator[str]:
        found: set[str] = set()
        for _ in self.classes:  # a class may derive from one that derives from nn.Module
            for name, each in self.classes.items():
                if any(BASES.search(last(b)) or last(b) in found for b in each.bases):
                    found.add(name)
        yield from found
        for name, function in self.functions.items():
            values = {
                last(v.func)
                for e in own_nodes(function)
                if isinstance(e, ast.Return)
                for v in ast.walk(e)
                if isinstance(v, ast.Call)
            }
            hint = function.returns and BASES.search(ast.unparse(function.returns))
            made = {
                last(e.value) for e in own_nodes(function) if isinstance(e, ast.Return) and e.value
            }
            bound = {
                last(c.func)
                for e in own_nodes(function)
                if isinstance(e, ast.Assign) and names(e, ast.Store) & made
                for c in ast.walk(e)
                if isinstance(c, ast.Call)
            }
            if hint or (values | bound) & found:
                yield name

    # What trains ------------------------------------------------------------------------------

    def training(self) -> "Found":
        """Find what trains, and where it is called.

        Raises:
            CannotBeConverted: it is not there, or cannot be called.
        """
        direct = {name: function for name, function in self.functions.items() if trains(function)}
        loose = [s for s in self.top if not isinstance(s, ast.FunctionDef | ast.ClassDef)]
        for statement in loose:
            if any(name == "backward" for _, name in called(statement)):
                self.refuse_loop(
                    statement, "at the top of the file, where an import runs it", loose
                )
        for statement in self.block:
            if any(name == "backward" for _, name in called(statement)):
                self.refuse_loop(statement, 'under `if __name__ == "__main__":`', self.block)
        wanted = {self.chosen["train"]} if "train" in self.chosen else set(direct)
        sites = list(self.sites(wanted, self.chosen.get("train")))
        runs = callers(self.functions, {d.name for d, _ in sites if d is not None} | wanted)
        for node, name in (each for s in loose for each in called(s)):
            if name in runs or any(node is site for _, site in sites):
                refuse(
                    f"{ast.unparse(node)}, line {node.lineno}, trains when the file is imported, "
                    "and each client imports it: put what the file does by itself under "
                    '`if __name__ == "__main__":`'
                )
        for name, function in direct.items():
            if self.makes_model(function.body) and "train" not in self.chosen:
                loop = next(
                    s
                    for s in function.body
                    if any(called_name == "backward" for _, called_name in called(s))
                )
                self.refuse_loop(loop, f"in {name}(), which makes the model, too", function.body)
        found = [self.climbed(driver, node) for driver, node in sites]
        found = [each for each in found if each]
        if not found and sites:
            node = sites[0][1]
            refuse(
                f"{ast.unparse(node)}, line {node.lineno}, is given no model that its caller "
                "makes: a client has its own model and data, so have it take both as parameters, "
                "`train(model, train_loader, …)`, and make the model in main()"
            )
        if not found and wanted:
            return self.without_driver(wanted)
        if not found:
            refuse(
                f"nothing in {self.path.name} trains: no function with `.backward()`, no "
                "`trainer.fit(…)`, no `Trainer(…).train()`. Name it: TRAIN=function"
            )
        calls = {ast.dump(each.call.node.func): each for each in found}
        if len(calls) > 1:
            where = "; ".join(
                f"{each.call.name}, {lines(each.call.node)}" for each in calls.values()
            )
            refuse(f"there is more than one training: {where}. Name one: TRAIN=function")
        return found[0]

    def refuse_loop(self, loop: ast.stmt, where: str, around: Sequence[ast.stmt]) -> None:
        """Say how a training loop is made a function."""
        before = [s for s in around if s.lineno < loop.lineno]
        made = names(
            [s for s in before if not isinstance(s, ast.Import | ast.ImportFrom)], ast.Store
        )
        defined = {
            d for s in before if isinstance(s, ast.FunctionDef | ast.ClassDef) for d in [s.name]
        }
        needed = sorted((names(loop) & made) - defined - names(loop, ast.Store))
        refuse(
            f"the training loop, {lines(loop)}, is {where}: a client cannot call it. Indent it "
            f"under `def train({', '.join(needed)}):`, call that where the loop was, and put what "
            'the file does by itself under `if __name__ == "__main__":`'
        )

    def makes_model(self, body: Sequence[ast.stmt]) -> bool:
        return any(name in self.models for s in body for _, name in called(s))

    def sites(
        self, wanted: set[str], given: str | None
    ) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
        """Yield where what trains is called, each with the function around it, if there is one."""
        for driver, body in self.drivers():
            made = trainers(body)
            for node, name in (each for s in body for each in called(s)):
                if name in wanted and isinstance(node.func, ast.Name | ast.Attribute):
                    if driver is None or driver.name not in wanted:
                        yield driver, node
                elif given and not self.trains_by_trainer(driver, given):
                    continue
                elif name == "fit" and isinstance(node.func, ast.Attribute):
                    yield driver, node
                elif isinstance(node.func, ast.Attribute) and base(node.func) in made:
                    owner = self.classes.get(last(made[base(node.func)].func))
                    if name in methods_that_train(owner) if owner else name == "train":
                        yield driver, node

    def trains_by_trainer(self, driver: ast.FunctionDef | None, given: str) -> bool:
        return driver is not None and driver.name == given

    def method(self, made: ast.Call, name: str) -> ast.FunctionDef | None:
        """Return a method of the object that a call makes, where its class is the script's."""
        owner = self.classes.get(last(made.func))
        body = owner.body if owner else []
        return next((m for m in body if isinstance(m, ast.FunctionDef) and m.name == name), None)

    def drivers(self) -> Iterator[tuple[ast.FunctionDef | None, list[ast.stmt]]]:
        yield None, self.block
        yield None, [s for s in self.top if not isinstance(s, ast.FunctionDef | ast.ClassDef)]
        for function in self.functions.values():
            yield function, function.body

    def climbed(self, driver: ast.FunctionDef | None, node: ast.Call) -> "Found | None":
        """Return the call that trains a model which its driver makes, going from call to caller."""
        body = driver.body if driver else self.block
        call = self.bound(node, body)
        found = self.model_of(call, body)
        while driver is not None and found and found in parameters(driver):
            outer = [
                (d, n) for d, b in self.drivers() for s in b for n, name in called(s)
                if name == driver.name and d is not driver
            ]  # fmt: skip
            if not outer:
                return None
            driver, node = outer[0]
            body = driver.body if driver else self.block
            call = self.bound(node, body)
            found = self.model_of(call, body)
        return Found(self, driver, call) if found else None

    def bound(self, node: ast.Call, body: Sequence[ast.stmt]) -> Call:
        """Return a call with its arguments by the parameters that take them."""
        name, function, own = last(node.func), self.functions.get(last(node.func)), []
        maker = None
        if isinstance(node.func, ast.Attribute):
            maker = trainers(body).get(base(node.func))
            inner = node.func.value
            maker = inner if isinstance(inner, ast.Call) and maker is None else maker
        if maker is not None:
            function = self.method(maker, name)
            init = self.method(maker, "__init__")
            known = parameters(init)[1:] if init else KNOWN.get(last(maker.func), KNOWN["Trainer"])
            own += self.arguments(maker, known)
        known = parameters(function) if function else KNOWN.get(name, [])
        known = known[1:] if maker is not None and function else known
        return Call(node, self.arguments(node, known) + own, function, name)

    def arguments(self, node: ast.Call, known: list[str]) -> list[Argument]:
        found = [Argument(name, value, node) for name, value in zip(known, node.args, strict=False)]
        return found + [Argument(k.arg, k.value, node) for k in node.keywords if k.arg]

    def model_of(self, call: Call, body: Sequence[ast.stmt]) -> str:
        """Return the name of the model among a call's arguments."""
        found = []
        for parameter, value, _ in call.arguments:
            if isinstance(value, ast.Name):
                makers = {
                    name
                    for s in body
                    for each in ast.walk(s)
                    if isinstance(each, ast.Assign) and value.id in names(each, ast.Store)
                    for _, name in called(each)
                }
                wanted = {self.chosen["model"]} if "model" in self.chosen else self.models
                is_one = bool(makers & wanted) or any(map(MAKERS.fullmatch, makers))
                if is_one or parameter in MODEL_NAMES:
                    found.append((is_one, value.id))
            elif parameter in MODEL_NAMES:
                refuse(
                    f"line {value.lineno}: the model of {call.name}() has no name there; write "
                    f"`model = {ast.unparse(value)}` before it"
                )
        sure = {name for is_one, name in found if is_one} or {name for _, name in found}
        if len(sure) > 1:
            refuse(
                f"{call.name}() takes more than one model ({', '.join(sorted(sure))}): put them "
                "into one nn.Module, or name it: MODEL=class"
            )
        return next(iter(sure), "")

    def without_driver(self, wanted: set[str]) -> "Found":
        """Return a call of what trains where the script calls it nowhere: by its parameters."""
        if len(wanted) > 1:
            refuse(f"{', '.join(sorted(wanted))} all train. Name one: TRAIN=function")
        [name] = wanted
        makers = {self.chosen["model"]} if "model" in self.chosen else self.models
        if len(makers) != 1:
            what = "more than one model" if makers else "no model (no class of nn.Module's)"
            which = f": {', '.join(sorted(makers))}" if makers else ""
            refuse(f"there is {what}{which}. Name one: MODEL=class or function")
        [maker] = makers
        before = statements(f"model = {maker}()")
        init = self.functions.get(maker) or next(
            (
                m
                for m in self.classes[maker].body
                if isinstance(m, ast.FunctionDef) and m.name == "__init__"
            ),
            None,
        )
        if init:
            missing = [p for p in parameters(init) if p != "self" and p not in defaults(init)]
            if missing:
                refuse(
                    f"{maker}() needs {', '.join(missing)}, and nothing in the file calls it: give "
                    "defaults, or name a function without parameters: MODEL=function"
                )
        both, more = self.data_alone()
        node = self.called_by_name(self.functions[name], {"train": both[0], "test": both[1]}, {})
        return Found(self, None, self.bound(node, []), before + more, alone=True)

    def data_alone(self) -> tuple[list[ast.expr], list[ast.stmt]]:
        """Return training and test data, and the statements that make them."""
        loose = {n for n in self.globals - set(self.defined) if DATA.search(n)}
        trains = sorted(n for n in loose if TRAINS.search(n) and not TESTS.search(n))
        tests = sorted(n for n in loose if TESTS.search(n))
        if "data" in self.chosen:
            given = self.chosen["data"].split(",")
            given = [each.rpartition(":")[2] for each in given]
        else:
            loads = {
                n: f for n, f in self.functions.items()
                if DATA.search(n) and returned(f) and n not in self.models and "train" not in
                [p for p in parameters(f) if p in MODEL_NAMES]
            }  # fmt: skip
            given = list(loads)
            if trains and tests:
                by = [[n for n in each if "load" in n.lower()] or each for each in (trains, tests)]
                return [expression(by[0][0]), expression(by[1][0])], []
        if len(given) == 2:
            given.sort(key=lambda n: bool(TESTS.search(n)))
            text = [each if each in loose else f"{each}()" for each in given]
            return [expression("train_data"), expression("test_data")], statements(
                f"train_data = {text[0]}\ntest_data = {text[1]}"
            )
        if len(given) != 1:
            what = f"more than one that may: {', '.join(given)}" if given else "none that does"
            refuse(
                "a function without parameters is needed that returns training and test data "
                f"(Datasets or DataLoaders), and there is {what}. Name it: DATA=function"
            )
        function = self.functions[given[0]]
        missing = [p for p in parameters(function) if p not in defaults(function)]
        if missing:
            refuse(f"{given[0]}() needs {', '.join(missing)}: give defaults, or DATA=function")
        value = next(
            (e.value for e in own_nodes(function) if isinstance(e, ast.Return) and e.value), None
        )
        count = len(value.elts) if isinstance(value, ast.Tuple) else 2
        texts = [ast.unparse(e) for e in value.elts] if isinstance(value, ast.Tuple) else []
        test = next((i for i, text in enumerate(texts) if TESTS.search(text)), 1)
        targets = ["_"] * count
        targets[0 if test else 1], targets[test] = "train_data", "test_data"
        made = statements(f"{', '.join(targets)} = {given[0]}()")
        return [expression("train_data"), expression("test_data")], made

    def called_by_name(
        self, function: ast.FunctionDef, data: dict[str, ast.expr], known: dict[str, ast.expr]
    ) -> ast.Call:
        """Return a call of a function, each argument by its parameter's name.

        Raises:
            CannotBeConverted: names a parameter that nothing is known for.
        """
        given = []
        for name in parameters(function):
            if name in known:
                value = known[name]
            elif name in MODEL_NAMES:
                value = expression("model")
            elif DATA.search(name) and ("test" in data or "train" in data):
                kind = "test" if TESTS.search(name) or "train" not in data else "train"
                value = data.get(kind) or next(iter(data.values()))
            elif name in EPOCHS:
                value = defaults(function).get(name) or ast.Constant(1)
            elif name == "device":
                value = expression("torch.device('cuda' if torch.cuda.is_available() else 'cpu')")
            elif name in defaults(function):
                continue
            else:
                refuse(
                    f"{function.name}() needs {name!r}, and nothing in {self.path.name} says what "
                    f"that is: give it a default, or call {function.name}() in a main()"
                )
            given.append(ast.keyword(name, value))
        return ast.Call(ast.Name(function.name, ast.Load()), [], given)


def trains(function: ast.FunctionDef) -> bool:
    return any(name == "backward" for _, name in called(function))


def callers(functions: dict[str, ast.FunctionDef], found: set[str]) -> set[str]:
    """Return functions, and those that call them, and so on."""
    while True:
        more = {n for n, f in functions.items() if found & {name for _, name in called(f)}} - found
        if not more:
            return found
        found = found | more


def methods_that_train(owner: ast.ClassDef) -> set[str]:
    """Return the methods of a class that train, themselves or by another."""
    methods = {m.name: m for m in owner.body if isinstance(m, ast.FunctionDef)}
    return callers(methods, {"backward"}) - {"backward"}


def trainers(body: Sequence[ast.stmt]) -> dict[str, ast.Call]:
    """Return the objects made in a body whose class is called a trainer, each with its call."""
    return {
        each.targets[0].id: each.value
        for s in body
        for each in ast.walk(s)
        if isinstance(each, ast.Assign)
        and isinstance(each.targets[0], ast.Name)
        and isinstance(each.value, ast.Call)
        and last(each.value.func).endswith(("Trainer", "Learner"))
    }


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
        driver: the function that trains, or None for what is under `if __name__ == "__main__":`.
        call: of what trains.
        before: statements to be run first, where the script itself has none.
        alone: whether the script itself calls it nowhere.
    """

    def __init__(
        self,
        script: Script,
        driver: ast.FunctionDef | None,
        call: Call,
        before: Sequence[ast.stmt] = (),
        alone: bool = False,
    ) -> None:
        self.script, self.driver, self.call, self.alone = script, driver, call, alone
        body = driver.body if driver else script.block
        self.before, self.after = list(before), []
        self.statement: ast.stmt = ast.Expr(call.node)
        if not alone:
            self.before, self.statement, self.after = self.around(body, call.node)
            if driver:
                self.before = self.callers(driver) + self.before
        does = {n for n, f in script.functions.items() if tests_only(f) or trains(f)}
        self.earlier = [s for s in self.before if does & {name for _, name in called(s)}]
        self.before = [s for s in self.before if s not in self.earlier]
        self.model = "model" if alone else script.model_of(call, body)
        self.left_out: list[ast.stmt] = []
        self.check_loop()
        if not any(self.model in names(s, ast.Store) for s in self.before):
            refuse(
                f"the model {self.model!r} is made at the top of the file, where an import makes "
                "it: make it where it is trained, in main() for instance"
            )
        self.test = self.find_test()
        self.train_data, self.test_data = self.find_data()

    @property
    def place(self) -> str:
        return f"in {self.driver.name}()" if self.driver else "under `if __name__ …`"

    def around(
        self, body: Sequence[ast.stmt], node: ast.AST
    ) -> tuple[list[ast.stmt], ast.stmt, list[ast.stmt]]:
        """Return the statements before the one with a call, that one, and those after it."""
        for i, statement in enumerate(body):
            if any(node is each for each in ast.walk(statement)):
                if isinstance(statement, ast.If | ast.With | ast.Try):
                    inner = statement.body
                    if any(
                        node is each
                        for s in getattr(statement, "orelse", [])
                        for each in ast.walk(s)
                    ):
                        inner = statement.orelse
                    before, found, after = self.around(inner, node)
                    return [*body[:i], *before], found, [*after, *body[i + 1 :]]
                return list(body[:i]), statement, list(body[i + 1 :])
        raise AssertionError(ast.unparse(node))

    def callers(self, function: ast.FunctionDef) -> list[ast.stmt]:
        """Return what is run before a function is called, its parameters included."""
        found: list[ast.stmt] = []
        given = defaults(function)
        for driver, body in self.script.drivers():
            for node, name in (each for s in body for each in called(s)):
                if name == function.name and driver is not function:
                    found, _, _ = self.around(body, node)
                    bound = self.script.arguments(node, parameters(function))
                    given |= {a.parameter: a.value for a in bound}
                    if driver:
                        found = self.callers(driver) + found
                    break
        missing = [name for name in parameters(function) if name not in given]
        if missing:
            refuse(f"nothing calls {function.name}({', '.join(missing)}): call it in a main()")
        return found + [
            ast.Assign([ast.Name(name, ast.Store())], given[name], lineno=function.lineno)
            for name in parameters(function)
            if not (isinstance(given[name], ast.Name) and given[name].id == name)
        ]

    def check_loop(self) -> None:
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

    def find_test(self) -> Call:
        """Find what tests: called by the driver, else by its parameters."""
        script = self.script
        given = script.chosen.get("test")
        body = self.driver.body if self.driver else script.block
        found: list[Call] = []
        for node, name in (each for s in body for each in called(s)):
            function = script.functions.get(name)
            by_trainer = (
                name in ("test", "evaluate", "validate")
                and isinstance(node.func, ast.Attribute)
                and base(node.func) in trainers(body)
            )
            tests = (function and tests_only(function)) or by_trainer
            if (name == given) if given and not by_trainer else tests:
                call = script.bound(node, body)
                if by_trainer or self.model in {n for a in call.arguments for n in names(a.value)}:
                    found.append(call)
        found.sort(key=lambda call: (not call.name.startswith("test"), -call.node.lineno))
        if found:
            return found[0]
        candidates = [
            n for n, f in script.functions.items() if tests_only(f) and n != self.call.name
        ]
        candidates = [given] if given else sorted(candidates, key=lambda n: "test" not in n)
        if not candidates:
            refuse(
                f"nothing in {script.path.name} tests: no function with `no_grad` or `.eval()` "
                "that takes the model. Write one that returns loss and accuracy, or name it: "
                "TEST=function"
            )
        data = self.data_arguments()
        if not data["test"]:
            refuse(f"nothing says which data {candidates[0]}() tests on: call it {self.place}")
        known = {a.parameter: a.value for a in self.call.arguments}
        known = {n: v for n, v in known.items() if n not in MODEL_NAMES and not DATA.search(n)}
        if not self.alone:
            known |= {p: expression(self.model) for p in MODEL_NAMES}
        function = script.functions[candidates[0]]
        node = script.called_by_name(function, {"test": data["test"][0]}, known)
        return script.bound(node, body)

    def data_arguments(self) -> dict[str, list[ast.expr]]:
        """Return what may be data among the arguments of what trains, by what it is for."""
        found: dict[str, list[ast.expr]] = {"train": [], "test": [], "either": []}
        for parameter, value, _ in self.call.arguments:
            text = ast.unparse(value)
            if isinstance(value, ast.Constant) or text == self.model or parameter in EPOCHS:
                continue
            if not (DATA.search(parameter) or DATA.search(text)) or "collator" in parameter:
                continue
            for_test = TESTS.search(parameter) or TESTS.search(text)
            for_training = TRAINS.search(parameter) or TRAINS.search(text)
            kind = "test" if for_test else "train" if for_training else "either"
            found[kind].append(value)
        if self.alone:
            found["test"] = found["test"] or [expression("test_data")]
            if not any("test_data" in names(s, ast.Store) for s in self.before):
                found["test"] = [self.script.data_alone()[0][1]]
        return found

    def find_data(self) -> tuple[ast.expr, ast.expr]:
        """Find what is trained on and what is tested on."""
        found = self.data_arguments()
        training = found["train"] or found["either"]
        if len(training) != 1:
            given = ", ".join(ast.unparse(value) for value in training)
            what = f"more than one that may be its data ({given})" if training else "no data"
            refuse(
                f"{self.call.name}(…), {self.where(self.call.node)}, is given {what}: it is to "
                "take one Dataset or DataLoader, as a parameter named train_loader or train_dataset"
            )
        test = [
            a.value
            for a in self.test.arguments
            if (DATA.search(a.parameter) or DATA.search(ast.unparse(a.value)))
            and not isinstance(a.value, ast.Constant)
            and ast.unparse(a.value) not in (self.model, ast.unparse(training[0]))
            and "collator" not in a.parameter
        ]
        if not test and any(
            ast.unparse(a.value) == ast.unparse(training[0]) for a in self.test.arguments
        ):
            test = training
        test = [v for v in test if TESTS.search(ast.unparse(v))] or test
        if not test:
            refuse(
                f"{self.test.name}(…), {self.where(self.test.node)}, is given no data: it is to "
                "take one Dataset or DataLoader, as a parameter named test_loader or test_dataset"
            )
        return training[0], test[0]

    def where(self, node: ast.AST) -> str:
        return f"line {node.lineno}" if hasattr(node, "lineno") else "called by its parameters"


def tests_only(function: ast.FunctionDef) -> bool:
    """Tell whether a function tests a model: it evaluates, and does not train."""
    nodes = list(ast.walk(function))
    found = {last(n.func) for n in nodes if isinstance(n, ast.Call)}
    found |= {last(n) for n in nodes if isinstance(n, ast.Attribute)}
    return bool(found & {"no_grad", "inference_mode", "eval"}) and "backward" not in found
