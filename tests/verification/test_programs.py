"""Verdicts on programs: the three forms of tests, and what counts as equal."""

from __future__ import annotations

import pytest

from vibethinker.verification import check_tests
from vibethinker.verification.programs import same_json, same_output


def stdin(*cases: tuple[str, str], **more) -> dict:
    return {"kind": "stdin", "cases": [{"input": i, "output": o} for i, o in cases], **more}


def function(name: str, *cases: tuple[list, object], **more) -> dict:
    return {"kind": "function", "entry_point": name, "cases": [{"args": a, "expected": e} for a, e in cases], **more}


def asserts(code: str) -> dict:
    return {"kind": "assert", "code": code}


DOUBLE = stdin(("2\n", "4\n"), ("5\n", "10\n"))
ADD = function("add", ([1, 2], 3), (["a", "b"], "ab"))
ADD_ASSERTS = asserts("assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'")
CHECK = asserts(
    "def check(candidate):\n    for i in range(5):\n        assert abs(candidate(i, 0.5) - i - 0.5) < 1e-9\ncheck(add)"
)


@pytest.mark.parametrize(
    ("program", "tests", "verdict"),
    [
        ("print(2 * int(input()))", DOUBLE, "passed"),
        ("import sys\nprint(2 * int(sys.stdin.buffer.read()))", DOUBLE, "passed"),
        ("print(2 * int(open(0).read()))\nraise SystemExit", DOUBLE, "passed"),
        ("if __name__ == '__main__':\n    print(2 * int(input()), '  \\n\\n')", DOUBLE, "passed"),
        ("import threading\nthreading.Thread(target=lambda: print(2 * int(input()))).start()", DOUBLE, "passed"),
        ("print(4)", DOUBLE, "wrong_answer"),
        ("", DOUBLE, "no_code"),
        ("pass", DOUBLE, "wrong_answer"),
        ("print(2 * int(input()))\n1 / 0", DOUBLE, "runtime_error"),
        ("print(2 * int(input()))\nraise SystemExit(3)", DOUBLE, "runtime_error"),
        ("print(2 *", DOUBLE, "runtime_error"),
        ("def add(a, b):\n    return a + b", ADD, "passed"),
        ("def add(a, b):\n    print('noise')\n    return a + b", ADD, "passed"),
        ("def add(a, b):\n    return a", ADD, "wrong_answer"),
        ("def sub(a, b):\n    return a", ADD, "runtime_error"),
        ("def add(a):\n    return a", ADD, "runtime_error"),
        ("def add(a, b):\n    return object()", ADD, "wrong_answer"),
        ("def add(a, b):\n    raise SystemExit(0)", ADD, "runtime_error"),
        ("def add(a, b):\n    return a + b", ADD_ASSERTS, "passed"),
        ("def add(a, b):\n    return a", ADD_ASSERTS, "wrong_answer"),
        ("def add(a, b):\n    return a + b", CHECK, "passed"),
        ("def add(a, b):\n    return a", CHECK, "wrong_answer"),
        ("def add(a, b):\n    return 1 / 0", CHECK, "runtime_error"),
        ("", CHECK, "no_code"),
    ],
)
def test_verdicts_of_each_form(grade_program, program, tests, verdict):
    assert grade_program(program, tests) == verdict


@pytest.mark.parametrize(
    ("program", "code", "verdict"),
    [
        # objects of the program stay there and are used from afar
        (
            "class Node:\n    def __init__(self, v):\n        self.v = v\n"
            "def total(nodes):\n    return sum(n.v for n in nodes)",
            "a = Node(1)\na.v = 5\nassert a.v == 5\nassert total([a, Node(2)]) == 7",
            "passed",
        ),
        (
            "def f():\n    return (1, [2], {3}, {4: b'x'}, 1j, None)",
            "assert f() == (1, [2], {3}, {4: b'x'}, 1j, None)",
            "passed",
        ),
        ("def f():\n    return [1, 2]", "assert f() == (1, 2)", "wrong_answer"),
        (
            "def f(x):\n    raise ValueError('no')",
            "try:\n    f(1)\n    assert False\nexcept ValueError:\n    assert True",
            "passed",
        ),
        ("def f(x):\n    return x", "import math\nassert math.isclose(f(2.0), 2.0)", "passed"),
        ("import math\ndef f(x):\n    return x", "assert math.isclose(f(2.0), 2.0)", "passed"),
        ("def sum(a, b):\n    return a - b", "assert sum(5, 2) == 3", "passed"),
        ("ANSWER = 42", "assert ANSWER == 42", "passed"),
        # what can't be expressed without running the test inside the program
        ("def f(g):\n    return g(1)", "assert f(lambda x: x) == 1", "infrastructure"),
        ("def f():\n    return 1", "import no_such_module\nassert f() == 1", "infrastructure"),
    ],
)
def test_assert_code_is_run_apart_from_the_program(grade_program, program, code, verdict):
    assert grade_program(program, asserts(code)) == verdict


