r"""Rows as well-known sets publish them, read into the fields of a problem.

- columns: names from `columns`; a dot walks into objects; a chat counts as its user messages.
- gsm8k: `question` and `answer`; the gold stands after ####, thousands separators go, the calculator marks
  <<48/2=24>> are taken out of the worked solution, and a sentence with the boxed gold ends it. Where the worked
  solution never names the gold, it contradicts it, so it gets no such sentence and the verifier will leave it out.
- boxed: MATH's form: the gold is the last \boxed{} of `solution`.
- mbpp: `text`, `code` and `test_list`; the first assert is shown with the problem, which names no function otherwise.
- humaneval: `prompt`, `test` and `entry_point`.
- apps: `question`, `solutions`, `input_output`.
- olympiadbench: `question`, after its `context` where there is one, and `final_answer`, a list, joined by commas.
- gpqa: `Question`, `Correct Answer` and three `Incorrect Answer`; the four are shown in an order that the texts alone
  decide, and the gold is the right one's letter.
- livecodebench: `question_content`, `starter_code`, public and private test cases. The private ones are a pickle of
  one string, which is taken out of its opcodes: nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickletools
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from vibethinker.data.settings import DataFile
from vibethinker.verification.extraction import boxed
from vibethinker.verification.schema import check_tests

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_SEPARATOR = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TRAILING_NUMBER = re.compile(r"(\d{1,6})\s*$", re.ASCII)
_LEVELS = {"easy": 1, "medium": 2, "hard": 3}
_UNPACKED = 64 << 20  # bytes of one problem's private tests


class BadRow(ValueError):
    """What is wrong with a row."""


@dataclass(frozen=True)
class Fields:
    """What a row says; `label` is the source's own word for the domain, `added` what the format puts behind the
    problem, which isn't compared."""

    problem: str
    added: str = ""
    answer: str | None = None
    tests: dict[str, Any] | None = None
    solutions: tuple[str, ...] = ()
    label: str | None = None
    id: str | None = None
    difficulty: int | None = None


def fields(row: dict[str, Any], file: DataFile) -> Fields:
    """The fields of a row of this source.

    Raises:
        BadRow: it isn't what the format says.
    """
    return _FORMATS[file.format](row, file)


def column(row: dict[str, Any], name: str) -> Any:
    """The value at a dotted name; a key that holds the dots itself goes first.

    Raises:
        BadRow: there is none.
    """
    if name in row:
        return row[name]
    node: Any = row
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            raise BadRow(f"there is no column {name!r} among {', '.join(map(str, row))}: set the source's `columns`")
        node = node[part]
    return node


def text(value: Any, name: str) -> str:
    """A column's text without surrounding space; the user's messages of a chat.

    Raises:
        BadRow: it is none, or empty.
    """
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        asked = [m for m in value if m.get("role") == "user"] or value
        value = "\n".join(text(message.get("content"), f"{name}.content") for message in asked)
    if not isinstance(value, str):
        raise BadRow(f"column {name!r} must be text, not {json.dumps(value, default=str)[:60]}")
    if not value.strip():
        raise BadRow(f"column {name!r} is empty")
    return value.strip()


