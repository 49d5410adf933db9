"""The verifier as configurations and steps ask for it; `vibethinker.verification` itself knows neither."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vibethinker.settings import Sandbox, Verification
from vibethinker.steps import StepContext
from vibethinker.verification import CodeLimits, Verifier


def limits(sandbox: Sandbox) -> CodeLimits:
    """The limits of programs that a configuration states."""
    return CodeLimits(
        seconds=sandbox.seconds,
        memory_mib=sandbox.memory,
        output_bytes=sandbox.output << 10,
        processes=sandbox.processes,
        files=sandbox.files,
        disk_mib=sandbox.disk,
        tier=sandbox.tier,
        allow_unsafe=sandbox.allow_unsafe,
        python=sandbox.python,
    )


def execution(sandbox: Sandbox) -> dict[str, Any]:
    """The sandbox's settings that no verdict depends on, for a step's execution settings."""
    return {name: getattr(sandbox, name) for name in ("tier", "python", "allow_unsafe")}


@contextmanager
def of_step(context: StepContext) -> Iterator[Verifier]:
    """The verifier of a step, in as many processes as its execution settings allow.

    What it did is emitted at the end as metrics named `verifier/…`, see `Statistics`, and `verifier/tier/…` of the
    sandbox.
    """
    settings = dict(context.settings["verification"])
    sandbox = Sandbox.model_validate(settings.pop("sandbox", {}) | context.execution["sandbox"])
    seconds = Verification.model_validate(settings).math_seconds
    with Verifier(context.execution["verifier_workers"], seconds, limits(sandbox)) as verifier:
        yield verifier
        context.emit.metrics(0, measurements(verifier))


def measurements(verifier: Verifier) -> Mapping[str, float]:
    """What a verifier did, as metrics; the sandbox's tier is the one whose value is 1."""
    values = {f"verifier/{name}": value for name, value in verifier.statistics.values().items()}
    if verifier.tier is not None:
        values[f"verifier/tier/{verifier.tier}"] = 1.0
    return values
