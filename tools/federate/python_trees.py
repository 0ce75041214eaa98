"""What a statement of Python reads, binds and calls, and which others it needs."""

import ast
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from .app.federated_app.definitions import binds_and_reads
from .words import NOISE, SEEDS


class CannotBeConverted(Exception):
    """What in the script stands in the way, and what to change."""


def refuse(why: str) -> NoReturn:
    raise CannotBeConverted(why)


def names(node: ast.AST | Iterable[ast.AST], kind: type = ast.Load) -> set[str]:
    """Return the names that are read (or, with ast.Store, bound) anywhere in it."""
    nodes = [node] if isinstance(node, ast.AST) else list(node)
    nodes = [inner for outer in nodes for inner in ast.walk(outer)]
    inner = {  # of comprehensions
        id(name)
        for each in nodes
        if isinstance(each, ast.comprehension) and kind is ast.Store
        for name in ast.walk(each.target)
    }
    found = set()
    for each in nodes:
        if isinstance(each, ast.Name) and isinstance(each.ctx, kind) and id(each) not in inner:
            found.add(each.id)
        elif kind is ast.Store and isinstance(each, ast.FunctionDef | ast.ClassDef):
            found.add(each.name)
        elif kind is ast.Store and isinstance(each, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in each.names}
    return found


def base(node: ast.AST) -> str:
    """Return the name that `a.b[c].d` begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Expr):
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
        elif isinstance(each, ast.Expr) and isinstance(each.value, ast.Call):
            found |= {base(each)} if appends(each) else set() if noise(each) else names(each)
        elif isinstance(each, ast.Call) and last(each.func).startswith("fit"):  # of a scaler
            found.add(base(each.func))
    for each in ast.walk(statement):  # what is gone through, in `for p in net.parameters(): …`
        if isinstance(each, ast.For) and any(
            names(each.target, ast.Store) & changed(inner) for inner in each.body
        ):
            found |= names(each.iter)
    return found


def free(body: Sequence[ast.AST]) -> set[str]:
    """Return the names that statements read, and do not bind before."""
    found: set[str] = set()
    bound: set[str] = set()
    for each in body:
        if isinstance(each, ast.For):
            inner = names(each.target, ast.Store)
            found |= free([each.iter]) - bound
            found |= free([*each.body, *each.orelse]) - inner - bound
        elif isinstance(each, ast.With):
            found |= free([item.context_expr for item in each.items]) - bound
            inner = names([i.optional_vars for i in each.items if i.optional_vars], ast.Store)
            found |= free(each.body) - inner - bound
            bound |= inner | names(each.body, ast.Store)
        elif isinstance(each, ast.If):
            found |= (free([each.test]) | free(each.body) | free(each.orelse)) - bound
            bound |= names(each.body, ast.Store) & names(each.orelse, ast.Store)
        else:
            binds, reads = binds_and_reads(each if isinstance(each, ast.stmt) else ast.Expr(each))
            found |= reads - bound
            bound |= binds
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


def appends(statement: ast.stmt) -> bool:
    """Tell whether it is `layers.append(…)`: noise, unless the list is needed."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and last(call.func) == "append"


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
        if not hit and (appends(statement) or not noise(statement)):
            of = names(statement, ast.Store) | {base(statement)}  # `model(batch)` makes no data
            hit = bool(changed(statement) & wanted) and not of & stop
        if hit:
            chosen.append(statement)
            wanted |= names(statement) - stop
    return chosen[::-1]


def lines(node: ast.AST) -> str:
    if node.lineno == node.end_lineno:
        return f"line {node.lineno}"
    return f"lines {node.lineno} to {node.end_lineno}"


def shown(node: ast.AST) -> str:
    """Return a statement's lines and text, in one line."""
    return f"{lines(node)}: `{textwrap.shorten(ast.unparse(node), 70, placeholder=' …')}`"


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


def results(function: ast.FunctionDef) -> list[ast.expr]:
    """Return what a function returns, the last first."""
    found = [node.value for node in own_nodes(function) if isinstance(node, ast.Return)]
    return [value for value in reversed(found) if value is not None]


def returned(function: ast.FunctionDef) -> list[str] | None:
    """Return a name for each figure that a function returns; None where it returns nothing."""
    if not (found := results(function)):
        return None
    if isinstance(found[0], ast.Dict):  # it names them itself
        return []
    parts = found[0].elts if isinstance(found[0], ast.Tuple) else [found[0]]
    return [figure(part) for part in parts]


def assigned(name: str, body: Iterable[ast.stmt]) -> set[str]:
    """Return the names of what is called where a name is assigned."""
    return {
        function
        for statement in body
        for each in ast.walk(statement)
        if isinstance(each, ast.Assign | ast.AnnAssign) and name in names(each, ast.Store)
        for _, function in called(each)
    }


def is_definition(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef | ast.ClassDef)


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
    first = next((n.id for n in ast.walk(value) if isinstance(n, ast.Name)), "figure")
    return last(value) or first


def tests_only(function: ast.FunctionDef) -> bool:
    """Tell whether a function tests a model: it evaluates, and does not train."""
    nodes = list(ast.walk(function))
    found = {last(n.func) for n in nodes if isinstance(n, ast.Call)}
    found |= {last(n) for n in nodes if isinstance(n, ast.Attribute)}
    return bool(found & {"no_grad", "inference_mode", "eval"}) and "backward" not in found


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
