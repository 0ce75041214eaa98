"""Training and test that stand in the driver itself, in the place of a call."""

import ast
import copy
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .python_trees import base, called, figure, free, last, lines, names, refuse
from .words import COUNTERS, DATA, SAYS, TESTS, WRAPPERS

TEXTS = (ast.JoinedStr, ast.Constant)
Place = tuple[ast.For, ast.expr]  # a loop over data, and the data


class InlineTest(NamedTuple):
    """Statements that test a model."""

    node: ast.stmt  # the loop over the test data, with the `no_grad` around it
    before: list[ast.stmt]  # what stands before it in the same place
    body: list[ast.stmt]  # the node, with what sets the model's mode and what sums up
    figures: dict[str, ast.expr]
    data: ast.expr


# The data of a loop ---------------------------------------------------------------------------


def training_data(loop: ast.stmt, before: Sequence[ast.stmt]) -> Place:
    """Return the `for` that trains on data, and that data.

    Raises:
        CannotBeConverted: it is nothing of which a client can get a part.
    """
    found = over_data(loop, "backward", before)
    if not found:
        refuse(
            f"the training loop, {lines(loop)}, goes through no DataLoader, and a client is to "
            "have one of its own: write `for x, y in train_loader:` (of tensors: "
            "`DataLoader(TensorDataset(x, y), batch_size=…)`)"
        )
    return found


def over_data(loop: ast.stmt, does: str, before: Sequence[ast.stmt]) -> Place | None:
    """Return the `for` over data in which something is called, and the data."""
    found = []
    for each in ast.walk(loop):
        if isinstance(each, ast.For) and does in {name for _, name in called(each)}:
            data = source(each.iter, [loop, *before])
            if data is not None:
                found.append((each, data))
    bound = names(loop, ast.Store)
    given = [pair for pair in found if not names(pair[1]) & bound]
    given.sort(key=lambda pair: bool(DATA.search(ast.unparse(pair[1]))))
    inner = {n for each, _ in given for n in names(each.target, ast.Store)}
    for each, data in found:
        several = isinstance(data, ast.Name) and data.id in inner  # for loader in loaders
        if several or (not given and DATA.search(ast.unparse(data))):
            refuse(
                f"`for … in {ast.unparse(each.iter)}`, line {each.lineno}, goes through another "
                "loader each time, or one that is made in the loop: make one loader before the "
                "loop, and train on that alone"
            )
    if not given:
        return None
    each, data = given[-1]
    loader = isinstance(data, ast.Call) and last(data.func).lower().endswith("loader")
    if not (loader or isinstance(data, ast.Name | ast.Attribute | ast.Subscript)):
        refuse(
            f"`for … in {ast.unparse(each.iter)}`, line {each.lineno}, goes through no DataLoader, "
            "and a client is to have one of its own: write `for x, y in train_loader:`"
        )
    return each, data


def source(value: ast.expr, body: Sequence[ast.stmt]) -> ast.expr | None:
    """Return what a `for` goes through, without progress bars and the like; None if it counts."""
    if isinstance(value, ast.Name):
        for each in (inner for s in body for inner in ast.walk(s)):
            target, made = None, None
            if isinstance(each, ast.Assign):
                target, made = each.targets[0], each.value
            elif isinstance(each, ast.withitem):
                target, made = each.optional_vars, each.context_expr
            if isinstance(target, ast.Name) and target.id == value.id and is_wrapped(made):
                return source(made, body)
    if isinstance(value, ast.List | ast.Tuple):
        return None
    if is_wrapped(value):
        if last(value.func) in COUNTERS:
            return None
        given = [*value.args, *(k.value for k in value.keywords if k.arg == "iterable")]
        return source(given[0], body) if given else None
    if isinstance(value, ast.Call) and last(value.func) == "zip":
        refuse(
            f"`{ast.unparse(value)}`, line {value.lineno}: a client has one DataLoader, not two; "
            "put what belongs together into one Dataset"
        )
    return value


