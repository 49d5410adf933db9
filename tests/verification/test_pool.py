"""Workers: lazily started, shared by threads, replaced, and gone when their owner is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import vibethinker.verification.pool
import vibethinker.verification.verifier
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.verification import CodeLimits, Item, Verifier

pytestmark = pytest.mark.slow

HARD = Item("math", r"\boxed{\sqrt{9}}", "3")
EASY = Item("math", r"\boxed{3}", "3")


def descendants(pid: int) -> set[int]:
    """Every living process below this one."""
    parents: dict[int, int] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry)] = int(fields[1])
    found: set[int] = set()
    while new := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= new
    return found


def test_workers_start_only_when_an_item_needs_one_and_end_with_close():
    before = descendants(os.getpid())
    with Verifier() as verifier:
        verifier.grade([EASY])
        assert descendants(os.getpid()) == before
        verifier.grade([HARD])
        assert len(descendants(os.getpid()) - before) == 1
    assert descendants(os.getpid()) == before


def test_an_open_verifier_outlives_the_threads_that_used_it():
    verdicts = []
    with Verifier(workers=2) as verifier:
        for _ in range(2):
            threads = [threading.Thread(target=lambda: verdicts.extend(verifier.grade([HARD, EASY]))) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert [v.verdict for v in verdicts] == ["correct"] * 12


def test_a_worker_killed_from_outside_is_replaced():
    with Verifier() as verifier:
        before = descendants(os.getpid())
        verifier.grade([HARD])
        (worker,) = descendants(os.getpid()) - before
        os.kill(worker, signal.SIGKILL)
        assert verifier.grade([HARD])[0].verdict == "correct"


def test_progress_tells_of_each_item_that_a_worker_graded(monkeypatch):
    monkeypatch.setattr(vibethinker.verification.verifier, "_PROGRESS_SECONDS", 0.0)
    heard = []
    other = Item("math", r"\boxed{\sqrt{16}}", "4")
    with Verifier() as verifier:
        verifier.grade([HARD, EASY, other, HARD], lambda done, total: heard.append((done, total)))
    assert heard == [(1, 2), (2, 2)]


def test_a_closed_verifier_can_be_used_again():
    with Verifier() as verifier:
        verifier.grade([HARD])
        verifier.close()
        verifier.close()
        assert verifier.grade([HARD])[0].verdict == "correct"


def test_a_worker_that_cannot_start_is_an_infrastructure_error(monkeypatch):
    monkeypatch.setattr(vibethinker.verification.pool, "WORKER", "vibethinker.verification.no_such_module")
    with Verifier() as verifier, pytest.raises(InfrastructureError, match="no_such_module"):
        verifier.grade([HARD])


def test_an_interpreter_that_does_not_start_is_a_configuration_error():
    limits = CodeLimits(allow_unsafe=True, python="/no/such/python")
    tests = {"kind": "stdin", "cases": [{"input": "", "output": ""}]}
    with Verifier(code=limits) as verifier, pytest.raises(ConfigurationError, match="/no/such/python"):
        verifier.grade([Item("code", "```python\npass\n```", tests)])


def test_grading_goes_on_while_its_caller_does_something_else():
    with Verifier(workers=2) as verifier:
        first, second = verifier.submit([HARD, EASY]), verifier.submit([EASY, HARD])
        assert [v.verdict for v in second.verdicts()] == ["correct"] * 2
        assert [v.verdict for v in first.verdicts()] == ["correct"] * 2


def test_a_full_queue_makes_the_caller_wait(monkeypatch):
    monkeypatch.setattr(vibethinker.verification.pool, "_WAITING", 4)
    with Verifier() as verifier:
        items = [Item("math", f"\\boxed{{\\sqrt{{{n * n}}}}}", str(n)) for n in range(2, 40)]
        submitted = verifier.submit(items)
        # All but those that the queue and the worker hold were graded before `submit` returned.
        waiting = [reply for _, _, reply in submitted._shared.values() if not reply.done()]
        assert len(waiting) <= 4
        assert {v.verdict for v in submitted.verdicts()} == {"correct"}


def test_verdicts_and_their_times_are_counted():
    wrong = Item("math", r"\boxed{4}", "3")
    with Verifier() as verifier:
        verifier.grade([EASY, HARD, wrong, Item("math", "no idea", "3")])
        values = verifier.statistics.values()
    assert {k: v for k, v in values.items() if "seconds" not in k} == {
        "math/correct": 2, "math/no_answer": 1, "math/wrong": 1
    }  # fmt: skip
    assert 0 < values["math/seconds_p50"] <= values["math/seconds_p95"] <= values["math/seconds_p99"] < 5


OWNER = """
import sys, threading
from vibethinker.verification import CodeLimits, Item, Verifier
verifier = Verifier(math_seconds=60, code=CodeLimits(seconds=60, allow_unsafe=True))
verifier.grade([Item("math", r"\\boxed{\\sqrt{9}}", "3")])
stdin = {"kind": "stdin", "cases": [{"input": "", "output": ""}]}
verifier.grade([Item("code", "```python\\npass\\n```", stdin)])
busy = [
    Item("math", r"\\boxed{\\prod_{k=1}^{10^8} k}", "3"),
    Item("code", "```python\\nimport os, time\\nos.fork()\\nos.setsid()\\nos.fork()\\ntime.sleep(600)\\n```", stdin),
]
threading.Thread(target=verifier.grade, args=(busy,), daemon=True).start()
print("busy", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_owner_dies_no_worker_or_program_stays(how, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, env=environment)
    with owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        deadline = time.monotonic() + 20
        # Two workers, the program's process, its fork for the case and the forks of that.
        while len(started := descendants(owner.pid)) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(started) >= 6
        owner.send_signal(how)
    deadline = time.monotonic() + 3
    while (left := [pid for pid in started if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    assert not list(tmp_path.iterdir())


FORK = """
import os
from vibethinker.verification import Item, Verifier
hard = Item("math", r"\\boxed{\\sqrt{9}}", "3")
with Verifier() as verifier:
    verifier.grade([hard])
    child = os.fork()
    verdict = verifier.grade([hard])[0].verdict
    if child == 0:
        verifier.close()
        os._exit(0 if verdict == "correct" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert verifier.grade([hard])[0].verdict == "correct" == verdict
"""


def test_a_fork_of_the_owner_gets_workers_of_its_own():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


def test_the_callers_process_never_imports_sympy():
    script = "import sys\nimport vibethinker.verification\nprint(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"sympy", "math_verify", "torch", "numpy", "ctypes"} & set(modules)
