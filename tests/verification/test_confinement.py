"""What programs may and may not do in the tiers that are sandboxes: files, network, processes, namespaces."""

from __future__ import annotations

import os

import pytest

from vibethinker.errors import ConfigurationError
from vibethinker.verification import CodeLimits, Item, Verifier


def run(verifier: Verifier, program: str, tests: object) -> str:
    return verifier.grade([Item("code", f"```python\n{program}\n```", tests)])[0].verdict


@pytest.fixture
def sandboxed(confined):
    """A verifier in a tier that is a sandbox."""
    if confined.tier == "rlimits":
        pytest.skip("rlimits is no sandbox")
    return confined


def test_a_program_sees_nothing_of_the_environment(confined):
    tests = {"kind": "function", "entry_point": "f", "cases": [{"args": [], "expected": []}]}
    # The hash seed, and the locale that Python sets for itself.
    program = "import os\ndef f(): return [n for n in os.environ if n not in ('PYTHONHASHSEED', 'LC_CTYPE')]"
    assert run(confined, program, tests) == "passed"


def attempts(*statements: str) -> str:
    """A program whose `f` tells which of the statements didn't fail."""
    return f"""
import ctypes, os, signal, socket, subprocess, sys
LIBC = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), 'refused')
def f():
    done = []
    for statement in {list(statements)!r}:
        try: exec(statement, globals())
        except (OSError, subprocess.SubprocessError): continue
        done.append(statement)
    return done
"""


FORBIDDEN = {
    "network": [
        "socket.create_connection(('127.0.0.1', PORT), timeout=1)",
        "socket.create_connection(('1.1.1.1', 53), timeout=1)",
        "socket.getaddrinfo('example.org', 80)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
        "socket.socket(socket.AF_UNIX).connect('\\0abstract')",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    ],
    "files": [
        "open('/etc/passwd').read()",
        "open('/etc/hostname').read()",
        "open('NOTE').read()",
        "open('NOTE', 'a').write('x')",
        "open('/usr/lib/x', 'w')",
        "open('/x', 'w')",
        "os.chmod('NOTE', 0o777)",
        "os.utime('NOTE')",
        "os.chmod(os.__file__, 0o777)",
        "open(sys.base_prefix + '/lib/x', 'w')",
        "open(os.__file__, 'a')",
        "os.symlink('NOTE', 'link'); open('link').read()",
        "os.link('NOTE', 'hard')",
        "os.symlink('/', 'root'); open('root/etc/passwd').read()",
        "os.mkdir('/var/tmp/x')",
        "os.mkdir('/dev/shm/x')",
        "os.listdir('/home')",
    ],
    "processes": [
        "open('/proc/1/environ').read()",
        "open(f'/proc/{os.getppid()}/environ').read()",
        "open('/proc/self/environ').read()",
        "os.kill(WORKER, 0)",
        "os.kill(WORKER, signal.SIGTERM)",
        "os.kill(os.getppid() if os.getppid() > 2 else WORKER, 0)",
        "__import__('fcntl').fcntl(0, 8, WORKER)",
        "__import__('fcntl').fcntl(0, 10, signal.SIGKILL)",
        "os.memfd_create('x')",
        "check(LIBC.ptrace(16, os.getppid(), 0, 0))",
        "check(LIBC.ptrace(16, WORKER, 0, 0))",
        "check(LIBC.process_vm_readv(WORKER, 0, 0, 0, 0, 0))",
        "check(LIBC.prctl(38, 0, 0, 0, 0))",
        "os.setuid(0)",
        "os.setpriority(os.PRIO_USER, 0, 19)",
    ],
    "namespaces": [
        "check(LIBC.unshare(0x10000000))",
        "check(LIBC.mount(b'none', b'/tmp', b'tmpfs', 0, 0))",
        "os.chroot('.')",
        "check(LIBC.syscall(272, 0x10000000))",
    ],
}


@pytest.mark.parametrize("kind", sorted(FORBIDDEN))
def test_nothing_forbidden_succeeds(sandboxed, tmp_path, kind):
    import socket

    tmp_path.chmod(0o777)
    note = tmp_path / "note"
    note.write_text("private")
    note.chmod(0o666)
    tests = {"kind": "function", "entry_point": "f", "cases": [{"args": [], "expected": []}]}
    with socket.create_server(("127.0.0.1", 0)) as server:
        places = {"PORT": str(server.getsockname()[1]), "NOTE": str(note), "WORKER": str(os.getpid())}
        statements = []
        for statement in FORBIDDEN[kind]:
            for name, value in places.items():
                statement = statement.replace(name, value)
            statements.append(statement)
        assert run(sandboxed, attempts(*statements), tests) == "passed"
    assert note.read_text() == "private"


def test_what_programs_need_succeeds(sandboxed):
    needed = [
        "import asyncio; asyncio.run(asyncio.sleep(0))",
        "import threading; t = threading.Thread(target=print); t.start(); t.join()",
        "open('file', 'w').write('x'); assert open('file').read() == 'x'",
        "import tempfile; tempfile.TemporaryFile().close()",
        "assert os.waitpid(os.fork() or os._exit(0), 0)[1] == 0",
        "import json, math, heapq, re, decimal, fractions, itertools, collections, random, hashlib, datetime, bisect",
    ]
    tests = {"kind": "function", "entry_point": "f", "cases": [{"args": [], "expected": needed}]}
    assert run(sandboxed, attempts(*needed), tests) == "passed"


def test_programs_are_not_root(sandboxed):
    tests = {"kind": "function", "entry_point": "f", "cases": [{"args": [], "expected": False}]}
    assert run(sandboxed, "import os\ndef f(): return 0 in (os.getuid(), os.geteuid(), os.getgid())", tests) == "passed"


def test_a_tier_that_is_no_sandbox_needs_leave():
    with Verifier(code=CodeLimits(tier="rlimits")) as verifier, pytest.raises(ConfigurationError, match="allow_unsafe"):
        verifier.try_sandbox()