@pytest.mark.parametrize(
    "tests",
    [
        None,
        [],
        {},
        {"kind": "essay"},
        stdin(),
        {"kind": "stdin", "cases": [{"input": "1"}]},
        {"kind": "stdin", "cases": "1"},
        function("f"),
        {"kind": "function", "cases": [{"args": [], "expected": 1}]},
        {"kind": "function", "entry_point": "f", "cases": [{"args": 3, "expected": 1}]},
        stdin(("", ""), tolerance="small"),
        asserts(""),
    ],
)
def test_malformed_or_missing_tests_never_pass(grade_program, tests):
    assert check_tests(tests)
    assert grade_program("def f():\n    return 1", tests) == "infrastructure"


@pytest.mark.parametrize("code", ["f()", "assert f( ==", "def check(c):\n    assert c() == 1", "assert True"])
def test_assert_code_that_asserts_nothing_about_the_program_never_passes(grade_program, code):
    assert grade_program("def f():\n    return 1", asserts(code)) == "infrastructure"


def test_each_case_starts_afresh(grade_program):
    program = "import builtins\nassert not hasattr(builtins, 'seen')\nbuiltins.seen = 1\nprint(2 * int(input()))"
    assert grade_program(program, DOUBLE) == "passed"


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (2, 2.0, True),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        ("1", 1, False),
        (None, None, True),
        (None, 0, False),
        (0.3, 0.1 + 0.2, False),
        ([1, 2], {"tuple": [1, 2]}, True),
        ([[1], []], [{"tuple": [1]}, []], True),
        ([1, 2], {"set": [1, 2]}, False),
        ([1, 2], [1, 2, 3], False),
        ([], None, False),
        ({"a": 1}, {"dict": [["a", 1]]}, True),
        ({"1": 1}, {"dict": [[1, 1]]}, True),
        ({"a": 1}, {"dict": [["a", 2]]}, False),
        ({"a": 1}, {"dict": [["a", 1], ["b", 1]]}, False),
        ({"a": 1}, {"dict": "a"}, False),
        (1, {"reference": 0}, False),
        (float("nan"), float("nan"), True),
        (10**400, 1.5, False),
    ],
)
def test_results_are_compared_as_json_values(expected, found, same):
    assert same_json(expected, found) is same


def test_a_tolerance_applies_to_numbers_only(grade_program):
    assert same_json([0.3, "a"], [0.1 + 0.2, "a"], 1e-9)
    assert not same_json(0.3, 0.31, 1e-9)
    assert not same_json(1, True, 0.5)
    assert same_json(1e9, 1e9 + 1, 1e-6)
    assert same_output("x 1.0\n2", "x 1.0000001\n2.0", 1e-6)
    assert not same_output("x 1.0", "y 1.0", 1e-6)
    assert not same_output("1.0 2.0", "1.0", 1e-6)
    assert grade_program("print(0.1 + 0.2)", stdin(("", "0.3"))) == "wrong_answer"
    assert grade_program("print(0.1 + 0.2)", stdin(("", "0.3"), tolerance=1e-9)) == "passed"


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("4", "4\n", True),
        ("4\n", "4  \n\n", True),
        ("1\n2", "1 \n2", True),
        ("1\n2", "1\r\n2\r\n", True),
        ("1 2", "1  2", False),
        ("1\n2", "1\n\n2", False),
        (" 1", "1", False),
        ("", "\n", True),
    ],
)
def test_outputs_are_compared_as_judges_do(expected, found, same):
    assert same_output(expected, found) is same