def is_wrapped(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and last(value.func) in WRAPPERS | COUNTERS


# The test -------------------------------------------------------------------------------------


def tests_inline(statement: ast.stmt, model: str) -> bool:
    """Tell whether a statement calls the model on data, and does not train it."""
    does = list(called(statement))
    return (
        isinstance(statement, ast.For | ast.With)
        and any(isinstance(each, ast.For) for each in ast.walk(statement))
        and any(isinstance(node.func, ast.Name) and name == model for node, name in does)
        and not {name for _, name in does} & {"step", "backward"}
    )


def find_inline_test(
    body: Sequence[ast.stmt], before: Sequence[ast.stmt], model: str, foreign: set[str]
) -> InlineTest | None:
    """Find what tests the model among statements.

    Args:
        body: the statements.
        before: what is run before them.
        model: its name.
        foreign: names that are bound by the training, which a test does not have.
    """
    found, foreign = [], set(foreign)
    for i, statement in enumerate(body):
        if tests_inline(statement, model):
            place = over_data(statement, model, [*before, *body[:i]])
            if place and not free(quiet(statement)) & foreign:
                found.append(inline_test(place, body, i, model, foreign))
        if free([statement]) & foreign or trains_inline(statement):
            foreign |= names(statement, ast.Store)
        else:
            foreign -= names(statement, ast.Store)
    found = [test for test in found if test.figures]
    return min(found, key=lambda test: not TESTS.search(ast.unparse(test.data)), default=None)


def trains_inline(statement: ast.stmt) -> bool:
    return any(name == "backward" for _, name in called(statement))


def inline_test(
    place: Place, body: Sequence[ast.stmt], i: int, model: str, foreign: set[str]
) -> InlineTest:
    """Return a test with what sums it up.

    The figures are what is made of that which it counts, `accuracy = correct / total`; else what is
    printed of that; else that itself.
    """
    node, loop = body[i], place[0]
    inner = [s for s in getattr(node, "body", []) if s.lineno > loop.lineno and node is not loop]
    counted = counts(loop, model)
    known, sums, made, printed = set(counted), [], {}, {}
    for statement in [*inner, *body[i + 1 :]]:
        reads, binds = free([statement]), names(statement, ast.Store)
        if binds & known and not (reads | binds_itself(statement)) & known:
            break  # another test counts anew
        sums_up = isinstance(statement, ast.Assign | ast.AugAssign) and (reads | binds) & known
        if sums_up and not reads & (foreign - known):
            known |= binds
            sums += [statement] if statement not in inner else []
            for name in sorted(binds):
                by_name, by_value = figure(expression_of(name)), figure(statement.value)
                named = (
                    by_value if by_name == name and by_value in ("loss", "accuracy") else by_name
                )
                made.setdefault(named, expression_of(name))
        for label, value in said(statement) if isinstance(statement, ast.Expr) else ():
            whole = isinstance(value, ast.Name | ast.Constant)
            if not whole and free([value]) & known and not free([value]) & (foreign - known):
                printed.setdefault(labelled(label) or figure(value), value)
    for value in printed.values():
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.FloorDiv):
            value.op = ast.Div()  # whole per cents are for reading
    figures = printed | made or {name: expression_of(name) for name in sorted(counted)}
    modes = [s for s in body[:i] if sets_mode(s, model)]
    return InlineTest(node, list(body[:i]), [*modes[-1:], *quiet(node), *sums], figures, place[1])


def counts(loop: ast.For, model: str) -> set[str]:
    """Return the names of what a loop over test data counts or collects."""
    found = set()
    for each in ast.walk(loop):
        if isinstance(each, ast.AugAssign):
            found |= names(each, ast.Store)
        elif isinstance(each, ast.Assign):
            found |= names(each, ast.Store) & names(each.value) - names(loop.target, ast.Store)
        elif isinstance(each, ast.Expr) and isinstance(each.value, ast.Call):
            owner = getattr(each.value.func, "value", None)  # labels.extend(…), metric.update(…)
            found |= {owner.id} - {model} if isinstance(owner, ast.Name) else set()
    return found & free([loop])


def binds_itself(statement: ast.stmt) -> set[str]:
    return names(statement, ast.Store) if isinstance(statement, ast.AugAssign) else set()


def expression_of(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def sets_mode(statement: ast.stmt, model: str) -> bool:
    """Tell whether it is `model.eval()` or `model.train()`."""
    call = getattr(statement, "value", None)
    return isinstance(call, ast.Call) and ast.unparse(call.func) in (
        f"{model}.eval",
        f"{model}.train",
    )


def said(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """Yield the values that a statement prints, each with the words before it."""
    for call, name in called(statement):
        waiting, words = list(call.args) if SAYS.fullmatch(name) else [], ""
        while waiting:
            value = waiting.pop(0)
            if isinstance(value, ast.JoinedStr):
                waiting[:0] = value.values
            elif isinstance(value, ast.FormattedValue):
                waiting.insert(0, value.value)
            elif isinstance(value, ast.Constant):
                words = text if re.search("[a-z]", text := str(value.value)) else words
            elif isinstance(value, ast.BinOp) and isinstance(
                value.left, ast.Constant | ast.JoinedStr
            ):
                right = value.right  # "… %d" % (correct, total), "…" + str(correct)
                waiting[:0] = right.elts if isinstance(right, ast.Tuple) else [right]
            elif isinstance(value, ast.Call) and last(value.func) in ("format", "str", "round"):
                waiting[:0] = value.args
            else:
                yield words, value


def labelled(words: str) -> str:
    """Return the name of a figure after these words."""
    found = re.findall(r"loss|acc", words.lower())
    return {"loss": "loss", "acc": "accuracy"}[found[-1]] if found else ""


def quiet(statement: ast.stmt) -> list[ast.stmt]:
    """Return a copy of a statement without what it prints, plots, logs and saves."""
    left = Quiet().visit(copy.deepcopy(statement))
    if left is None:
        return []
    nodes = list(ast.walk(left))
    asked = {base(node) for node in nodes if isinstance(node, ast.Attribute)}  # bar.update(1)
    for node in nodes:
        if isinstance(node, ast.Assign) and not names(node, ast.Store) & asked:
            node.value = Bare().visit(node.value)
    return [left]


class Quiet(ast.NodeTransformer):
    def visit_For(self, node: ast.For) -> ast.AST | None:
        for call, name in called(node.iter):  # a progress bar
            if name == "trange":
                call.func = ast.Name("range", ast.Load())
        node.iter = Bare().visit(node.iter)
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        call = node.value
        return None if isinstance(call, ast.Call) and SAYS.fullmatch(last(call.func)) else node

    def generic_visit(self, node: ast.AST) -> ast.AST | None:
        super().generic_visit(node)
        if isinstance(node, ast.stmt) and getattr(node, "body", None) == []:
            if not getattr(node, "orelse", None):
                return None
            node.body = [ast.Pass()]
        return node


class Bare(ast.NodeTransformer):
    """What a loop goes through, without a progress bar."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        bar = last(node.func) == "tqdm" and node.args
        return self.generic_visit(node.args[0] if bar else node)
