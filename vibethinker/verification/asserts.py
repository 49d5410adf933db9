"""Assert code, prepared so that the expected values stay out of the program's process.

Most of it is `assert f(literals) == literal`: these become plain calls, whose results the worker compares.
Any other code is run by the child's role "tester" against proxies of the program's names, with a counter in
front of each assert, since code that asserts nothing mustn't pass. The test code is parsed here, never run.
"""

from __future__ import annotations

import ast
import builtins
import sys
from dataclasses import dataclass
from typing import Any

COUNTER = "_count_assert_"


@dataclass(frozen=True)
class Call:
    """`function(*args, **kwargs)` is to equal `expected`, in Python's sense."""

    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    expected: Any


@dataclass(frozen=True)
class TestCode:
    """Source for the tester, the program's names in it, and the standard modules that it doesn't import."""

    source: str
    names: list[str]
    modules: list[str]


def prepare(code: str, program: str) -> list[Call] | TestCode | None:
    """None where the code can't be parsed, holds no assert, or would let the program judge itself."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        return None
    try:
        return [_call(statement) for statement in tree.body]
    except ValueError:
        return _instrument(tree, program)


def _call(statement: ast.stmt) -> Call:
    """The plain call of a statement; ValueError where it is anything else."""
    match statement:
        case ast.Assert(
            test=ast.Compare(
                left=ast.Call(func=ast.Name(id=name), args=args, keywords=keywords),
                ops=[ast.Eq()],
                comparators=[expected],
            )
        ) if all(keyword.arg for keyword in keywords):
            return Call(
                name,
                [ast.literal_eval(argument) for argument in args],
                {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords},
                ast.literal_eval(expected),
            )
    raise ValueError("not a plain call")


class _CountAsserts(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        count = ast.Expr(ast.Call(func=ast.Name(id=COUNTER, ctx=ast.Load()), args=[], keywords=[]))
        return [count, node]


def _instrument(tree: ast.Module, program: str) -> TestCode | None:
    loaded: set[str] = set()
    bound: set[str] = set()
    qualified: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                loaded.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=alias):
                bound.add(alias or name.partition(".")[0])
        match node:
            case ast.Attribute(value=ast.Name(id=name)):
                qualified.add(name)
    # The program mustn't supply what judges it: neither builtins nor, say, `math` in math.isclose(f(x), 1.5).
    modules = qualified & sys.stdlib_module_names - bound
    imported, defined = _top_level(program)
    tree.body[:0] = [ast.parse(imported[name]).body[0] for name in sorted((loaded - modules - bound) & imported.keys())]
    # Names of builtins are the tester's own, unless the program defines them.
    names = loaded - modules - imported.keys() - (set(dir(builtins)) - defined)
    if any(_judges_itself(node.test, names - bound) for node in ast.walk(tree) if isinstance(node, ast.Assert)):
        return None
    source = ast.unparse(ast.fix_missing_locations(_CountAsserts().visit(tree)))
    return TestCode(source, sorted(names), sorted(modules))


def _top_level(program: str) -> tuple[dict[str, str], set[str]]:
    """What the program imports from the standard library, name → statement, and the functions and classes it defines.

    Such an import is made by the tester itself: `Counter` in the tests must be the true one.
    """
    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}, set()
    defined = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    imported = {}
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
            for alias in node.names:
                origin = (module or alias.name).partition(".")[0]
                name = alias.asname or alias.name.partition(".")[0]
                if origin in sys.stdlib_module_names and alias.name != "*" and name not in defined:
                    imported[name] = ast.unparse(ast.ImportFrom(module, [alias], 0) if module else ast.Import([alias]))
    return imported, defined


def _judges_itself(test: ast.expr, names: set[str]) -> bool:
    """Whether the truth of an assert is what one call of the program says of what another one returned."""

    def root(node: ast.expr) -> str | None:
        while isinstance(node, ast.Attribute):
            node = node.value
        return node.id if isinstance(node, ast.Name) and node.id in names else None

    def calls(node: ast.AST) -> list[ast.Call]:
        return [n for n in ast.walk(node) if isinstance(n, ast.Call) and root(n.func)]

    def judged(node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and root(node.func) is not None and any(
            call is not node for argument in node.args for call in calls(argument)
        )  # fmt: skip

    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _judges_itself(test.operand, names)
    if isinstance(test, ast.Compare):
        sides = [test.left, *test.comparators]
        roots = [root(side.func) if isinstance(side, ast.Call) else None for side in sides]
        return any(map(judged, sides)) and None not in roots and len(set(roots)) == 1
    return judged(test)
