"""Processes for untrusted programs: a tier of confinement, limits, and nothing left behind.

Tiers, the strongest first. Each is tried out before it is used, by a program that attempts what it mustn't do, and
programs run in the strongest that holds, or in none.

| | files | network | processes | total memory and disk |
|---|---|---|---|---|
| bubblewrap | its own root | none | its own, counted alone | bounded |
| landlock | the interpreter's, a private folder | none | signals its own only | disk unbounded |
| rlimits | the user's | the machine's | the user's | disk unbounded |

`rlimits` is no sandbox, and used only with `allow_unsafe`. What all do: an interpreter started afresh from this small
worker (so limits are absolute, and a trainer's memory is neither counted nor visible), limits on CPU time, memory,
file size, open files, processes and wall time, no core dumps, an empty environment but for the hash seed (so that
verdicts repeat), a private folder, a session of its own, no capabilities, another user where root can give one, and a
sweep that kills every descendant. What none covers: faults of the kernel, side channels, and programs that do nothing
but waste their limits.
"""

from __future__ import annotations

from vibethinker.verification.sandbox.processes import Sandbox
from vibethinker.verification.sandbox.tiers import Unavailable

__all__ = ["Sandbox", "Unavailable"]
