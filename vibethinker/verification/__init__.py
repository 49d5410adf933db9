"""Text in, verdict out: mathematical answers against gold, programs against tests. Usable on its own.

`Verifier.grade` is the way in, or `submit` to do something else meanwhile; rewards, probing, evaluation, the
teacher's filter and `vibethinker grade` share it. docs/verification.md states what is right. What is decided where:

- schema       items, verdicts, limits and the form of tests
- extraction   the answer or the program in a response
- notation     one spelling of an answer
- reading      its structure, as forms, told by its brackets; literals and units read numbers and quantities
- answers      two answers compared: their forms, and plain numbers and polynomials, in the caller's process,
evaluating nothing
- equivalence  single values of any kind, by latex2sympy, sympy and math-verify, in a worker
- programs     a program against its tests, in a worker, on top of asserts, child (the script) and sandbox (the
processes);
               proof tries a sandbox out before it is used
- pool         workers: started when needed, killed when stuck, gone when their owner is
- statistics   what was graded, and how long it took
"""

from __future__ import annotations

from vibethinker.verification.extraction import extract_answer, extract_program
from vibethinker.verification.schema import CodeLimits, Item, Verdict, check_tests
from vibethinker.verification.verifier import Grading, Verifier

__all__ = ["CodeLimits", "Grading", "Item", "Verdict", "Verifier", "check_tests", "extract_answer", "extract_program"]
