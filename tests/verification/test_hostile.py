"""Programs that cheat, hang, hoard or fork: none passes, none escapes, none holds the worker up."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from vibethinker.verification import CodeLimits, Item, Verifier

SECRET = "48151623"
STDIN = {"kind": "stdin", "cases": [{"input": "", "output": SECRET}]}
FUNCTION = {"kind": "function", "entry_point": "f", "cases": [{"args": [], "expected": SECRET}]}
ASSERT = {"kind": "assert", "code": f"assert f() == '{SECRET}'"}
CHECK = {"kind": "assert", "code": f"def check(c):\n    assert c() == '{SECRET}'\ncheck(f)"}
FORMS = pytest.mark.parametrize("tests", [STDIN, FUNCTION, ASSERT, CHECK], ids=["stdin", "function", "assert", "check"])

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
    ("program", "verdict"),
    [
        ("while True: pass", "time_limit"),
        ("import time\ntime.sleep(60)", "time_limit"),
        ("x = bytearray(10**10)", "memory_limit"),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "memory_limit"),
    ],
)
@pytest.mark.slow
def test_limits_hold_in_every_form(tests, program, verdict):
    with Verifier(code=CodeLimits(seconds=1.0, memory_mib=256, allow_unsafe=True)) as verifier:
        assert verifier.grade([Item("code", f"```python\n{program}\n```", tests)])[0].verdict == verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        "while True: print('x' * 1000)",
        "import os\nwhile True: os.write(1, b'x' * 65536)",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()",
        "def f(): return 'x' * 50_000_000\nprint('x' * 50_000_000)",
        "def f(): return [0] * 5_000_000\nprint([0] * 5_000_000)",
    ],
)
@pytest.mark.parametrize("tests", [STDIN, FUNCTION], ids=["stdin", "function"])
def test_hoarding_ends_the_program(verifier, tests, program):
    verdict = verifier.grade([Item("code", f"```python\n{program}\n```", tests)])[0].verdict
    assert verdict in ("runtime_error", "memory_limit", "time_limit")


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
    marker = f"left-behind-{os.getpid()}-{time.monotonic_ns()}"
    program = f"import ctypes\nctypes.CDLL(None).prctl(15, b'{marker[-15:]}')\n" + LEFT_BEHIND.format(secret=SECRET)
    verdict = verifier.grade([Item("code", f"```python\n{program}\n```", tests)])[0]
    # Leaving processes behind isn't wrong in itself.
    assert verdict.verdict == "passed"
    assert marker[-15:] not in running_names()


def running_names() -> set[str]:
    names = set()
    for status in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.add(status.read_text().strip())
        except OSError:
            continue
    return names


def test_nothing_stays_of_what_a_program_writes(verifier, tmp_path):
    note = tmp_path / "where"
    tmp_path.chmod(0o777)
    program = f"""
import os
open({str(note)!r}, 'w').write(os.getcwd())
for depth in range(200):
    os.mkdir('d')
    os.chdir('d')
open('file', 'w').write('x')
os.chmod('.', 0)
print('{SECRET}')
"""
    verdict = verifier.grade([Item("code", f"```python\n{program}\n```", STDIN)])[0]
    assert verdict.verdict == "passed"
    folder = Path(note.read_text())
    assert folder.parent.is_dir()
    assert not folder.exists()


def test_a_program_sees_nothing_of_the_environment(verifier):
    tests = {"kind": "function", "entry_point": "f", "cases": [{"args": [], "expected": []}]}
    # The hash seed, and the locale that Python sets for itself.
    program = "import os\ndef f(): return [n for n in os.environ if n not in ('PYTHONHASHSEED', 'LC_CTYPE')]"
    assert verifier.grade([Item("code", f"```python\n{program}\n```", tests)])[0].verdict == "passed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a program another user")
def test_root_gives_programs_another_user_and_no_way_to_fork_without_end():
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if python is None or subprocess.run([python, "-P", "-c", ""], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no Python of 3.11 or later in /usr/local/bin or /usr/bin that another user could run")
    tests = {"kind": "function", "entry_point": "f", "cases": [{"args": [], "expected": [65534, True]}]}
    program = """
import os, time
def f():
    try:
        for _ in range(1000):
            if os.fork() == 0:
                time.sleep(60)
    except OSError:
        return [os.getuid(), True]
    return [os.getuid(), False]
"""
    with Verifier(code=CodeLimits(allow_unsafe=True, python=python)) as verifier:
        assert verifier.grade([Item("code", f"```python\n{program}\n```", tests)])[0].verdict == "passed"


def test_bad_programs_leave_their_neighbours_alone(verifier):
    good = f"```python\nprint('{SECRET}')\n```"
    bad = ["import os\nos._exit(1)", "raise SystemExit(1)", "import os\nos.kill(os.getpid(), 9)", "1 / 0"]
    items = [item for b in bad for item in (Item("code", f"```python\n{b}\n```", STDIN), Item("code", good, STDIN))]
    assert [v.counts for v in verifier.grade(items)] == [False, True] * len(bad)
