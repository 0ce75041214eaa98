"""An import of the script that runs its definitions only: what it does by itself is left out.

Definitions are imports, functions and classes, the global names that these read, and settings of
modules (`torch.set_num_threads(1)`). The rest, a training loop at the top of the file for instance,
is in parts in task.py.
"""

import ast
import builtins
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from symtable import SymbolTable, symtable
from types import CodeType
from typing import Any

ALWAYS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
KNOWN = {*dir(builtins), "__file__", "__name__"}


def is_main_block(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)


def tables(table: SymbolTable) -> Iterator[SymbolTable]:
    yield table
    for child in table.get_children():
        yield from tables(child)


def binds_and_reads(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """Return the names that a statement binds and reads, in functions in it the global ones."""
    top = symtable(ast.unparse(statement), "script", "exec")
    symbols = [(s, t is top) for t in tables(top) for s in t.get_symbols()]
    bound = [s for s, at_top in symbols if at_top and (s.is_assigned() or s.is_imported())]
    binds = {s.get_name() for s in bound}
    reads = {
        s.get_name() for s, at_top in symbols if s.is_referenced() and (at_top or s.is_global())
    }
    if isinstance(statement, ast.AugAssign):
        reads |= binds
    return binds, reads


def definitions(tree: ast.Module) -> list[ast.stmt]:
    """Return the statements of a file that define, in their order."""
    body = [s for s in tree.body if not is_main_block(s)]
    about = {s: binds_and_reads(s) for s in body}
    kept = {s for s in body if isinstance(s, ALWAYS)}
    own = set().union(
        *(about[s][0] for s in kept if not isinstance(s, ast.Import | ast.ImportFrom))
    )
    if ast.get_docstring(tree, clean=False) is not None:
        kept.add(tree.body[0])
    while True:  # what these read, and what that reads
        wanted = set().union(*(about[s][1] for s in kept))
        more = {s for s in body if about[s][0] & wanted} - kept
        if not more:
            break
        kept |= more
    bound = set().union(*(about[s][0] for s in kept))
    for statement in body:  # what changes a module or a global name, and runs nothing of the file's
        binds, reads = about[statement]
        if not binds and reads & bound and reads <= (bound - own) | KNOWN:
            name = statement.value if isinstance(statement, ast.Expr) else None
            while isinstance(name, ast.Attribute | ast.Subscript | ast.Call):
                name = name.func if isinstance(name, ast.Call) else name.value
            if not (isinstance(name, ast.Name) and name.id in KNOWN):  # print(…)
                kept.add(statement)
    return [s for s in body if s in kept]


class Definitions(SourceFileLoader):
    """A loader that leaves a file as it is, and keeps no compiled copy."""

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path), self.path)
        tree.body = definitions(tree)
        return compile(tree, self.path, "exec", dont_inherit=True)


class Finder:
    """The way by which one module is found, in each process: workers of a DataLoader, too."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, str(path)

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != self.name:
            return None
        return spec_from_file_location(name, self.path, loader=Definitions(name, self.path))
