"""The training of a script: its model, its data, its test, and what is left out of it."""

import ast
from collections.abc import Sequence
from functools import cached_property

from .inline import InlineTest, find_inline_test, sets_mode, tests_inline
from .python_trees import (
    around,
    assigned,
    base,
    called,
    changed,
    defaults,
    expression,
    free,
    is_seed,
    lines,
    names,
    noise,
    parameters,
    refuse,
    tests_only,
    trains,
)
from .script import Call, Driver, Script, arguments
from .words import DATA, MODEL_NAMES, STEPS, STOPS, TESTS, TRAINS


class Training:
    """The training of a script.

    Args:
        script: the script.
        driver: what calls it, or has its loop.
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
        self.model = "model" if self.alone else script.model_of(call, script.body(driver))
        self.testing = {n for n, f in script.functions.items() if tests_only(f)}
        does = self.testing | {n for n, f in script.functions.items() if trains(f)}
        self.earlier = [
            s
            for s in self.before
            if does & {name for _, name in called(s)} or tests_inline(s, self.model)
        ]
        self.before = [s for s in self.before if s not in self.earlier]
        self.check_model()
        known = data or self.data_of(call)
        self.check_given(call, "train", known)
        self.test = self.find_test(known)
        if isinstance(self.test, InlineTest):
            self.test_data = self.test.data
        else:
            tested = self.data_of(self.test, known)
            self.check_given(self.test, "test", tested)
            self.test_data = tested["test"]
        self.train_data = known["train"]
        self.left_out = self.unneeded()
        self.others = self.other_loaders()

    @property
    def place(self) -> str:
        if self.driver:
            return f"in {self.driver.name}()"
        makers = [s for s in self.before if self.model in names(s, ast.Store)]
        under = any(s in self.script.under for s in makers)
        return "under `if __name__ …`" if under else "at the top of the file"

    @property
    def epochs(self) -> list[ast.stmt]:
        """The statements of a loop over epochs around the training, if there is one."""
        loop = self.statement
        if not isinstance(loop, ast.For) or self.call.data_loop is loop:
            return []
        return loop.body

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
            self.script.refuse_global(self.model)

    def check_given(self, call: Call, kind: str, data: dict[str, ast.expr]) -> None:
        """Refuse a call that gets no data, or goes through a loader for each phase."""
        for each in ast.walk(call.function) if call.function else ():
            loop = each.iter if isinstance(each, ast.For) and trains(each) else None
            loop = loop.args[0] if isinstance(loop, ast.Call) and loop.args else loop
            if isinstance(loop, ast.Subscript) and isinstance(loop.slice, ast.Name):
                refuse(
                    f"`for … in {ast.unparse(each.iter)}`, line {each.lineno}, goes through a "
                    f"loader for each phase: have {call.name}() take one, train_loader, and train "
                    "on that alone; put the test into a function, `evaluate(model, test_loader)`"
                )
        if kind not in data:
            where = f"line {call.node.lineno}" if hasattr(call.node, "lineno") else "not called"
            refuse(
                f"{call.name}(…), {where}, is given no data: it is to take one Dataset or "
                f"DataLoader, as a parameter named {kind}_loader or {kind}_dataset"
            )

    # The test -----------------------------------------------------------------------------------

    def find_test(self, data: dict[str, ast.expr]) -> Call | InlineTest:
        """Find what tests: called by the driver, or there in its place, else by its parameters."""
        script, body = self.script, self.script.body(self.driver)
        candidates = script.chosen.get("test", [n for n in self.testing if n != self.call.name])
        found = []
        for node, name in (each for s in body for each in called(s)):
            library = name in ("test", "evaluate", "validate") and script.trainer_of(node, body)
            call = script.bound(node, body)
            takes_model = self.model in {n for a in call.arguments for n in names(a.value)}
            if library or (name in candidates and takes_model):
                found.append(call)
        if found:
            return min(found, key=lambda c: (not c.name.startswith("test"), -c.node.lineno))
        inline = None if self.alone or "test" in script.chosen else self.find_inline_test()
        if inline:
            return inline
        self.check_tested(candidates)
        if not candidates:
            self.check_whole()
            refuse(
                f"nothing in {script.path.name} tests: no function with `no_grad` or `.eval()` "
                "that takes the model, and no loop that calls it on a DataLoader. Write a function "
                "that returns loss and accuracy, or name it: TEST=function"
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

    def check_tested(self, candidates: Sequence[str]) -> None:
        """Refuse a test of what is made of the model: an average of its weights, for instance."""
        for name, made in self.of_model().items():
            for each in [*self.epochs, *self.after]:
                calls = [node for node, test in called(each) if test in candidates]
                given = {base(value) for node in calls for value in node.args}
                if name in given or tests_inline(each, name):
                    refuse(
                        f"{lines(each)}: what is tested is {name!r}, made of the model "
                        f"({lines(made)}), and a federation averages and tests the model that is "
                        f"trained: test {self.model!r} (of a compiled one, write `{self.model} = "
                        f"torch.compile({self.model})`)"
                    )

    def check_whole(self) -> None:
        """Refuse a test on all data at once."""
        for each in [*self.epochs, *self.after]:
            for node, name in called(each):
                if name == self.model and not isinstance(each, ast.For) and not trains(each):
                    refuse(
                        f"`{ast.unparse(node)}`, line {node.lineno}, tests on all data at once, "
                        "and a client has a part of it: write `for x, y in test_loader:` (of "
                        "tensors: `DataLoader(TensorDataset(x, y), batch_size=…)`)"
                    )

    def of_model(self) -> dict[str, ast.stmt]:
        """Return the names of what is made of the model itself, no trainer, and where."""
        found = {}
        for each in (s for s in self.before if self.model not in names(s, ast.Store)):
            value = each.value if isinstance(each, ast.Assign) else None
            for node, _ in called(value) if value else ():
                given = {
                    getattr(a, "id", "") for a in [*node.args, *(k.value for k in node.keywords)]
                }
                if self.model in given and not self.script.makes_trainer(value):
                    found |= dict.fromkeys(names(each, ast.Store), each)
        return found

    def find_inline_test(self) -> InlineTest | None:
        """Find a test that stands after the training, else one between epochs."""
        bound = names(self.statement, ast.Store)
        found = find_inline_test(self.after, self.before, self.model, bound)
        if found or not self.epochs:
            return found
        loop = self.statement
        return find_inline_test(loop.body, self.before, self.model, names(loop.target, ast.Store))

    def data_of(self, call: Call, known: dict[str, ast.expr] | None = None) -> dict[str, ast.expr]:
        """Return training and test data among a call's arguments.

        Args:
            call: of what trains; or of what tests, if `known` is given.
            known: the data of the training.
        """
        found: dict[str, list[ast.expr]] = {"train": [], "test": [], "either": []}
        body = [*self.before, *self.script.body(self.driver)]
        if call.loop:
            return {a.parameter.removesuffix("_loader"): a.value for a in call.arguments}
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

    # What is left out ---------------------------------------------------------------------------

    def unneeded(self) -> list[ast.stmt]:
        """Return what a loop over epochs does that changes nothing that is trained.

        That are tests, what is said and saved, and what depends on these alone: the best model so
        far, an early stop. What a step of the training needs stays.
        """
        body = self.epochs
        kept = [s for s in body if self.essential(s)]
        while True:
            needed = set().union(*(free([s]) for s in kept))
            more = [s for s in body if s not in kept and names(s, ast.Store) & needed]
            if not more:
                break
            kept += more
        out: list[ast.stmt] = []
        dirty: set[str] = set()  # names that are bound by what is left out
        for statement in [*body, *body]:  # twice, for what one pass of the loop hands to the next
            depends = noise(statement) or self.tests(statement) or free([statement]) & dirty
            depends = depends or STOPS.search(receiver(statement)) or looks(statement)
            if statement not in kept and depends:
                out.append(statement)
                called_on = {receiver(each) for each in ast.walk(statement)}
                dirty |= names(statement, ast.Store)
                dirty |= called_on - self.needed - self.script.globals
            else:
                dirty -= names(statement, ast.Store)
        rest = [s for s in body if s not in out]
        unused = (names(out, ast.Store) | free(out)) - set().union(*(free([s]) for s in rest))
        out += [s for s in rest if is_plain(s) and names(s, ast.Store) <= unused]
        return [s for s in body if s in out]

    def essential(self, statement: ast.stmt) -> bool:
        """Tell whether a statement trains, or changes what the training depends on."""
        for node, name in called(statement):
            if node is self.call.node or (name == "backward" and self.call.loop):
                return True
            of_model = name.startswith("update") and self.model in names(node)
            if isinstance(node.func, ast.Attribute) and (name in STEPS or of_model):
                return not noise(statement)
        if is_seed(statement):
            return True
        if noise(statement) or self.tests(statement) or STOPS.search(receiver(statement)):
            return False
        return bool(changed(statement) & self.needed) or sets_mode(statement, self.model)

    @cached_property
    def needed(self) -> set[str]:
        """The names of what the training is given, or uses."""
        loop = self.call.data_loop or self.call.node
        counter = names(getattr(self.statement, "target", []), ast.Store)
        return names(loop) - names(loop, ast.Store) - counter - self.script.globals

    def tests(self, statement: ast.stmt) -> bool:
        test = {self.test.name} if isinstance(self.test, Call) else set()
        found = {name for _, name in called(statement)}
        return bool(found & (self.testing | test)) or tests_inline(statement, self.model)

    def other_loaders(self) -> list[str]:
        """Return the loaders that the loop goes through beside the training's and the test's.

        Raises:
            CannotBeConverted: it may train on them.
        """
        if not self.call.loop:
            return []
        makers = {n: assigned(n, self.before) for n in names(self.before, ast.Store)}
        ends = ("loader", "loaders")
        known = {n for n, found in makers.items() if any(m.lower().endswith(ends) for m in found)}
        kept = [s for s in self.epochs if s not in self.left_out] or [self.statement]
        nodes = [node for s in kept for node in ast.walk(s)]
        parts = [n for n in nodes if isinstance(n, ast.Subscript) and base(n) in known]
        inside = {id(n.value) for n in parts}
        whole = [n for n in nodes if isinstance(n, ast.Name) and n.id in known]
        texts = {ast.unparse(n) for n in [*parts, *whole] if id(n) not in inside}
        texts -= {ast.unparse(self.train_data), ast.unparse(self.test_data)}
        for text in sorted(texts):
            if not TESTS.search(text):
                refuse(
                    f"the training, {lines(self.statement)}, reads {text}, too, and a client has "
                    "one DataLoader to train on: put what belongs together into one Dataset"
                )
        return sorted(texts)

    def undone(self) -> list[ast.stmt]:
        """Return what changes the model after the training: no federation does that."""
        found = []
        for statement in self.after:
            if self.model in names(statement, ast.Store):
                break
            quiet = noise(statement) or self.tests(statement) or sets_mode(statement, self.model)
            if self.model in changed(statement) and not quiet:
                found.append(statement)
        return found


def receiver(statement: ast.AST) -> str:
    """Return the name of the object whose method a statement calls."""
    return base(statement.value) if isinstance(statement, ast.Expr) else ""


def looks(statement: ast.stmt) -> bool:
    """Tell whether it is `with torch.no_grad():`."""
    items = statement.items if isinstance(statement, ast.With) else []
    return any(name in ("no_grad", "inference_mode") for i in items for _, name in called(i))


def is_plain(statement: ast.stmt) -> bool:
    """Tell whether it binds names, and calls nothing."""
    return isinstance(statement, ast.Assign) and not any(called(statement))