def answer(value: Any, name: str) -> str | None:
    """A gold answer as text; whole floats lose their .0; None and blanks are no answer.

    Raises:
        BadRow: it is neither text nor a number.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or value != value:
        raise BadRow(f"column {name!r} must be an answer, not {value}")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (int, float)) else text(value, name)


def _columns(row: dict[str, Any], file: DataFile) -> Fields:
    names = file.columns
    wanted = (names.problem,) if isinstance(names.problem, str) else names.problem
    tests = _tests(column(row, names.tests)) if names.tests and row.get(names.tests) is not None else None
    return Fields(
        problem="\n".join(text(column(row, name), name) for name in wanted),
        answer=answer(column(row, names.answer), names.answer) if names.answer and tests is None else None,
        tests=tests,
        solutions=_solutions(column(row, names.solution), names.solution) if names.solution else (),
        **_common(row, file),
    )


def _common(row: dict[str, Any], file: DataFile) -> dict[str, Any]:
    names = file.columns
    label = column(row, names.domain) if names.domain else None
    given = column(row, names.id) if names.id else None
    level = column(row, names.difficulty) if names.difficulty else None
    named = _LEVELS.get(str(level).strip().lower())
    number = None if level is None or named else _TRAILING_NUMBER.search(str(level))
    return {
        "label": None if label is None else text(label, str(names.domain)),
        "id": None if given is None else str(given),
        "difficulty": int(number[1]) if number else named,
    }


def _solutions(value: Any, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, list) and not any(isinstance(one, dict) for one in value):
        return tuple(text(one, name) for one in value if one)
    return (text(value, name),) if value != "" else ()


def _tests(value: Any) -> dict[str, Any]:
    if isinstance(value, str):  # objects often travel as text in column formats
        value = _json(value, "tests")
    if reason := check_tests(value):
        raise BadRow(f"{reason}; tests are written as for `vibethinker grade`")
    return value


def _json(value: Any, name: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRow(f"column {name!r} isn't JSON ({error})") from None


def _gsm8k(row: dict[str, Any], file: DataFile) -> Fields:
    body, marks, gold = text(column(row, "answer"), "answer").rpartition("####")
    gold = _SEPARATOR.sub("", gold).strip().removeprefix("$")
    if not marks or not gold:
        raise BadRow("the answer lacks the gold after ####, so it isn't in gsm8k's format: check `format`")
    body = _CALCULATOR.sub("", body).strip()
    solution = f"{body}\nThe answer is \\boxed{{{gold}}}." if _names(body, gold) else body
    solutions = (solution,) if solution else ()
    problem = text(column(row, "question"), "question")
    return Fields(problem, answer=gold, solutions=solutions, **_common(row, file))


def _names(body: str, gold: str) -> bool:
    """Whether the gold is among the numbers of a worked solution, whatever their sign, or in its text."""
    unsigned = gold.removeprefix("-")
    if not _NUMBER.fullmatch(unsigned):
        return gold in body
    return Decimal(unsigned) in {Decimal(number) for number in _NUMBER.findall(_SEPARATOR.sub("", body))}


def _boxed(row: dict[str, Any], file: DataFile) -> Fields:
    solution = text(column(row, "solution"), "solution")
    problem = text(column(row, "problem"), "problem")
    return Fields(problem, answer=boxed(solution), solutions=(solution,), **_common(row, file))


def _mbpp(row: dict[str, Any], file: DataFile) -> Fields:
    shown = column(row, "test_list")
    if not isinstance(shown, list) or not shown:
        raise BadRow("column 'test_list' must be a list of asserts")
    asserts = [text(one, "test_list") for one in shown]
    setup = row.get("test_setup_code") or ""
    added = f"\nYour code should pass this test:\n{asserts[0]}"
    code = "\n".join([setup, *asserts] if setup.strip() else asserts)
    solution = _program(text(column(row, "code"), "code"))
    tests = _tests({"kind": "assert", "code": code})
    return Fields(text(column(row, "text"), "text"), added, tests=tests, solutions=(solution,), **_common(row, file))


def _humaneval(row: dict[str, Any], file: DataFile) -> Fields:
    entry = text(column(row, "entry_point"), "entry_point")
    prompt = column(row, "prompt")
    problem = f"Complete this function:\n```python\n{text(prompt, 'prompt')}\n```"
    code = f"{text(column(row, 'test'), 'test')}\ncheck({entry})"
    solutions = (_program(prompt + row["canonical_solution"]),) if row.get("canonical_solution") else ()
    return Fields(problem, tests=_tests({"kind": "assert", "code": code}), solutions=solutions, **_common(row, file))


def _apps(row: dict[str, Any], file: DataFile) -> Fields:
    problem, added = text(column(row, "question"), "question"), _starter(row)
    given = row.get("input_output")
    tests = _apps_tests(_json(given, "input_output") if isinstance(given, str) and given else given)
    programs = _json(row["solutions"], "solutions") if row.get("solutions") else []
    solutions = tuple(_program(program) for program in programs if isinstance(program, str) and program.strip())
    return Fields(problem, added, tests=tests, solutions=solutions, **_common(row, file))


def _starter(row: dict[str, Any]) -> str:
    starter = (row.get("starter_code") or "").strip()
    return f"\nStart from this code:\n```python\n{starter}\n```" if starter else ""


def _apps_tests(given: Any) -> dict[str, Any] | None:
    if not given or not given.get("inputs"):
        return None
    pairs = list(zip(given["inputs"], given["outputs"], strict=False))
    if name := given.get("fn_name"):
        cases = [{"args": i, "expected": o[0] if isinstance(o, list) and len(o) == 1 else o} for i, o in pairs]
        return _tests({"kind": "function", "entry_point": name, "cases": cases})
    return _tests({"kind": "stdin", "cases": [{"input": _lines(i), "output": _lines(o)} for i, o in pairs]})


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _livecodebench(row: dict[str, Any], file: DataFile) -> Fields:
    problem = text(column(row, "question_content"), "question_content")
    cases = _json(column(row, "public_test_cases"), "public_test_cases")
    if packed := row.get("private_test_cases"):
        cases = [*cases, *_json(_unpacked(packed), "private_test_cases")]
    name = _json(row.get("metadata") or "{}", "metadata").get("func_name")
    tests = _tests(_livecodebench_tests(cases, name))
    return Fields(problem, _starter(row), tests=tests, **_common(row, file))


def _livecodebench_tests(cases: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    if name is None:
        return {"kind": "stdin", "cases": [{"input": case["input"], "output": case["output"]} for case in cases]}
    called = [
        {
            "args": [_json(line, "input") for line in case["input"].splitlines() if line.strip()],
            "expected": _json(case["output"], "output"),
        }
        for case in cases
    ]
    return {"kind": "function", "entry_point": name, "cases": called}


def _unpacked(packed: str) -> str:
    """The string in a base64 of a zlib of a pickle, or the text itself where it is JSON already."""
    if packed.lstrip().startswith("["):
        return packed
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(packed), _UNPACKED)
        if inflate.unconsumed_tail:
            raise BadRow(f"its private tests take more than {_UNPACKED >> 20} MiB")
        strings = [argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)]
    except (ValueError, zlib.error) as error:
        raise BadRow(f"column 'private_test_cases' can't be unpacked ({error})") from None
    if len(strings) != 1:
        raise BadRow("column 'private_test_cases' isn't the pickle of one string")
    return strings[0]


def _olympiadbench(row: dict[str, Any], file: DataFile) -> Fields:
    given = column(row, "final_answer")
    if given is not None and not isinstance(given, list):
        raise BadRow("column 'final_answer' must be a list of answers")
    golds = [gold for one in given or () if (gold := answer(one, "final_answer")) is not None]
    parts = [text(row["context"], "context")] if row.get("context") else []
    problem = "\n".join([*parts, text(column(row, "question"), "question")])
    return Fields(problem, answer=", ".join(golds) or None, **_common(row, file))


def _gpqa(row: dict[str, Any], file: DataFile) -> Fields:
    names = ("Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3)))
    question, options = text(column(row, "Question"), "Question"), [text(column(row, n), n) for n in names]
    if len(set(options)) < len(options):
        raise BadRow("two of its answers are equal")
    # Whatever the rows' order or number, a question's options stand as they always do.
    shown = sorted(options, key=lambda one: hashlib.sha256(f"{question}\0{one}".encode()).digest())
    choices = "\n".join(f"({letter}) {one}" for letter, one in zip("ABCD", shown, strict=True))
    added = f"\n{choices}\nAnswer with the letter of the right choice in \\boxed{{}}."
    return Fields(question, added, answer="ABCD"[shown.index(options[0])], **_common(row, file))


def _program(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


_FORMATS: dict[str, Callable[[dict[str, Any], DataFile], Fields]] = {
    "columns": _columns,
    "gsm8k": _gsm8k,
    "boxed": _boxed,
    "mbpp": _mbpp,
    "humaneval": _humaneval,
    "apps": _apps,
    "livecodebench": _livecodebench,
    "olympiadbench": _olympiadbench,
    "gpqa": _gpqa,
}
