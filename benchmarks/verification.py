"""How fast verdicts are: mathematics beside math-verify on the same answers, programs beside a bare interpreter.

    python benchmarks/verification.py [--data DIR] [--workers N] [--programs N] [--output FILE]

Mathematics: GSM8K's test problems with their worked solutions as responses, and MATH-500's gold answers, each against
its own gold and against another problem's. `ours` grades them with N workers (one a core), `peer` is math-verify's
own parse and verify, each answer and gold as it documents, in one process; both are warm but have seen none of the
answers before, and are graded in turns, five rounds, of which the medians count. `differences` lists every pair that
the two judge differently.

Programs: each reads a number and prints another, in the strongest tier that holds here. `added_ms` is what one program
takes with one worker beyond the start of a bare `python -I -S`, medians of alternating runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outcome import tell

from vibethinker.environment import versions
from vibethinker.hardware import cores
from vibethinker.verification import CodeLimits, Item, Verifier

ROUNDS = 5
ALTERNATIONS = 60
DOUBLE = {"kind": "stdin", "cases": [{"input": "4", "output": "8"}]}


def main() -> None:
    """Run both parts and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VIBETHINKER_SHARED_DATA", "../shared/data")))
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = {
        "gsm8k": math(gsm8k(arguments.data), arguments.workers),
        "math500": math(math500(arguments.data), arguments.workers),
        "code": code(arguments.programs, arguments.workers),
        "workers": arguments.workers,
        "versions": versions(),
        "command": "python benchmarks/verification.py",
    }
    tell(result, arguments.output)


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def with_another(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(gold, response) pairs, followed by each response against another problem's gold."""
    golds = [gold for gold, _ in pairs]
    random.Random(0).shuffle(golds)
    return [*pairs, *((gold, response) for gold, (_, response) in zip(golds, pairs, strict=True))]


def gsm8k(folder: Path) -> list[tuple[str, str]]:
    """Worked solutions whose final number is boxed, as models are asked to write."""
    parts = [row["answer"].split("####") for row in rows(folder / "gsm8k_test.jsonl")]
    return with_another([(gold.strip(), f"{text}The answer is \\boxed{{{gold.strip()}}}.") for text, gold in parts])


def math500(folder: Path) -> list[tuple[str, str]]:
    """Gold answers alone."""
    answers = [row["answer"] for row in rows(folder / "math500_test.jsonl")]
    return with_another([(answer, f"So the answer is $\\boxed{{{answer}}}$.") for answer in answers])


def math(pairs: list[tuple[str, str]], workers: int) -> dict[str, Any]:
    """Answers a second of both sides, and where they differ."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    verdicts: dict[str, list[bool]] = {}
    for _ in range(ROUNDS):
        for side, took in seconds.items():
            # A process of its own each time: both sides remember what they have parsed.
            asked = json.dumps({"side": side, "pairs": pairs, "workers": workers})
            command = [sys.executable, __file__, "--side"]
            answer = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, check=True).stdout
            found = json.loads(answer)
            took.append(found["seconds"])
            verdicts[side] = found["verdicts"]
    rate = {side: len(pairs) / statistics.median(took) for side, took in seconds.items()}
    differences = [
        {"gold": gold, "response": response[-60:], "ours": mine, "peer": other}
        for (gold, response), mine, other in zip(pairs, verdicts["ours"], verdicts["peer"], strict=True)
        if mine != other
    ]
    return {
        "ours": round(rate["ours"]),
        "peer": round(rate["peer"]),
        "ratio": round(rate["ours"] / rate["peer"], 1),
        "unit": "answers/s",
        "pairs": len(pairs),
        "correct": sum(verdicts["ours"]),
        "differences": differences,
    }


def grade_once() -> None:
    """One side's process: the pairs on stdin graded once, after one that warms everything up."""
    asked = json.load(sys.stdin)
    pairs: list[tuple[str, str]] = asked["pairs"]
    if asked["side"] == "ours":
        with Verifier(workers=asked["workers"]) as verifier:
            warming = [
                Item("math", f"\\boxed{{\\sqrt{{{n * n}}}}}", str(n)) for n in range(2, 2 + 8 * asked["workers"])
            ]
            verifier.grade(warming)
            items = [Item("math", response, gold) for gold, response in pairs]
            started = time.perf_counter()
            found = [verdict.verdict == "correct" for verdict in verifier.grade(items)]
    else:
        from math_verify import parse, verify

        def grade(gold: str, response: str) -> bool:
            return verify(parse(f"\\boxed{{{gold}}}"), parse(response))

        grade("2", "\\boxed{\\sqrt{4}}")
        started = time.perf_counter()
        found = [grade(gold, response) for gold, response in pairs]
    print(json.dumps({"seconds": time.perf_counter() - started, "verdicts": found}))


def code(count: int, workers: int) -> dict[str, Any]:
    """Programs a second, and what a program costs beyond an interpreter."""
    with Verifier(workers=workers) as verifier:
        tier = verifier.try_sandbox()
        items = [program(number) for number in range(count)]
        verifier.grade(items[:20])
        rates = [count / timed(lambda: check(verifier, items)) for _ in range(3)]
    bare = [os.path.realpath(sys.executable), "-I", "-S", "-c", ""]
    with Verifier(workers=1, code=CodeLimits(tier=tier)) as verifier:
        verifier.try_sandbox()
        alone, plain = [], []
        for number in range(ALTERNATIONS):
            alone.append(timed(lambda: check(verifier, [program(number)])))  # noqa: B023 - called at once
            plain.append(timed(lambda: subprocess.run(bare, check=True, env={})))
    milliseconds = {name: statistics.median(values) * 1000 for name, values in (("ours", alone), ("bare", plain))}
    return {
        "ours": round(statistics.median(rates), 1),
        "unit": "programs/s",
        "tier": tier,
        "programs": count,
        "one_program_ms": round(milliseconds["ours"], 1),
        "bare_interpreter_ms": round(milliseconds["bare"], 1),
        "added_ms": round(milliseconds["ours"] - milliseconds["bare"], 1),
    }


def program(number: int) -> Item:
    """A program that no other is equal to, since equal ones run once."""
    return Item("code", f"```python\n# {number}\nprint(2 * int(input()))\n```", DOUBLE)


def check(verifier: Verifier, items: list[Item]) -> None:
    """Grade programs that pass."""
    assert {verdict.verdict for verdict in verifier.grade(items)} == {"passed"}


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    grade_once() if sys.argv[1:] == ["--side"] else main()
