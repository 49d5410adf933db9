"""Programs that cheat, hang, hoard or fork, in every tier: none passes, none escapes, none holds the worker up."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from vibethinker.verification import CodeLimits, Item, Verifier

pytestmark = pytest.mark.slow

SECRET = "48151623"
STDIN = {"kind": "stdin", "cases": [{"input": "", "output": SECRET}]}
FUNCTION = {"kind": "function", "entry_point": "f", "cases": [{"args": [], "expected": SECRET}]}
ASSERT = {"kind": "assert", "code": f"assert f() == '{SECRET}'"}
CHECK = {"kind": "assert", "code": f"def check(c):\n    assert c() == '{SECRET}'\ncheck(f)"}
FORMS = pytest.mark.parametrize("tests", [STDIN, FUNCTION, ASSERT, CHECK], ids=["stdin", "function", "assert", "check"])


@pytest.fixture(scope="module")
def verifier(confined):
    return confined


def run(verifier: Verifier, program: str, tests: object) -> str:
    return verifier.grade([Item("code", f"```python\n{program}\n```", tests)])[0].verdict


EQUAL_TO_ALL = """
class Any(str):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
def f(): return Any()
print(f())
"""
PATCHED = """
import builtins, json, sys, operator
class Always:
    def __eq__(self, other): return True
for module in (builtins, json, sys.modules['__main__']):
    for name in list(vars(module)):
        if name in ('dumps', 'loads', 'encode', 'to_json', 'isinstance', 'repr', 'reply_with', 'AssertionError'):
            setattr(module, name, lambda *a, **k: Always())
def f(): return Always()
"""
SEARCH = f"""
import gc, re, sys, os
def look():
    seen = [str(sys.argv), str(dict(os.environ))]
    for name in ('cmdline', 'environ'):
        for who in ('self', str(os.getppid())):
            try: seen.append(open(f'/proc/{{who}}/{{name}}', 'rb').read().decode(errors='replace'))
            except OSError: pass
    frame = sys._getframe()
    while frame:
        seen += [repr(v) for v in list(frame.f_locals.values())]
        frame = frame.f_back
    seen += [repr(o) for o in gc.get_objects() if isinstance(o, (dict, list, tuple)) and len(o) < 50]
    for folder, _, names in os.walk('.'):
        seen += [open(os.path.join(folder, n), errors='replace').read() for n in names]
    found = re.search('{SECRET[:4]}[0-9]{{4}}', ' '.join(seen))
    return found.group() if found else 'nothing'
def f(): return look()
print(look())
"""
FORGED = """
import os, sys
for number in range(3, 64):
    for text in (b'{"id": "ready"}\\n', b'{"id": "0000000000000000", "value": "x", "ended": "passed"}\\n'):
        try: os.write(number, text)
        except OSError: pass
def f(): return 'x'
"""
PEEK_AT_PARENT = f"""
import os, re
def f():
    found = 'nothing'
    try:
        with open(f'/proc/{{os.getppid()}}/maps') as maps, open(f'/proc/{{os.getppid()}}/mem', 'rb', 0) as memory:
            for line in maps:
                span = re.match(r'([0-9a-f]+)-([0-9a-f]+) rw', line)
                if span and ('heap' in line or line.endswith(' 0 \\n')):
                    start, end = (int(x, 16) for x in span.groups())
                    memory.seek(start)
                    match = re.search(rb'{SECRET[:4]}[0-9]{{4}}', memory.read(end - start))
                    found = match.group().decode() if match else found
    except OSError:
        pass
    return found
print(f())
"""


@FORMS
@pytest.mark.parametrize(
    "program",
    [
        EQUAL_TO_ALL,
        PATCHED,
        SEARCH,
        FORGED,
        PEEK_AT_PARENT,
        "import os\nos._exit(0)",
        "import os\ndef f():\n    os._exit(0)\nf()",
        "import sys\nsys.exit(0)",
        "import atexit, os\natexit.register(lambda: os._exit(0))\nraise SystemExit(0)",
        "import os\nos.closerange(0, 64)",
        "import sys\nsys.stdout.close()\ndef f(): return ''",
        "import os, shutil\nshutil.rmtree('.', ignore_errors=True)\nos.chdir('/')",
        "def f(): return f\nprint('x' * 10)",
        "import signal, os\nos.kill(os.getpid(), signal.SIGKILL)",
        "def f():\n    x = []\n    x.append(x)\n    return x\nprint('\\ud800')",
        "print('\\udcff')\nimport sys\nsys.stdout.buffer.write(b'\\xff\\xfe')",
        "class M(type):\n    def __instancecheck__(c, o): return True\n"
        "class E(BaseException, metaclass=M):\n    def __str__(s): raise E\ndef f(): raise E\n",
        "def f(): return {'set': [[1]]}",
        "assert False",
        "raise AssertionError",
        "raise ImportError",
    ],
)
def test_no_trick_passes_and_each_counts_as_wrong(verifier, tests, program):
    verdict = verifier.grade([Item("code", f"```python\n{program}\n```", tests)])[0]
    assert verdict.counts is False, verdict


@FORMS
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "9**9**9**9",
        "class C:\n    def __del__(self):\n        while True: pass\nc = C()\ndel c",
    ],
)
def test_the_time_limit_holds_in_every_form(verifier, tests, program):
    assert run(verifier, program, tests) == "time_limit"


@FORMS
@pytest.mark.parametrize("program", ["x = bytearray(10**10)", "x = []\nwhile True: x.append(bytearray(10**7))"])
def test_the_memory_limit_holds_in_every_form(unhurried, tests, program):
    assert run(unhurried, program, tests) == "memory_limit"


@pytest.mark.parametrize(
    "program",
    [
        "while True: print('x' * 1000)",
        "for _ in range(10): print('x' * 1_000_000_000)",
        "import os\nwhile True: os.write(1, b'x' * 65536)",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()",
        "def f(): return 'x' * 50_000_000\nprint('x' * 50_000_000)",
        "def f(): return [0] * 5_000_000\nprint([0] * 5_000_000)",
        "files = [open(f'f{n}', 'w') for n in range(1000)]",
    ],
)
@pytest.mark.parametrize("tests", [STDIN, FUNCTION], ids=["stdin", "function"])
def test_hoarding_ends_the_program(verifier, tests, program):
    assert run(verifier, program, tests) in ("runtime_error", "memory_limit", "time_limit")


FORK_BOMB = """
import os
def f():
    while True:
        try: os.fork()
        except OSError: pass
