"""A worker: `python -m vibethinker.verification.worker KIND SETTINGS PARENT`, lines of JSON over the socket
that is its stdin.

First it says `{"ready": true}`, programs' with the sandbox's tier, or `{"refused": reason}` where the configuration
is at fault; then it answers requests in order. A mathematical item, and one of a plugin's reward, has its time limit
set as a timer whose signal ends the process, which works inside long C calls too, and starts when the item does.
Programs have theirs in `programs`. The process dies with the thread that started it.

What is judged comes from a model and is hostile: a plugin's function gets it as text, and must neither evaluate nor run
it. Its own code is trusted; the process, its time and its memory only bound what an odd text can make it do.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from vibethinker import plugins
from vibethinker.errors import ConfigurationError
from vibethinker.verification import linux
from vibethinker.verification.schema import CodeLimits

MEMORY = 4 << 30  # bytes of address space


def _math(channel: Any, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    judge = plugins.load(plugins.REWARDS, "math")
    judge("x+1", "1+x")  # builds the parser's tables, which isn't to be counted against the first item
    _answer(channel, seconds, lambda request: judge(request["gold"], request["answer"]))


def _reward(channel: Any, seconds: float, name: str) -> None:
    """A plugin's reward: its function says of a response whether it is right, or by None that it can't tell."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        judge = plugins.load(plugins.REWARDS, name)
    except ConfigurationError as error:
        _say(channel, refused=str(error))
        return

    def verdict(request: dict[str, Any]) -> str:
        try:
            right = judge(request["response"], request["gold"], request["problem"])
        except Exception:  # of one response: it is left out, as where the verifier fails
            right = None
        return "error" if right is None else "correct" if right else "wrong"

    _answer(channel, seconds, verdict)


def _answer(channel: Any, seconds: float, verdict: Callable[[dict[str, Any]], str]) -> None:
    """Say the verdict on each request, or end at its time limit."""
    _say(channel, ready=True)
    for line in channel:
        request = json.loads(line)
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        found = verdict(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say(channel, verdict=found, seconds=time.monotonic() - started)


def _code(channel: Any, limits: CodeLimits, root: str) -> None:
    # SIGTERM rather than SIGKILL: there are processes to kill.
    signal.signal(signal.SIGTERM, _leave)
    from vibethinker.verification.proof import open_sandbox

    judge = plugins.load(plugins.REWARDS, "code")
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
    elif kind == "code":
        _code(channel, CodeLimits(**values["limits"]), values["root"])
    else:
        _reward(channel, values["seconds"], kind)


if __name__ == "__main__":
    main(*sys.argv[1:])
