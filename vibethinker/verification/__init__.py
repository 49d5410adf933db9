"""Text in, verdict out: mathematical answers against gold, programs against tests.

`Verifier.grade` is the only way in; rewards, probing, evaluation, the teacher's filter and `vibethinker
grade` share it. What is decided where:

- schema      items, verdicts, limits and the form of tests
- extraction  the answer or the program in a response
- answers     numbers, polynomials and equal strings, in the caller's process, evaluating nothing
- equivalence everything else of mathematics, by math-verify, in a worker
- programs    a program against its tests, in a worker, on top of asserts, sandbox (processes), child (script)
- pool        workers: started when needed, killed when stuck, gone when their owner is
"""

from __future__ import annotations

from vibethinker.verification.extraction import extract_answer, extract_program
from vibethinker.verification.schema import CodeLimits, Item, Verdict, check_tests
from vibethinker.verification.verifier import Verifier

__all__ = ["CodeLimits", "Item", "Verdict", "Verifier", "check_tests", "extract_answer", "extract_program"]
