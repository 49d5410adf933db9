"""A worker: `python -m vibethinker.verification.worker KIND SETTINGS PARENT`, lines of JSON over the socket
that is its stdin.

First it says `{"ready": true}`, programs' with the sandbox's tier, or `{"refused": reason}` where the configuration
is at fault; then it answers requests in order. A mathematical item has its time limit set as a timer whose signal
ends the process, which works inside long C calls too, and starts when the item does. Programs have theirs in
`programs`. The process dies with the thread that started it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from typing import Any

from vibethinker.errors import ConfigurationError
from vibethinker.verification import linux
from vibethinker.verification.schema import CodeLimits

MATH_MEMORY = 4 << 30  # bytes of address space


def _math(channel: Any, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MATH_MEMORY, MATH_MEMORY))
    from vibethinker.verification.equivalence import judge

    judge("x+1", "1+x")  # builds the parser's tables, which isn't to be counted against the first item
    _say(channel, ready=True)
    for line in channel:
        request = json.loads(line)
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        verdict = judge(request["gold"], request["answer"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say(channel, verdict=verdict, seconds=time.monotonic() - started)


def _code(channel: Any, limits: CodeLimits, root: str) -> None:
    # SIGTERM rather than SIGKILL: there are processes to kill.
    signal.signal(signal.SIGTERM, _leave)
    from vibethinker.verification.programs import judge
    from vibethinker.verification.proof import open_sandbox

    try:
        sandbox = open_sandbox(limits, root)
    except ConfigurationError as error:
        _say(channel, refused=str(error))
        return
    linux.die_with_parent(signal.SIGTERM)  # changing user had undone it
    try:
        _say(channel, ready=True, tier=sandbox.tier.name)
        for line in channel:
            request = json.loads(line)
            judged = judge(request["program"], request["tests"], sandbox)
            _say(channel, verdict=judged.verdict, seconds=judged.seconds, again=judged.starved)
            if judged.broken:
                return  # the one that comes instead tries the sandbox out anew
    finally:
        sandbox.close()


def _leave(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what follows is the clearing up
    sys.exit(0)


def _say(channel: Any, **message: Any) -> None:
    channel.write(json.dumps(message).encode() + b"\n")
    channel.flush()


def main(kind: str, settings: str, parent: str) -> None:
    """Serve the requests that come over stdin, for as long as the parent lives."""
    channel = socket.socket(fileno=os.dup(0)).makefile("rwb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # whatever prints or reads mustn't touch the protocol
    linux.die_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):
        return  # it died before it could be watched
    values = json.loads(settings)
    if kind == "math":
        _math(channel, values["seconds"])
    else:
        _code(channel, CodeLimits(**values["limits"]), values["root"])


if __name__ == "__main__":
    main(*sys.argv[1:])
