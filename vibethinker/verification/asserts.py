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


def prepare(code: str) -> list[Call] | TestCode | None:
    """None where the code can't be parsed or holds no assert."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        return None
    try:
        return [_call(statement) for statement in tree.body]
    except ValueError:
        return _instrument(tree)


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


def _instrument(tree: ast.Module) -> TestCode:
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
    names = loaded - modules - set(dir(builtins))
    source = ast.unparse(ast.fix_missing_locations(_CountAsserts().visit(tree)))
    return TestCode(source, sorted(names), sorted(modules))
