"""The search for what trains: a call in a driver, a loop that stands there, or a function alone."""

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .inline import training_data
from .python_trees import (
    around,
    assigned,
    base,
    called,
    defaults,
    expression,
    is_definition,
    lines,
    names,
    parameters,
    refuse,
    results,
    sliced,
    statements,
    trains,
)
from .script import Argument, Call, Driver, Script
from .training import Training
from .words import DATA, MODEL_NAMES, TESTS, TRAINS


class Loop(NamedTuple):
    """A loop that trains a model which its driver makes."""

    driver: Driver
    statement: ast.stmt
    node: ast.Call  # of `backward`
    model: str


def find_training(script: Script) -> Training:
    """Find what trains, and where it is called.

    Raises:
        CannotBeConverted: it is not there, or cannot be called.
    """
    direct = {name for name, function in script.functions.items() if trains(function)}
    given = {*script.chosen.get("train", direct)}
    inline = [
        loop
        for driver, body in script.drivers()
        if "train" not in script.chosen or (driver and driver.name in given)
        for loop in loops(script, driver, body)
    ]
    wanted = given - {loop.driver.name for loop in inline if loop.driver}
    found = sites(script, wanted)
    ends = [climbed(script, driver, node) for driver, node in found]
    check_nested(script, direct, found)
    calls = [(driver, call) for driver, call in filter(None, ends) if call]
    calls += [(loop.driver, looped(script, loop)) for loop in inline]
    if calls:
        check_one(script, calls)
        driver, call = calls[0]
        return Training(script, driver, call)
    uncalled = {driver.name for driver, call in filter(None, ends) if not call}
    if found and not uncalled:
        node = found[0][1]
        refuse(
            f"{ast.unparse(node)}, line {node.lineno}, is given no model that its caller makes: a "
            "client has its own model and data, so have it take both as parameters, "
            "`train(model, train_loader, …)`, and make the model in main()"
        )
    if uncalled or wanted:
        return by_parameters(script, uncalled or wanted)
    refuse(
        f"nothing in {script.path.name} trains: no function with `.backward()`, no "
        "`trainer.fit(…)`, no `Trainer(…).train()`. Name it: TRAIN=function"
    )


def check_one(script: Script, calls: Sequence[tuple[Driver, Call]]) -> None:
    """Refuse more than one training."""
    kinds = {ast.dump(c.node.func) if c.loop is None else c.loop.lineno for _, c in calls}
    unique = {call.node: (driver, call) for driver, call in calls}.values()
    if len(kinds) > 1:
        where = "; ".join(f"{call.name}, {lines(call.loop or call.node)}" for _, call in unique)
        refuse(
            f"there is more than one training: {where}. Name one: TRAIN=function; where all are "
            "needed, put them into one function, and call that"
        )
    if len(unique) > len({driver for driver, _ in unique}):
        where = " and ".join(lines(call.node) for _, call in unique)
        refuse(
            f"{calls[0][1].name} is called more than once, {where}, and a federation has one "
            "training: put the calls into one function, and call that"
        )


def check_nested(
    script: Script, direct: set[str], found: Sequence[tuple[Driver, ast.Call]]
) -> None:
    """Refuse a function that trains and is defined inside another, where nothing else trains."""
    for name in sorted(direct):
        inner = [s for s in script.functions[name].body if is_definition(s) and trains(s)]
        if inner and not found and script.models & {n for _, n in called(script.functions[name])}:
            refuse(
                f"{inner[0].name}(), {lines(inner[0])}, trains and is defined in {name}(): a "
                f"client cannot call it there. Move it out of {name}(), with all that it needs as "
                "parameters"
            )


def loops(script: Script, driver: Driver, body: Sequence[ast.stmt]) -> Iterator[Loop]:
    """Yield the loops of a driver that train a model made there."""
    seen: list[ast.stmt] = []
    for node in [n for s in body for n, name in called(s) if name == "backward"]:
        before, statement, _ = around(body, node)
        if statement in seen or is_definition(statement):
            continue
        seen.append(statement)
        models = models_in(script, statement, before)
        if len(models) > 1:
            refuse(
                f"the training loop, {lines(statement)}, trains more than one model "
                f"({', '.join(models)}): put them into one nn.Module, or name the one that is "
                "trained: MODEL=class"
            )
        if models:
            yield Loop(driver, statement, node, models[0])
        elif driver is None:
            for name in sorted(names(statement) & script.globals):
                if script.reader(name) and script.makes_model(assigned(name, script.loose)):
                    script.refuse_global(name)
            refuse(
                f"the training loop, {lines(statement)}, trains no model that is made before it; "
                "name what makes it: MODEL=class"
            )


def models_in(script: Script, loop: ast.stmt, before: Sequence[ast.stmt]) -> list[str]:
    """Return the names of the models that a loop trains."""
    read = names(loop) & names(before, ast.Store)
    optimised = {
        base(node)
        for s in before
        for node, name in called(s)
        if name in ("parameters", "named_parameters") and isinstance(node.func, ast.Attribute)
    }
    made = [name for name in sorted(read) if script.makes_model(assigned(name, before))]
    both = [name for name in made if name in optimised]
    return both or made or sorted(read & optimised)


