"""With `--quick`, files that `-m` deselects whole aren't imported, which for most takes longer than their tests.
Without it they are, so that `make test` tells of one that can't be.

A file's marks are read from its text: `pytestmark`, where it is assigned once, to marks or a list of marks. Tests may
have more of them, so a mark that isn't there counts as unknown, and what is unknown is collected.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="don't import files that -m deselects whole")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """True for a file that is left out; None has others decide. Files named on the command line aren't asked about."""
    expression = config.getoption("markexpr")
    if (
        not config.getoption("quick")
        or not expression
        or collection_path.suffix != ".py"
        or not collection_path.is_file()
    ):
        return None
    return is_deselected(collection_path.read_text(encoding="utf-8"), expression) or None


def is_deselected(text: str, expression: str) -> bool:
    """Whether the expression selects no test of a file with this text, whatever further marks its tests have."""
    try:
        module, wanted = ast.parse(text), ast.parse(expression.strip(), mode="eval")
    except SyntaxError:  # pytest tells of it better
        return False
    return _evaluate(wanted.body, _marks(module)) is False


def _marks(module: ast.Module) -> set[str]:
    names = [node for node in ast.walk(module) if isinstance(node, ast.Name) and node.id == "pytestmark"]
    match [node for node in module.body if isinstance(node, ast.Assign) and node.targets == names]:
        case [ast.Assign(value=ast.List(elts=values) | ast.Tuple(elts=values))]:
            pass
        case [ast.Assign(value=value)]:
            values = [value]
        case _:
            return set()
    return {name for value in values if (name := _mark(value))}


def _mark(value: ast.expr) -> str | None:
    """`name` of `pytest.mark.name` or `pytest.mark.name(...)`."""
    match value.func if isinstance(value, ast.Call) else value:
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="pytest"), attr="mark"), attr=name):
            return name
    return None


def _evaluate(node: ast.expr, marks: set[str]) -> bool | None:
    """The expression's value, None where it depends on marks that aren't known to be there."""
    match node:
        case ast.Name(id=name):
            return True if name in marks else None
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            value = _evaluate(operand, marks)
            return None if value is None else not value
        case ast.BoolOp(op=op, values=parts):
            decisive = isinstance(op, ast.Or)  # of an `or` one that holds, of an `and` one that doesn't
            values = [_evaluate(part, marks) for part in parts]
            return decisive if decisive in values else None if None in values else not decisive
    return None
