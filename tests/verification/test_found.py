"""Programs and tests that a reviewer found judged wrongly."""

from __future__ import annotations

import pytest


def stdin(*cases: tuple[str, str]) -> dict:
    return {"kind": "stdin", "cases": [{"input": i, "output": o} for i, o in cases]}


def asserts(code: str) -> dict:
    return {"kind": "assert", "code": code}


def function(expected: object) -> dict:
    return {"kind": "function", "entry_point": "f", "cases": [{"args": [], "expected": expected}]}


LARGE = "x" * 2_000_000


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("print(4)\nexit()", stdin(("", "4"))),
        ("print(4)\nquit(0)", stdin(("", "4"))),
        ("print(__file__ and 4)", stdin(("", "4"))),
        ("print(len(input()))", stdin(("ab", "2"), (LARGE, "2000000"))),
        ("print(input())", stdin((LARGE, LARGE))),
        ("import os\no = os.fdopen(1, 'w')\no.write('4')", stdin(("", "4"))),
        ("import sys\nprint(4)\nsys.stdout.close()", stdin(("", "4"))),
        ("import sys, io\nprint(4)\nsys.stdout = io.StringIO()", stdin(("", "4"))),
        ("def f(): return 2**20000", asserts("assert f() == 2**20000")),
        ("def f(n):\n    for i in range(n): yield i", asserts("assert list(f(3)) == [0, 1, 2]")),
        ("class S:\n    def __len__(self): return 3", asserts("s = S()\nassert len(s) == 3")),
        ("class S:\n    def __bool__(self): return True", asserts("s = S()\nassert s")),
        ("def f(): return 3", asserts("def check(g):\n    assert g() == 3\nif __name__ == '__main__':\n    check(f)")),
        ("def sum(a, b): return a - b", asserts("x = sum(5, 2)\nassert x == 3")),
        (
            "from collections import Counter\ndef f(x): return [3, 4]",
            asserts("assert Counter(f([1])) == Counter([4, 3])"),
        ),
    ],
    ids=range(15),
)
def test_right_programs_pass(grade_program, program, tests):
    assert grade_program(program, tests) == "passed"


COLLIDING = """
import sys
main = sys.modules['__main__']
old = main.encode
main.encode = lambda value, refer: EVIL if value == 'evil' else old(value, refer)
def f(): return 'evil'
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (COLLIDING.replace("EVIL", "{'complex': [10**400, 0]}"), asserts("assert f() == 1")),
        (COLLIDING.replace("EVIL", "{'dict': [1]}"), function({"a": 1})),
        (COLLIDING.replace("EVIL", "{'dict': ['x']}"), function({"a": 1})),
        (COLLIDING.replace("EVIL", "{'set': [k * (2**61 - 1) for k in range(60000)]}"), asserts("assert f() == {1}")),
        ("def f(n): raise StopIteration", asserts("assert all(map(lambda p: f(p[0]) == p[1], [(1, 2), (2, 3)]))")),
        ("def f(n): return object()", asserts("assert f(7) == 3\nassert not f(7)")),
        ("import sys\nsys.exit(86)", stdin(("", "4"))),
    ],
    ids=range(7),
)
def test_wrong_programs_count_as_wrong(verifier, program, tests):
    from vibethinker.verification import Item

    verdict = verifier.grade([Item("code", f"```python\n{program}\n```", tests)])[0]
    assert verdict.counts is False, verdict


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("class np:\n    allclose = lambda *a: True\ndef f(x): return 0", "assert np.allclose(f(3), [9, 9])"),
        ("def isclose(*a): return True\ndef f(x): return 0", "assert isclose(f(3), 9.1)"),
        (
            "class Counter:\n    def __init__(s, x): pass\ndef f(x): return 0",
            "assert Counter(f([1])) == Counter([3, 4])",
        ),
    ],
)
def test_a_program_does_not_judge_itself(grade_program, program, code):
    assert grade_program(program, asserts(code)) == "infrastructure"


@pytest.mark.parametrize("args", [{1, 2}, b"x", 10**5000], ids=["set", "bytes", "long"])
def test_tests_that_are_no_json_are_left_out(verifier, args):
    from vibethinker.verification import Item

    tests = {"kind": "function", "entry_point": "f", "cases": [{"args": [args], "expected": 1}]}
    assert verifier.grade([Item("code", "```python\ndef f(x): return 1\n```", tests)])[0].verdict == "infrastructure"