def looped(script: Script, loop: Loop) -> Call:
    """Return a loop as if it were a call."""
    before, statement, _ = around(script.body(loop.driver), loop.node)
    data_loop, data = training_data(statement, before)
    given = [
        Argument("model", ast.Name(loop.model, ast.Load()), loop.node),
        Argument("train_loader", data, loop.node),
    ]
    name = f"the loop over {ast.unparse(data)}"
    return Call(loop.node, given, None, name, statement, data_loop)


def sites(script: Script, wanted: set[str]) -> list[tuple[Driver, ast.Call]]:
    """Return where what trains is called, and in which driver."""
    found = []
    for driver, body in script.drivers():
        inside = "train" not in script.chosen or (driver and driver.name in wanted)
        for node, name in (each for s in body for each in called(s)):
            if (name in wanted and not (driver and driver.name in wanted)) or (
                inside and name in script.training_methods(script.trainer_of(node, body))
            ):
                found.append((driver, node))
    return found


def climbed(script: Script, driver: Driver, node: ast.Call) -> tuple[Driver, Call | None] | None:
    """Go from a call to its caller's, up to where the model is made.

    Returns the driver and the call there; no call where nothing calls the driver; or nothing, where
    no model is given.
    """
    while True:
        call = script.bound(node, script.body(driver))
        model = script.model_of(call, script.body(driver))
        if not (driver and model in parameters(driver)):
            return (driver, call) if model else None
        outer = [
            (other, n)
            for other, body in script.drivers()
            for s in body
            for n, name in called(s)
            if name == driver.name and other is not driver
        ]
        if not outer:
            return driver, None
        driver, node = outer[0]


# Where nothing calls what trains ----------------------------------------------------------------


def by_parameters(script: Script, wanted: set[str]) -> Training:
    """Return a call of what trains by its parameters, since the script has none."""
    for kind, found in {"train": wanted, "model": script.models}.items():
        if len(found) != 1:
            which = ", ".join(sorted(found)) or "no class of nn.Module's"
            refuse(f"{which}: name what is meant, {kind.upper()}=function")
    [name], [model] = wanted, script.models
    maker = script.defined[model]
    if isinstance(maker, ast.ClassDef):
        maker = next((m for m in maker.body if getattr(m, "name", "") == "__init__"), None)
    check_callable(model, maker, "MODEL")
    data, makers = data_by_name(script)
    node = script.called_by_name(script.functions[name], data, {})
    before = statements(f"model = {model}()") + makers
    return Training(script, None, script.bound(node, []), before, data)


def check_callable(name: str, function: ast.FunctionDef | None, kind: str) -> None:
    """Refuse a function that cannot be called without arguments."""
    needed = [p for p in parameters(function) if p != "self"] if function else []
    missing = [p for p in needed if p not in defaults(function)]
    if missing:
        refuse(
            f"{name}() needs {', '.join(missing)}, and nothing in the file calls it: give "
            f"defaults, or name a function without parameters: {kind}=function"
        )


def data_by_name(script: Script) -> tuple[dict[str, ast.expr], list[ast.stmt]]:
    """Return training and test data, and the statements that make them."""
    top = names([*script.loose, *script.block], ast.Store)
    bound = sorted(n for n in top if DATA.search(n))
    bound = sorted(bound, key=lambda n: "load" not in n.lower())  # loaders before datasets
    given = script.chosen.get("data", [])
    if not given:
        tests = [n for n in bound if TESTS.search(n)]
        given = [n for n in bound if TRAINS.search(n) and n not in tests][:1] + tests[:1]
    if not given:
        given = [n for n, f in script.functions.items() if DATA.search(n) and loads(f)]
        given = [n for n in given if n not in script.models]
    if len(given) not in (1, 2) or (set(given) & set(bound) and len(given) == 1):
        refuse(
            "a function without parameters is needed that returns training and test data "
            f"(Datasets or DataLoaders); there is {', '.join(given) or 'none'}. Name it: "
            "DATA=function, or DATA=train_function,test_function"
        )
    for name in given:
        check_callable(name, script.functions.get(name), "DATA")
    values = [name if name in top else f"{name}()" for name in given]
    before = sliced(script.block, {*given}, seeds=True)
    data = {kind: expression(f"{kind}_data") for kind in ("train", "test")}
    if len(given) == 2:
        values.sort(key=lambda text: bool(TESTS.search(text)))
        makers = statements(f"train_data = {values[0]}\ntest_data = {values[1]}")
        return data, before + makers
    value = next(iter(results(script.functions[given[0]])), None)
    texts = [ast.unparse(e) for e in value.elts] if isinstance(value, ast.Tuple) else ["", ""]
    test = next((i for i, text in enumerate(texts) if TESTS.search(text)), 1)
    targets = ["_"] * len(texts)
    targets[0 if test else 1], targets[test] = "train_data", "test_data"
    return data, before + statements(f"{', '.join(targets)} = {values[0]}")


def loads(function: ast.FunctionDef) -> bool:
    """Tell whether a function may be one that returns data."""
    takes_model = MODEL_NAMES & {*parameters(function)}
    return bool(results(function)) and not (takes_model or trains(function))
