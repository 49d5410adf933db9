"""Keys that Prefect keeps: read for the one step that needs them, handed to its process, told nobody else."""

from __future__ import annotations

from vibethinker.config import Config
from vibethinker.errors import ConfigurationError
from vibethinker.plan import Step
from vibethinker.redaction import learn


def of_step(step: Step, config: Config) -> dict[str, str]:
    """Name of a Secret block → its value, for the blocks that a step's settings name.

    Raises:
        ConfigurationError: there is no such block, or the server can't be asked for it.
    """
    server = config.data.teacher.server
    if step.kind != "data" or config.data.teacher.model is None or server is None or server.key_secret is None:
        return {}
    from prefect.blocks.system import Secret

    try:
        value = str(Secret.load(server.key_secret).get())
    except Exception as error:
        # The reason goes into logs, so it is only the kind of error, never what was read.
        raise ConfigurationError(
            f"data.teacher.server.key_secret {server.key_secret!r} can't be read ({type(error).__name__}): create the "
            f"Secret block of that name, or leave it unset and set {server.key_variable}."
        ) from None
    learn([value])
    return {server.key_secret: value}
