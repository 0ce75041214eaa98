"""The task.py of an app made from a script: its driver's statements, a function for each part."""

import ast
import builtins
import copy
import re
from collections.abc import Sequence
from typing import NoReturn

from .app.federated_app.definitions import binds_and_reads
from .inline import InlineTest, quiet
from .python_trees import (
    base,
    called,
    callers,
    changed,
    defaults,
    expression,
    figure,
    free,
    is_seed,
    last,
    lines,
    names,
    noise,
    refuse,
    returned,
    shown,
    sliced,
    statements,
    trains,
)
from .training import Training
from .words import COMMAND_LINES, DATA, DRAWS, EPOCHS, FIGURES, FILLS, FITS, NOISE


class Prefixed(ast.NodeTransformer):
    """The script's own names, written as `script.name`."""

    def __init__(self, own: set[str], prefix: str = "script") -> None:
        self.own, self.prefix = own, prefix

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self.own or not isinstance(node.ctx, ast.Load):
            return node
        return ast.Attribute(ast.Name(self.prefix, ast.Load()), node.id, ast.Load())


class Task:
    """The functions of task.py.

    Args:
        found: the script's training.
        package: the app's.
    """

    def __init__(self, found: Training, package: str) -> None:
        self.found, self.script, self.package = found, found.script, package
        self.model = found.model
        self.train_data = self.parameter(found.train_data, "train_data")
        self.test_data = self.parameter(found.test_data, "test_data")
        if self.test_data == self.train_data:
            self.test_data = "test_data"
        self.data = {self.train_data, self.test_data}
        self.fresh = self.fresh_names()
        self.marks = self.marked()
        self.has_epochs = False
        self.trained: tuple[str, list[str]] | None = None
        self.inline = found.test if isinstance(found.test, InlineTest) else None
        self.calls = [
            found.call.name if found.call.loop else ast.unparse(found.call.node),
            f"the loop over {ast.unparse(found.test_data)}, {lines(found.test.node)}"
            if self.inline
            else ast.unparse(found.test.node),
        ]
        self.sizes = self.sizes_of(found.train_data, self.train_data)
        self.sizes |= self.sizes_of(found.test_data, self.test_data)
        self.check_globals()
        self.prepare()

    def fresh_names(self) -> dict[str, str]:
        """Return our own names in task.py, none of which is one of the script's."""
        found = self.found
        body = [*found.before, found.statement, *found.after, ast.Expr(found.test.node)]
        taken = names(body) | names(body, ast.Store) | {self.model} | self.data
        taken -= self.script.globals - names(body, ast.Store)
        ours = ("config", "seed", "settings", "glue", "script", "trained")
        return {name: f"own_{name}" if name in taken else name for name in ours}

    @staticmethod
    def parameter(value: ast.expr, otherwise: str) -> str:
        return value.id if isinstance(value, ast.Name) else otherwise

    def sizes_of(self, data: ast.expr, loader: str) -> dict[str, ast.expr]:
        """Return the names of what a loader is made of, each with the size of a client's part."""
        found: set[str] = set()
        for statement in (s for s in self.found.before if isinstance(s, ast.Assign)):
            target, value = statement.targets[0], statement.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=False))
            for name, made in pairs:
                if ast.unparse(name) == ast.unparse(data) and isinstance(made, ast.Call):
                    is_loader = last(made.func).lower().endswith("loader")
                    found |= names([*made.args, *made.keywords]) if is_loader else set()
        return {name: expression(f"len({loader}.dataset)") for name in found}

    def check_globals(self) -> None:
        """Refuse functions that need what is bound only where the file is run by itself."""
        block = names(self.script.block, ast.Store) - self.script.globals
        functions = (self.found.call.function, getattr(self.found.test, "function", None))
        for function in filter(None, functions):
            whole = {n.args[0].id for n, f in called(function) if f == "len" and is_name(n.args)}
            for name in sorted(binds_and_reads(function)[1] & whole & self.sizes.keys()):
                refuse(
                    f"{function.name}() takes the length of all of {name!r}, a global name, and a "
                    "client has a part: write `len(loader.dataset)`, of the loader that it is given"
                )
            for name in sorted(binds_and_reads(function)[1] & block):
                refuse(
                    f"{function.name}() uses {name!r}, which is bound only under `if __name__ == "
                    f'"__main__":`: give it to the function as a parameter, or bind it above'
                )
        needed = names([self.found.statement, self.found.train_data, self.found.test_data])
        for statement in self.found.before:
            bound = names(statement, ast.Store) if isinstance(statement, ast.Assign) else set()
            if self.model in bound and isinstance(statement.value, ast.Call):
                for name in sorted(bound & needed - {self.model}):
                    refuse_together(name, statement)
            for name in sorted(filled(statement) & names(self.script.loose, ast.Store)):
                if reader := self.script.reader(name):
                    refuse(
                        f"{reader}, a global name, and {lines(statement)}, which a client does not "
                        f"run, fill it: make it in a function, `{name} = make_{name}(…)`"
                    )
        for statement in self.script.loose:
            if any(name in COMMAND_LINES for _, name in called(statement)):
                refuse(
                    f"{lines(statement)} reads the command line when the file is imported, and a "
                    "client's is another: read it in main(), or in a function that main() calls"
                )

    def marked(self) -> str:
        """Return where the script's own training is, for centralised.py."""
        found = self.found
        if found.alone:
            return "None"
        position = (found.statement.lineno, found.statement.end_lineno)
        aside = [(s.lineno, s.end_lineno) for s in found.left_out]
        names_of = {"model": self.model, "data": ast.unparse(found.train_data)}
        return repr({"lines": position, "aside": aside} | names_of)

    def prepare(self) -> None:
        """Find the statements of each function, and those that more than one has."""
        found, before = self.found, self.found.before
        both = names([found.train_data, found.test_data])
        whole = sliced(before, {self.model} | both)
        for place in [*before, found.statement, *found.after, ast.Expr(found.test.node)]:
            if place not in whole:
                Sized(self.sizes).visit(place)
        if self.inline:
            places = [*self.inline.body, ast.Expr(ast.Dict([], [*self.inline.figures.values()]))]
            [Sized(self.sizes).visit(place) for place in places]
        training = self.train_statement()
        tested, result = self.test_statements()
        tested = self.last_epoch(free([*tested, result])) + tested
        first = getattr(found.test.node, "lineno", 0)
        later = [s for s in found.after if s.lineno < first]
        if self.inline and found.test.node in found.epochs:
            later = [s for s in self.inline.before if not trains(s)]
        held = {self.model} | self.data
        needs = {
            "build": sliced(before, {self.model}),
            "data": sliced(before + later, both, {self.model}, seeds=True),
            "train": self.without_data(before, free(training), held),
            "evaluate": self.without_data(before + later, free([*tested, result]), held),
        }
        self.needs = needs
        self.set_epochs([*needs["train"], *training])
        shared = self.shared(needs, held)
        self.settings = [s for s in before if s in shared]
        self.bodies = {
            kind: [s for s in body if s not in shared or is_seed(s)] for kind, body in needs.items()
        }
        self.training = training
        self.bodies["evaluate"] += tested
        self.tested = result
        if self.train_data in free([*self.bodies["evaluate"], result]) - {self.test_data}:
            fetch = self.own(f"{self.train_data}, _ = data(config)")  # of a trainer made for both
            self.bodies["evaluate"] = fetch + self.bodies["evaluate"]
        rest = {
            "build": [ast.Name(self.model, ast.Load())],
            "data": [found.train_data, found.test_data],
            "train": training,
            "evaluate": [result],
        }
        given = {"build": set(), "data": set(), "train": held, "evaluate": {self.model}}
        given["evaluate"].add(self.test_data)
        bound = names(self.settings, ast.Store)
        self.handed: dict[str, list[str]] = {}
        for kind, body in self.bodies.items():
            needed = free([*body, *rest[kind]])
            self.handed[kind] = sorted(needed & bound - given[kind])
            self.check_bound(needed - bound - given[kind], kind)
        self.returned = sorted({name for handed in self.handed.values() for name in handed})

    def without_data(
        self, before: Sequence[ast.stmt], wanted: set[str], held: set[str]
    ) -> list[ast.stmt]:
        """Return the statements that names are made by, once model and data are there."""
        inner = [s for s in before if not self.makes_model(s)]
        inner = [s for s in inner if not names(s, ast.Store) or names(s, ast.Store) - self.data]
        return sliced(inner, wanted - held, set())

    def makes_model(self, statement: ast.stmt) -> bool:
        """Tell whether a statement makes the model, or sets its weights; see `changed`."""
        if self.model not in changed(statement):
            return False
        receiver = base(getattr(statement, "value", statement))
        of_another = receiver and receiver not in self.script.globals | {self.model}
        return not (of_another and isinstance(statement, ast.Expr))  # optimizer.add_param_group(…)

    def shared(self, needs: dict[str, list[ast.stmt]], held: set[str]) -> list[ast.stmt]:
        """Return the statements of more than one function, which depend on no client's data.

        What trains is made anew each time: it counts its epochs.
        """
        tainted: set[int] = set()
        for kind in ("train", "evaluate"):
            known = set(held)
            for statement in needs[kind]:
                if names(statement) & known or self.script.trainers([statement]):
                    tainted.add(id(statement))
                    known |= names(statement, ast.Store)
        every = [s for body in needs.values() for s in body]
        found = [s for s in every if every.count(s) > 1 and id(s) not in tainted]
        # Nothing shared may need what is not.
        while True:
            free = names(found) & names([s for s in every if s not in found], ast.Store) - names(
                found, ast.Store
            )
            worse = [s for s in found if names(s) & free]
            if not worse:
                break
            found = [s for s in found if s not in worse]
        made = names(found, ast.Store) | self.script.globals
        drawing = [i for i, s in enumerate(needs["data"]) if self.draws([s])]
        if self.draws(found) and drawing:  # one after the other
            found += [s for s in needs["data"][: drawing[-1] + 1] if s not in found]
        if self.drawn(found):  # as the script draws it
            found += [s for s in needs["data"] if is_seed(s) and not names(s) - made]
        return found

    def drawn(self, statements: Sequence[ast.stmt]) -> bool:
        """Tell whether statements make data, or draw: they are run once, seeded."""
        return self.draws(statements) or any(map(DATA.search, names(statements, ast.Store)))

    def draws(self, statements: Sequence[ast.stmt]) -> bool:
        """Tell whether statements draw random numbers, themselves or in the script's functions."""
        own = self.script.functions
        known = callers(own, {n for n, f in own.items() if any(map(draws, called(f)))})
        return any(c[1] in known or draws(c) for s in statements for c in called(s))

    def last_epoch(self, needed: set[str]) -> list[ast.stmt]:
        """Return what binds the counter of epochs, where the test takes it."""
        loop = self.found.statement
        if not self.found.epochs or names(loop.target, ast.Store) - needed:
            return []
        count = [node for node, name in called(loop.iter) if name == "range"]
        target = ast.unparse(loop.target)
        return [s for c in count[:1] for s in statements(f"{target} = {ast.unparse(c)}[-1]")]

    def check_bound(self, missing: set[str], kind: str) -> None:
        found = self.found
        training = names(found.statement, ast.Store) - names(found.before, ast.Store)
        for name in sorted(missing & training if kind == "evaluate" else ()):
            refuse(
                f"{self.calls[1]} takes {name!r}, which the training makes, "
                f"{lines(found.statement)}, and a client tests apart from it: leave it out"
            )
        made = names([*found.before, *found.earlier], ast.Store) & missing - self.script.globals
        for name in sorted(made - set(dir(builtins))):
            statement = next(
                s for s in [*found.before, *found.earlier] if name in names(s, ast.Store)
            )
            if statement in found.earlier:
                refuse(
                    f"{name!r} is made by what trains or tests before the training, "
                    f"{lines(statement)}: make it apart"
                )
            refuse_together(name, statement)

    def train_statement(self) -> list[ast.stmt]:
        """Return what trains, with the client's data, and with its result kept."""
        found, call = self.found, self.found.call
        statement = copy.deepcopy(found.statement) if call.loop else found.statement
        places = [statement] if call.loop else [argument.call for argument in call.arguments]
        put(places, found.train_data, self.train_data)
        if ast.unparse(found.test_data) in [ast.unparse(a.value) for a in call.arguments]:
            put(places, found.test_data, self.test_data)
        if found.epochs:
            pairs = zip(found.epochs, statement.body, strict=True)
            kept = [s for original, s in pairs if original not in found.left_out]
            statement = ast.For(statement.target, statement.iter, kept, [], lineno=statement.lineno)
        if call.loop:
            [statement] = quiet(statement)
            self.trained = self.counted(statement)
        if found.epochs:
            count = next((n for n, name in called(statement.iter) if name == "range"), None)
            if count is not None:
                self.has_epochs = True
                passes = expression(self.ours("glue.passes(_, config.local_epochs)"))
                passes.args[0] = count
                statement.iter = passes
            statement.body = [self.kept_result(s) for s in statement.body]
            return [statement]
        return [self.kept_result(statement)]

    def counted(self, loop: ast.For) -> tuple[str, list[str]] | None:
        """Return the figures of a loop that trains: what it sums up, else its last loss."""
        made: dict[str, str] = {}
        for each in reversed(loop.body if self.found.epochs else []):
            if trains(each):
                break
            if isinstance(each, ast.Assign | ast.AugAssign) and not self.found.tests(each):
                for name in sorted(names(each, ast.Store)):
                    made.setdefault(figure(ast.Name(name, ast.Load())), name)
        made = {kind: name for kind, name in made.items() if kind in FIGURES}
        loss = self.found.call.node.func.value
        loss = next(iter(loss.args), loss) if isinstance(loss, ast.Call) else loss  # of a scaler
        if "loss" not in ast.unparse(loss):  # of an accelerator
            loss = next(iter(self.found.call.node.args), loss)
        if "loss" not in made and isinstance(loss, ast.Name):
            made["loss"] = loss.id
        values = ", ".join(f"{kind!r}: {name}" for kind, name in made.items())
        return (f"{{{values}}}", []) if made else None

    def kept_result(self, statement: ast.stmt) -> ast.stmt:
        """Return a statement with the result of the training under a name."""
        call = self.found.call
        value = getattr(statement, "value", None)
        if value is not call.node:
            return statement
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            self.trained = (ast.unparse(target), [figure(part) for part in parts])
        elif isinstance(statement, ast.Expr | ast.AugAssign):
            named = returned(call.function) if call.function else []
            if named is None or (call.name == "fit" and not call.function):
                return ast.Expr(call.node)
            self.trained = (self.fresh["trained"], named)
            return ast.Assign([ast.Name(self.fresh["trained"], ast.Store())], call.node, lineno=0)
        return statement

    def test_statements(self) -> tuple[list[ast.stmt], ast.expr]:
        """Return what tests, with the client's data and model: statements, and its figures."""
        test = self.found.test
        if self.inline:
            put(self.inline.body, self.found.test_data, self.test_data)
            result = expression(self.ours("glue.figures({})"))
            result.args[0].keys = [ast.Constant(name) for name in test.figures]
            result.args[0].values = list(test.figures.values())
            put([result], self.found.test_data, self.test_data)
            return self.inline.body, result
        put([argument.call for argument in test.arguments], self.found.test_data, self.test_data)
        given = {argument.parameter for argument in test.arguments}
        if test.name in ("test", "validate") and not test.function and "model" not in given:
            test.node.keywords.append(ast.keyword("model", ast.Name(self.model, ast.Load())))
        named = self.test_names()
        if named is None:
            result = expression(self.ours("glue.printed(lambda: _)"))
            result.args[0].body = test.node
        else:
            result = expression(self.ours("glue.figures(_)"))
            result.args = [test.node, *map(ast.Constant, named)]
        return [], result

    def test_names(self) -> list[str] | None:
        """Return the names of what a function that tests returns, or its caller makes of it."""
        test = self.found.test
        named = returned(test.function) if test.function else []
        for each in ast.walk(ast.Module(self.script.body(self.found.driver), [])):
            if isinstance(each, ast.Assign) and each.value is test.node and named:
                target = each.targets[0]
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                pairs = zip(map(figure, parts), named, strict=False)
                given = [theirs if theirs in FIGURES else own for theirs, own in pairs]
                named = given if len({*given}) == len(named) else named
        return named

    def set_epochs(self, body: list[ast.stmt]) -> None:
        """Put `local-epochs` where the script says how many."""
        call = self.found.call
        given = {id(a.value): a for a in call.arguments if a.parameter in EPOCHS}
        for node, _ in (each for s in body for each in called(s)):
            for i, value in enumerate(node.args):
                if id(value) in given:
                    node.args[i] = self.epochs(value)
            for keyword in node.keywords:
                if keyword.arg in EPOCHS:
                    keyword.value = self.epochs(keyword.value)
        if call.function and not given:
            own = defaults(call.function)
            for name in EPOCHS & own.keys():
                call.node.keywords.append(ast.keyword(name, self.epochs(own[name])))

    def epochs(self, own: ast.expr) -> ast.expr:
        self.has_epochs = True
        return ast.BoolOp(ast.Or(), [expression(self.ours("config.local_epochs")), own])

    # Text -------------------------------------------------------------------------------------

    @property
    def reads_command_line(self) -> bool:
        return any(name in COMMAND_LINES for _, name in called(self.script.tree)) or any(
            name in COMMAND_LINES for t in self.script.modules.values() for _, name in called(t)
        )

    def reads(self, statement: ast.stmt) -> bool:
        """Tell whether a statement reads the command line, or calls a function that does."""
        found = {name for _, name in called(statement)}
        for function in (self.script.functions.get(name) for name in tuple(found)):
            found |= {name for _, name in called(function)} if function else set()
        return bool(found & COMMAND_LINES)

    def reading(self, statement: ast.stmt) -> ast.stmt:
        """Return a statement that reads the setting in the place of the command line."""
        line = expression(self.ours("glue.command_line(script.__file__, config.arguments)"))
        return ast.With([ast.withitem(line)], [statement])

    def text(self) -> str:
        """Return task.py."""
        train_data, test_data, model = self.train_data, self.test_data, self.model
        functions = []
        if self.settings:
            drawn = self.drawn(self.settings)
            cached = "@cache\n" if drawn else ""
            functions.append(
                self.function(
                    f"{cached}def settings(config: Config) -> tuple[Any, ...]:",
                    "Return what more than one of the others needs.",
                    [*self.own("glue.reseed(config.seed)" if drawn else ""), *self.settings],
                    ", ".join(self.returned) + ("," if len(self.returned) == 1 else ""),
                )
            )
        reseed = self.own("glue.reseed(config.seed)")
        others = self.own("glue.reseed(config.seed + 1)")  # than those of the import
        functions.append(
            self.function(
                "def build(config: Config) -> nn.Module:",
                "Return a new model.",
                [*self.fetched("build"), *reseed, *self.bodies["build"]],
                model,
            )
        )
        functions.append(
            self.function(
                "@cache\ndef data(config: Config) -> tuple[Any, Any]:",
                "Return all training data and test data, each a DataLoader or a Dataset.",
                [
                    *self.fetched("data"),
                    *(others if self.draws(self.script.loose) else reseed),
                    *self.bodies["data"],
                ],
                ast.Tuple([self.found.train_data, self.found.test_data], ast.Load()),
            )
        )
        result = "{}"
        if self.trained:
            value, figures = self.trained
            result = self.ours(f"glue.figures({', '.join([value, *map(repr, figures)])})")
        # The random numbers begin with the training itself, as centralised.py has it.
        functions.append(
            self.function(
                f"def train(config: Config, seed: int, {model}: nn.Module, {train_data}: Any, "
                f"{test_data}: Any) -> tuple[nn.Module, dict[str, float]]:",
                "Train the model, and return it with figures such as the loss.",
                [
                    *self.fetched("train"),
                    *self.bodies["train"],
                    *self.own("glue.reseed(seed)"),
                    *self.training,
                ],
                f"{model}, {result}",
                {model} | self.data,
            )
        )
        functions.append(
            self.function(
                f"def evaluate(config: Config, {model}: nn.Module, {test_data}: Any) "
                "-> dict[str, float]:",
                "Test the model and return its figures.",
                [*self.fetched("evaluate"), *self.bodies["evaluate"]],
                self.tested,
                {model, test_data},
            )
        )
        return self.head() + "\n\n".join(functions)

    def head(self) -> str:
        """Return what comes before the functions."""
        name = self.script.path.stem
        script = self.ours(f"from {self.package}.own import {name} as script")
        if self.draws(self.script.loose):
            why = "# what the script draws when imported is the same everywhere"
            script = f"\n{self.ours('glue.reseed(42)')}  {why}\n{script}  # noqa: E402"
        glue = self.ours("glue")
        glue = "glue" if glue == "glue" else f"glue as {glue}"
        return (
            f'"""The project, for a federation: what {name}.py does, in parts. Plain PyTorch.\n\n'
            f"`{self.ours('script')}` is {name}.py itself; names and arguments are its own. Change "
            'here what a client\nhands to it.\n"""\n\n'
            "from functools import cache\nfrom typing import Any\n\n"
            f"from torch import nn\n\nfrom {self.package} import {glue}\n"
            f"from {self.package}.config import Config\n{script}\n\n"
            "# Where the script's own training is, for centralised.py.\n"
            f"TRAINING: dict[str, Any] | None = {self.marks}\n\n\n"
        )

    def ours(self, text: str) -> str:
        """Return text with our names as they are in this task.py."""
        pattern = rf"(?<![.\w])({'|'.join(self.fresh)})\b"
        return re.sub(pattern, lambda match: self.fresh[match[0]], text)

    @staticmethod
    def unparsed(node: ast.AST, prefixed: Prefixed) -> str:
        return ast.unparse(ast.fix_missing_locations(prefixed.visit(copy.deepcopy(node))))

    def own(self, line: str) -> list[ast.stmt]:
        """Return a line of ours as statements."""
        return ast.parse(self.ours(line)).body

    def fetched(self, kind: str) -> list[ast.stmt]:
        """Return what gets a function the settings that it needs."""
        needed = self.handed[kind]
        unpacked = ", ".join(name if name in needed else "_" for name in self.returned)
        comma = "," if len(self.returned) == 1 else ""
        made = self.ours("settings(config)")
        return ast.parse(f"{unpacked}{comma} = {made}").body if needed else []

    def function(
        self,
        signature: str,
        explanation: str,
        body: list[ast.stmt],
        result: str | ast.expr,
        given: set[str] = frozenset(),
    ) -> str:
        """Return a function as text, with the script's names as `script.name`."""
        body = [self.reading(s) if self.reads(s) else s for s in body]
        local = names(body, ast.Store) | given | {*self.fresh.values(), "data"}
        prefixed = Prefixed(self.script.globals - local, self.fresh["script"])
        value = expression(result) if isinstance(result, str) else result
        texts = [self.unparsed(each, prefixed) for each in [*body, ast.Return(value)]]
        texts[-1] = re.sub(r"^return \((.*)\)$", r"return \1", texts[-1])
        lines = "\n".join([f'"""{explanation}"""', *texts]).split("\n")
        return "\n".join([self.ours(signature), *(f"    {line}" for line in lines), ""])

    def fitted(self) -> list[ast.stmt]:
        """Return what takes a scaler, a vocabulary or weights from all training data."""
        own = self.script.functions
        known = callers(own, {n for n, f in own.items() if fits(f)})
        data = self.needs["data"]
        made = names(data, ast.Store)
        places = [*data, *(s for s in self.needs["train"] if s not in data and names(s) & made)]
        return [s for s in places if fits(s) or known & {name for _, name in called(s)}]

    def relative_paths(self) -> list[str]:
        """Return the files that the parts name, and that lie beside the script."""
        body = [s for part in self.needs.values() for s in part]
        nodes = [n for each in [*body, *self.script.defined.values()] for n in ast.walk(each)]
        texts = {n.value for n in nodes if isinstance(getattr(n, "value", 0), str)}
        paths = {text for text in texts if re.fullmatch(r"[\w.-][\w./-]*\.\w+", text)}
        saved = {getattr(n, "value", 0) for c in nodes if is_save(c) for n in ast.walk(c)}
        return sorted(p for p in paths - saved if (self.script.path.parent / p).is_file())

    def told(self) -> list[str]:
        """Return what was found, a line each."""
        found = self.found
        if self.inline:
            figures = ", ".join(found.test.figures)
        else:
            named = self.test_names()
            figures = "by what it prints" if named is None else ", ".join(named) or "its dict"
        said = [
            f"model  {self.model}" + ("" if found.alone else f", made {found.place}"),
            f"train  {self.calls[0]}",
            f"data   {ast.unparse(found.train_data)}, tested on {ast.unparse(found.test_data)}",
            f"test   {self.calls[1]}: {figures}",
        ]
        for why, left_out in (
            ("left out, for it trains or tests before", found.earlier),
            ("left out of a client's loop, for they train nothing", found.left_out),
            ("left out, for it changes the model after its training", found.undone()),
        ):
            told = [f"    {shown(s)}" for s in left_out if not noise(s)]
            said += [f"{why}:", *told] if told else []
        anew = {id(s): s for n, s in found.of_model().items() if n in names(self.training)}
        if anew:
            said.append("made of the model anew in each round, and not averaged:")
            said += [f"    {shown(s)}" for s in anew.values()]
        if fitted := self.fitted():
            said.append("on all clients' data, which nobody has where each keeps its own:")
            said += [f"    {shown(s)}" for s in fitted]
        if found.others:
            said.append(f"between epochs each client tests on all of {', '.join(found.others)}")
        if paths := self.relative_paths():
            said.append(f"found from where you stand only, give whole paths: {', '.join(paths)}")
        if not self.has_epochs:
            said.append("local-epochs is no setting: the script alone says how many it trains")
        return said


