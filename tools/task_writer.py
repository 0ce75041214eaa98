"""The task.py of an app made from a script: its driver's statements, a function for each part."""

import ast
import builtins
import copy
from collections.abc import Iterable, Sequence

from script_reader import (
    DATA,
    EPOCHS,
    Call,
    Found,
    called,
    defaults,
    expression,
    figure,
    last,
    lines,
    names,
    noise,
    parameters,
    refuse,
    returned,
    sliced,
)

COMMAND_LINES = {"parse_args", "parse_known_args", "parse_args_into_dataclasses"}
DRAWS = {"random_split", "train_test_split", "shuffle", "permutation", "randperm", "randn", "rand"}
DRAWS |= {"randint", "choice", "sample", "normal"}
STEPS = {"step", "set_epoch", "update", "update_parameters"}  # what a loop does beside training


class Prefixed(ast.NodeTransformer):
    """The script's own names, written as `script.name`."""

    def __init__(self, own: set[str]) -> None:
        self.own = own

    def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: N802
        if node.id not in self.own or not isinstance(node.ctx, ast.Load):
            return node
        return ast.Attribute(ast.Name("script", ast.Load()), node.id, ast.Load())


class Task:
    """The functions of task.py.

    Args:
        found: the script's training.
        package: the app's.
    """

    def __init__(self, found: Found, package: str) -> None:
        self.found, self.script, self.package = found, found.script, package
        self.model = found.model
        self.train_data = self.parameter(found.train_data, "train_data")
        self.test_data = self.parameter(found.test_data, "test_data")
        if self.test_data == self.train_data:
            self.test_data = "test_data"
        self.data = {self.train_data, self.test_data}
        self.marks = self.marked()
        self.has_epochs = False
        self.trained: tuple[str, list[str]] | None = None
        self.calls = [ast.unparse(call.node) for call in (found.call, found.test)]
        self.check_globals()
        self.prepare()

    @staticmethod
    def parameter(value: ast.expr, otherwise: str) -> str:
        return value.id if isinstance(value, ast.Name) else otherwise

    def check_globals(self) -> None:
        """Refuse functions that need what is bound only where the file is run by itself."""
        block = names(self.script.block, ast.Store)
        for function in filter(None, (self.found.call.function, self.found.test.function)):
            own = names(function, ast.Store) | {*parameters(function)} | self.script.globals
            for name in sorted((names(function) - own) & block):
                refuse(
                    f'{function.name}() uses {name!r}, which is bound only under `if __name__ == '
                    f'"__main__":`: give it to the function as a parameter, or bind it above'
                )
        for statement in self.script.top:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                continue
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
        found.left_out = self.unneeded()
        aside = [(s.lineno, s.end_lineno) for s in found.left_out]
        names_of = {"model": self.model, "data": ast.unparse(found.train_data)}
        return repr({"lines": position, "aside": aside} | names_of)

    def unneeded(self) -> list[ast.stmt]:
        """Return what a loop over epochs does that changes nothing that is trained."""
        loop = self.found.statement
        if not isinstance(loop, ast.For):
            return []
        kept = [s for s in loop.body if self.essential(s)]
        while True:
            needed = names(kept)
            more = [s for s in loop.body if s not in kept and names(s, ast.Store) & needed]
            if not more:
                break
            kept += more
        return [s for s in loop.body if s not in kept]

    def essential(self, statement: ast.stmt) -> bool:
        if any(node is self.found.call.node for node in ast.walk(statement)):
            return True
        steps = (
            isinstance(node.func, ast.Attribute) and name in STEPS and node.func.value
            for node, name in called(statement)
        )
        return any(steps) and not noise(statement)

    def prepare(self) -> None:
        """Find the statements of each function, and those that more than one has."""
        found, before = self.found, self.found.before
        evaluation = self.test_call(found.test)
        training = self.train_statement()
        later = [s for s in found.after if s.lineno < getattr(evaluation, "lineno", 0)]
        held = {self.model} | self.data
        needs = {
            "build": sliced(before, {self.model}),
            "data": sliced(
                before, names([found.train_data, found.test_data]), {self.model}, seeds=True
            ),
            "train": self.without_data(before, names(training), held),
            "evaluate": self.without_data(before + later, names(evaluation), held),
        }
        self.set_epochs(needs["train"] + [training])
        shared = self.shared(needs, held)
        self.settings = [s for s in before if s in shared]
        self.bodies = {
            kind: [s for s in body if s not in shared] for kind, body in needs.items()
        }
        self.training, self.evaluation = training, evaluation
        rest = {
            "build": [ast.Expr(ast.Name(self.model, ast.Load()))],
            "data": [ast.Expr(found.train_data), ast.Expr(found.test_data)],
            "train": [training],
            "evaluate": [ast.Expr(evaluation)],
        }
        given = {"build": set(), "data": set(), "train": held, "evaluate": {self.model, self.test_data}}
        bound = names(self.settings, ast.Store)
        self.handed: dict[str, list[str]] = {}
        for kind, body in self.bodies.items():
            needed = names(body + rest[kind])
            self.handed[kind] = sorted(needed & bound - given[kind])
            made = names(body, ast.Store) | bound | given[kind] | names(rest[kind], ast.Store)
            self.check_bound(needed - made)
        if self.train_data in names(self.bodies["evaluate"]) - names(self.bodies["evaluate"], ast.Store):
            fetch = ast.parse(f"{self.train_data}, _ = data(config)").body
            self.bodies["evaluate"] = fetch + self.bodies["evaluate"]
        self.returned = sorted({name for handed in self.handed.values() for name in handed})

    def without_data(
        self, before: Sequence[ast.stmt], wanted: set[str], held: set[str]
    ) -> list[ast.stmt]:
        """Return the statements that names are made by, once model and data are there."""
        inner = [s for s in before if not names(s, ast.Store) & {self.model}]
        inner = [s for s in inner if not names(s, ast.Store) or names(s, ast.Store) - self.data]
        return sliced(inner, wanted - held, set())

    def shared(self, needs: dict[str, list[ast.stmt]], held: set[str]) -> list[ast.stmt]:
        """Return the statements of more than one function, which depend on no client's data."""
        tainted: set[int] = set()
        for kind in ("train", "evaluate"):
            known = set(held)
            for statement in needs[kind]:
                if names(statement) & known:
                    tainted.add(id(statement))
                    known |= names(statement, ast.Store)
        every = [s for body in needs.values() for s in body]
        found = [s for s in every if every.count(s) > 1 and id(s) not in tainted]
        # Nothing shared may need what is not.
        while True:
            free = names(found) & names(
                [s for s in every if s not in found], ast.Store
            ) - names(found, ast.Store)
            worse = [s for s in found if names(s) & free]
            if not worse:
                break
            found = [s for s in found if s not in worse]
        if any(map(DATA.search, names(found, ast.Store))):  # drawn as the script draws it
            place = self.found.before.index
            seeds = [s for s in needs["data"] if noise(s)]
            end = max(map(place, found))
            found += [s for s in seeds if place(s) < end and s not in found]
        return found

    def check_bound(self, missing: set[str]) -> None:
        made = names(self.found.before, ast.Store) & missing - self.script.globals
        for name in sorted(made - set(dir(builtins))):
            statement = next(s for s in self.found.before if name in names(s, ast.Store))
            refuse(
                f"{name!r} is made together with the model ({lines(statement)}): make it apart, "
                "from the model that is there, so that a client can make it for its own"
            )

    def train_statement(self) -> ast.stmt:
        """Return what trains, with the client's data, and with its result kept."""
        found, call = self.found, self.found.call
        replace(call, found.train_data, self.train_data)
        for argument in call.arguments:
            if ast.unparse(argument.value) == ast.unparse(found.test_data):
                replace(call, argument.value, self.test_data)
        statement = found.statement
        if isinstance(statement, ast.For):
            kept = [s for s in statement.body if s not in found.left_out]
            statement = ast.For(
                statement.target, statement.iter, kept, [], lineno=statement.lineno
            )
            if isinstance(statement.iter, ast.Call):
                inner = next((n for n, name in called(statement.iter) if name == "range"), None)
                if inner is not None:
                    self.has_epochs = True
                    passes = expression("glue.passes(_, config.local_epochs)")
                    passes.args[0] = inner
                    statement.iter = passes
            statement.body = [self.kept_result(s) for s in kept]
            return statement
        return self.kept_result(statement)

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
        elif isinstance(statement, ast.Expr):
            named = returned(call.function) if call.function else []
            if named is None or call.name == "fit":
                return statement
            self.trained = ("trained", named)
            return ast.Assign([ast.Name("trained", ast.Store())], call.node, lineno=0)
        return statement

    def test_call(self, call: Call) -> ast.Call:
        test = copy.copy(call)
        replace(test, self.found.test_data, self.test_data)
        if call.name in ("test", "validate") and not call.function:
            if "model" not in {a.parameter for a in call.arguments}:
                call.node.keywords.append(ast.keyword("model", ast.Name(self.model, ast.Load())))
        return call.node

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
        return ast.BoolOp(ast.Or(), [expression("config.local_epochs"), own])

    # Text -------------------------------------------------------------------------------------

    @property
    def reads_command_line(self) -> bool:
        return any(name in COMMAND_LINES for _, name in called(self.script.tree)) or any(
            name in COMMAND_LINES for t in self.script.modules.values() for _, name in called(t)
        )

    def reads(self, body: Iterable[ast.stmt]) -> bool:
        """Tell whether statements read the command line, or call a function that does."""
        for _, name in (each for s in body for each in called(s)):
            function = self.script.functions.get(name)
            if name in COMMAND_LINES or (
                function and any(inner in COMMAND_LINES for _, inner in called(function))
            ):
                return True
        return False

    def body(self, kind: str, extra: set[str] = frozenset(), last: Sequence[ast.stmt] = ()) -> str:
        """Return a function's statements as text, with the script's names as `script.name`."""
        body = self.settings if kind == "settings" else self.bodies[kind]
        body = [*body, *last]
        local = names(body, ast.Store) | extra | {"glue", "config", "data"}
        local |= set(self.handed.get(kind, ()))
        prefixed = Prefixed(self.script.globals - local)
        texts = []
        if kind != "settings" and self.handed[kind]:
            unpacked = ", ".join(n if n in self.handed[kind] else "_" for n in self.returned)
            comma = "," if len(self.returned) == 1 else ""
            texts.append(f"{unpacked}{comma} = settings(config)")
        if self.reads(body):
            texts.append("sys.argv = [script.__file__, *shlex.split(config.arguments)]")
        texts += [self.unparsed(s, prefixed) for s in body]
        return indented("\n".join(texts))

    @staticmethod
    def unparsed(node: ast.AST, prefixed: Prefixed) -> str:
        return ast.unparse(ast.fix_missing_locations(prefixed.visit(copy.deepcopy(node))))

    def text(self) -> str:
        """Return task.py."""
        name = self.script.path.stem
        imports = ["from functools import cache", "from typing import Any"]
        functions = []
        if self.settings:
            values = ", ".join(self.returned) + ("," if len(self.returned) == 1 else "")
            functions.append(
                f'@cache\ndef settings(config: Config) -> tuple[Any, ...]:\n'
                f'    """Return what more than one of the others needs."""\n'
                f"{self.seeded('settings')}{self.body('settings')}    return {values}\n"
            )
        functions.append(
            f'def build(config: Config) -> nn.Module:\n    """Return a new model."""\n'
            f"    glue.reseed(config.seed)\n{self.body('build')}    return {self.model}\n"
        )
        both = [self.found.train_data, self.found.test_data]
        local = names(self.bodies["data"], ast.Store) | set(self.handed["data"])
        prefixed = Prefixed(self.script.globals - local)
        values = ", ".join(self.unparsed(value, prefixed) for value in both)
        functions.append(
            "@cache\ndef data(config: Config) -> tuple[Any, Any]:\n"
            '    """Return all training data and test data, each a DataLoader or a Dataset."""\n'
            f"    glue.reseed(config.seed)\n{self.body('data')}    return {values}\n"
        )
        functions += [self.train_text(), self.evaluate_text()]
        text = "\n\n".join(functions)
        if "sys.argv" in text:
            imports = ["import shlex", "import sys", *imports]
        own = f"from {self.package}.own import {name} as script"
        glue = f"from {self.package} import glue\nfrom {self.package}.config import Config"
        loose = [s for s in self.script.top if not isinstance(s, ast.FunctionDef | ast.ClassDef)]
        if any(inner in DRAWS for s in loose for _, inner in called(s)):
            own = (
                "\nglue.reseed(42)  # what the script draws when imported is the same everywhere\n"
                f"{own}  # noqa: E402"
            )
        imports_text = "\n".join(imports)
        return (
            f'"""The project, for a federation: what {name}.py does, in parts. Plain PyTorch.\n\n'
            f"`script` is {name}.py itself; the names and arguments are its own. Change here what a\n"
            'client hands to it.\n"""\n\n'
            f"{imports_text}\n\nfrom torch import nn\n\n{glue}\n{own}\n\n"
            f"# Where the script's own training is, for centralised.py.\n"
            f"TRAINING: dict[str, Any] | None = {self.marks}\n\n\n{text}"
        )

    def seeded(self, kind: str) -> str:
        drawn = any(map(DATA.search, names(self.settings, ast.Store)))
        return "    glue.reseed(config.seed)\n" if drawn and kind == "settings" else ""

    def train_text(self) -> str:
        held = {self.model} | self.data
        text = self.body("train", held, [self.training]).rstrip("\n").split("\n")
        # The random numbers begin with the training itself, as centralised.py has it.
        count = len(indented(self.unparsed(self.training, Prefixed(set()))).rstrip("\n").split("\n"))
        text.insert(len(text) - count, "    glue.reseed(seed)")
        result = "{}"
        if self.trained and self.trained[0]:
            quoted = "".join(f', "{name}"' for name in self.trained[1])
            result = f"glue.figures({self.trained[0]}{quoted})"
        body = "\n".join(text)
        return (
            f"def train(\n    config: Config, seed: int, {self.model}: nn.Module, "
            f"{self.train_data}: Any, {self.test_data}: Any\n"
            ") -> tuple[nn.Module, dict[str, float]]:\n"
            '    """Train the model, and return it with figures such as the loss."""\n'
            f"{body}\n    return {self.model}, {result}\n"
        )

    def evaluate_text(self) -> str:
        held = {self.model, self.test_data}
        text = self.body("evaluate", held)
        local = names(self.bodies["evaluate"], ast.Store) | held | set(self.handed["evaluate"])
        call = self.unparsed(self.evaluation, Prefixed(self.script.globals - local))
        test = self.found.test
        named = returned(test.function) if test.function else []
        quoted = "".join(f', "{name}"' for name in named or ())
        result = f"glue.printed(lambda: {call})" if named is None else f"glue.figures({call}{quoted})"
        return (
            f"def evaluate(config: Config, {self.model}: nn.Module, {self.test_data}: Any) "
            "-> dict[str, float]:\n"
            '    """Test the model and return its figures."""\n'
            f"{text}    return {result}\n"
        )

    def told(self) -> list[str]:
        """Return what was found, a line each."""
        found = self.found
        named = returned(found.test.function) if found.test.function else []
        figures = "by what it prints" if named is None else ", ".join(named) or "its dict"
        said = [
            f"model  {self.model}" + ("" if found.alone else f", made {found.place}"),
            f"train  {self.calls[0]}",
            f"data   {ast.unparse(found.train_data)}, tested on {ast.unparse(found.test_data)}",
            f"test   {self.calls[1]}: {figures}",
        ]
        if found.left_out:
            what = ", ".join(lines(s) for s in found.left_out)
            said.append(f"left out of a client's loop, for they train nothing: {what}")
        if not self.has_epochs:
            said.append("local-epochs is no setting: the script alone says how many it trains")
        return said


def replace(call: Call, old: ast.expr, name: str) -> None:
    """Put a name in the place of an argument."""
    new = ast.Name(name, ast.Load())
    for argument in call.arguments:
        if argument.value is old or ast.unparse(argument.value) == ast.unparse(old):
            node = argument.call
            node.args = [new if v is argument.value else v for v in node.args]
            for keyword in node.keywords:
                keyword.value = new if keyword.value is argument.value else keyword.value


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.split("\n")) if text else ""
