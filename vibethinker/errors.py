"""The errors this project raises on purpose, each with the class of failure it stands for.

A message is one sentence that names the cause and the mend. `exit_code` is what the command line returns;
`child_exit` is what a worker child's process returns, so that its parent knows the class of failure
even when no event arrived. What to do about each class is decided by the tasks, not here.
"""

from __future__ import annotations

from vibethinker.redaction import redact


class VibeThinkerError(Exception):
    """A failure whose message is meant for the user, and goes to logs, Prefect and Slack: it may repeat what a server
    or a library said, so secrets are taken out of it."""

    kind = "failure"
    exit_code = 1
    child_exit = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class ConfigurationError(VibeThinkerError):
    """A setting, an argument or a missing extra: a retry can't help."""

    kind = "configuration"
    exit_code = 2
    child_exit = 78


class DataError(VibeThinkerError):
    """An input file that is missing, malformed or empty: a retry can't help."""

    kind = "data"
    exit_code = 2
    child_exit = 65


class OutOfMemoryError(VibeThinkerError):
    """The device's memory did not suffice: the micro-batch can be halved."""

    kind = "out_of_memory"
    child_exit = 77


class DivergedError(VibeThinkerError):
    """Training left the numbers' range: a human should look before more money is spent."""

    kind = "diverged"
    child_exit = 76


class RolledBackError(VibeThinkerError):
    """Training diverged and went back to an earlier update: the step is run again and goes on from there, without using
    up a retry."""

    kind = "rolled_back"
    child_exit = 73


class PreemptedError(VibeThinkerError):
    """The step was asked to stop: it is run again, from what it saved if it did, without using up a retry."""

    kind = "preempted"
    child_exit = 75


class InfrastructureError(VibeThinkerError):
    """A network, a disk, a lost process: worth a retry with back-off."""

    kind = "infrastructure"
    child_exit = 74


class RejectedError(VibeThinkerError):
    """Somebody was asked whether the run may go on, and said no or nothing."""

    kind = "rejected"


class BudgetError(VibeThinkerError):
    """The run's budget is spent, or would be by the next step: it is paused until somebody raises it."""

    kind = "budget"


CHILD_EXITS: dict[int, type[VibeThinkerError]] = {
    c.child_exit: c
    for c in (
        ConfigurationError,
        DataError,
        OutOfMemoryError,
        DivergedError,
        RolledBackError,
        PreemptedError,
        InfrastructureError,
    )
}
KINDS: dict[str, type[VibeThinkerError]] = {c.kind: c for c in CHILD_EXITS.values()}
KINDS[VibeThinkerError.kind] = VibeThinkerError