def filled(statement: ast.stmt) -> set[str]:
    """Return the names of dicts and lists that a statement fills."""
    nodes = list(ast.walk(statement))
    items = [n for n in nodes if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)]
    methods = [c.func for n in nodes for c, name in called(n) if name in FILLS]
    return {n.value.id for n in [*items, *methods] if isinstance(getattr(n, "value", 0), ast.Name)}


def refuse_together(name: str, statement: ast.stmt) -> NoReturn:
    refuse(
        f"{name!r} is made together with the model ({lines(statement)}): make it apart, from the "
        "model that is there, so that a client can make it for its own (of an accelerator: prepare "
        "the model alone, and move each batch to its device)"
    )


def is_save(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and bool(NOISE.fullmatch(last(node.func)))


def fits(node: ast.AST) -> bool:
    """Tell whether it takes something from all examples that it is given."""
    return any(FITS.fullmatch(name) for _, name in called(node))


def draws(found: tuple[ast.Call, str]) -> bool:
    """Tell whether a call draws random numbers."""
    return bool(DRAWS.search(ast.unparse(found[0].func)))


def is_name(values: list[ast.expr]) -> bool:
    return bool(values) and isinstance(values[0], ast.Name)


class Sized(ast.NodeTransformer):
    """The length of a client's part in the place of that of all data."""

    def __init__(self, sizes: dict[str, ast.expr]) -> None:
        self.sizes = sizes

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if last(node.func) == "len" and is_name(node.args):
            return self.sizes.get(node.args[0].id, node)
        return self.generic_visit(node)


class Put(ast.NodeTransformer):
    """A name in the place of an expression."""

    def __init__(self, old: ast.expr, name: str) -> None:
        self.old, self.name = ast.unparse(old), name

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.expr) and ast.unparse(node) == self.old:
            return ast.Name(self.name, getattr(node, "ctx", ast.Load()))
        return self.generic_visit(node)


def put(places: Sequence[ast.AST], old: ast.expr, name: str) -> None:
    """Put a name in the place of an expression, wherever it stands in these."""
    if ast.unparse(old) != name:
        for place in places:
            Put(old, name).generic_visit(place)
