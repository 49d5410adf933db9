"""Twenty thousand items of every sort through one verifier: memory, descriptors and processes stay where they were."""

from __future__ import annotations

import os
import random

import pytest

from vibethinker.verification import CodeLimits, Item, Verifier
from vibethinker.verification.descendants import children, resident

ITEMS, BATCH = 20_000, 500
STDIN = {"kind": "stdin", "cases": [{"input": "4", "output": "8"}]}
FUNCTION = {"kind": "function", "entry_point": "f", "cases": [{"args": [2], "expected": 4}]}
ASSERT = {"kind": "assert", "code": "assert f(2) == 4"}
MIB = 1 << 20


def item(number: int, chance: random.Random) -> Item:
    """One item of the mixture: two thirds plain answers, a fifth for sympy, the rest programs, some of them bad."""
    draw = chance.random()
    if draw < 0.67:
        answer = chance.choice(["%d", "%d.0", "%d/1", "(%d, 2)"]) % number
        return Item("math", f"\\boxed{{{answer}}}", "7")
    if draw < 0.87:
        root = chance.randint(2, 10**6)
        gold = chance.choice([f"{root}", f"\\sqrt{{{root}}}", f"{root}x+1"])
        answer = chance.choice(["\\sqrt{%d}", "\\frac{%d}{\\pi}", "%d(x+1)"]) % (root * root)
        return Item("math", f"\\boxed{{{answer}}}", gold)
    bad = [
        "1 / 0",
        "import os\nos._exit(1)",
        "print('x' * 10**7)",
        "import os\nif os.fork():\n    os._exit(0)",
        "x = [0] * 10**9",
    ]
    good = "def f(x):\n    return 2 * x\nif __name__ == '__main__':\n    print(f(int(input())))"
    body = chance.choice([good, good, good, *bad])
    tests = chance.choice([STDIN, FUNCTION, ASSERT])
    return Item("code", f"```python\n# {number}\n{body}\n```", tests)


def resources() -> dict[str, int]:
    """What this process and its workers hold."""
    workers = children()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "worker_descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in workers),
        "workers": len(workers),
        "grandchildren": sum(len(children(pid)) for pid in workers),
        "memory": resident(os.getpid()),
        "largest_worker": max(map(resident, workers)),
        "folders": sum(name.startswith("vibethinker-") for name in os.listdir("/tmp")),
    }


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors and processes in /proc")
def test_twenty_thousand_items_leak_nothing():
    chance = random.Random(1)
    hanging = Item("math", r"\boxed{\prod_{k=1}^{10^8} k}", r"\sqrt{2}")
    with Verifier(workers=2, math_seconds=0.5, code=CodeLimits(seconds=1.0, allow_unsafe=True)) as verifier:
        counts = []
        for start in range(0, ITEMS, BATCH):
            items = [item(number, chance) for number in range(start, start + BATCH)]
            if start % 5000 == 0:
                items[-1] = hanging
            verdicts = [verdict.verdict for verdict in verifier.grade(items)]
            assert not {"infrastructure", "error"} & set(verdicts)
            counts.append(resources())
        graded = sum(v for k, v in verifier.statistics.values().items() if "seconds" not in k)
    assert graded == ITEMS
    warm, end = counts[12], counts[-1]  # neither is right behind an answer that cost a worker
    for name in ("descriptors", "worker_descriptors", "workers", "grandchildren", "folders"):
        assert end[name] <= max(count[name] for count in counts[:13]), (name, warm, end)
    assert end["grandchildren"] == 0
    # Caches fill up and are bounded; a leak of one kilobyte an item would show.
    for name in ("memory", "largest_worker"):
        assert end[name] - warm[name] < 12 * MIB, (name, warm, end)