f()
"""
MEMORY_OF_MANY = """
import os, time
def f():
    for _ in range(8):
        if os.fork() == 0:
            block = bytearray(100_000_000)
            for at in range(0, len(block), 4096): block[at] = 1
            time.sleep(60)
    time.sleep(60)
f()
"""


@pytest.mark.parametrize("tests", [STDIN, FUNCTION], ids=["stdin", "function"])
def test_a_fork_bomb_is_contained_and_ends_with_its_time(verifier, tests):
    marker, started = new_marker(), time.monotonic()
    assert run(verifier, named(marker) + FORK_BOMB, tests) in ("time_limit", "memory_limit", "runtime_error")
    assert time.monotonic() - started < 10
    assert marker not in running_names()


def test_all_processes_of_a_program_share_its_memory(unhurried):
    assert run(unhurried, MEMORY_OF_MANY, STDIN) == "memory_limit"


LEFT_BEHIND = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    time.sleep(1000)
def f(): return '{secret}'
print('{secret}')
"""


@FORMS
def test_a_grandchild_that_holds_the_pipe_neither_delays_nor_survives(verifier, tests):
    marker = new_marker()
    program = named(marker) + LEFT_BEHIND.format(secret=SECRET)
    # Leaving processes behind isn't wrong in itself.
    assert run(verifier, program, tests) == "passed"
    assert marker not in running_names()


def new_marker() -> str:
    return f"{os.getpid()}-{time.monotonic_ns()}"[-15:]


def named(marker: str) -> str:
    """A program's first lines, which give its process and those that it forks this name."""
    return f"import ctypes\nctypes.CDLL(None).prctl(15, b'{marker}')\n"


def running_names() -> set[str]:
    names = set()
    for status in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.add(status.read_text().strip())
        except OSError:
            continue
    return names


MAZE = f"""
import os
for depth in range(200):
    os.mkdir('d')
    os.chdir('d')
open('file', 'w').write('x')
os.symlink('/', 'root')
try: os.chmod('.', 0)
except OSError: pass
print('{SECRET}')
"""


def test_nothing_stays_of_what_a_program_writes(verifier):
    assert run(verifier, MAZE, STDIN) == "passed"
    fresh = f"import os\nassert not [n for n in os.listdir('.') if not n.startswith('.')]\nprint('{SECRET}')"
    assert run(verifier, fresh, STDIN) == "passed"


def test_no_folder_stays_on_the_host(verifier):
    def ours() -> set[str]:
        return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("vibethinker-")}

    assert run(verifier, MAZE, STDIN) == "passed"
    held = ours()
    verifier.close()
    assert len(ours()) < len(held)


SPINNERS = """
import os
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        while True: pass
while True: pass
"""
WORK = f"""
total = 0
for n in range(1_000_000): total += n
print('{SECRET}')
"""


def test_a_program_that_others_starved_is_tried_again_alone():
    with Verifier(workers=4, code=CodeLimits(seconds=1.0, allow_unsafe=True)) as crowded:
        items = [Item("code", f"```python\n# {n}\n{SPINNERS}\n```", STDIN) for n in range(3)]
        verdicts = crowded.grade([*items, Item("code", f"```python\n{WORK}\n```", STDIN)])
    assert [v.verdict for v in verdicts] == ["time_limit"] * 3 + ["passed"]


def test_bad_programs_leave_their_neighbours_alone(verifier):
    good = f"```python\nprint('{SECRET}')\n```"
    bad = ["import os\nos._exit(1)", "raise SystemExit(1)", "import os\nos.kill(os.getpid(), 9)", "1 / 0", FORK_BOMB]
    items = [item for b in bad for item in (Item("code", f"```python\n{b}\n```", STDIN), Item("code", good, STDIN))]
    assert [v.counts for v in verifier.grade(items)] == [False, True] * len(bad)
