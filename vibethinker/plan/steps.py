"""What a plan is made of: its steps, each with its fingerprint, in an order in which they can be executed. Which steps
there are is decided in `vibethinker.plan.building`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vibethinker.config import Config
from vibethinker.errors import ConfigurationError
from vibethinker.messages import did_you_mean


@dataclass(frozen=True)
class Step:
    """One step: what it computes (kind, settings), from what (inputs: role → step id), and its name for that.

    `outside` maps a path as the configuration states it to the file or folder it means; where it lies is not part
    of the fingerprint, its content is. `domain` and `stage` are for people who watch.
    """

    id: str
    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    fingerprint: str
    outside: Mapping[str, str] = field(default_factory=dict)
    domain: str | None = None
    stage: str | None = None

    @property
    def depends_on(self) -> list[str]:
        """The steps it reads, each once."""
        return list(dict.fromkeys(self.inputs.values()))


@dataclass(frozen=True)
class Plan:
    """All steps of a run in an order in which they can be executed."""

    config: Config
    steps: tuple[Step, ...]
    workspace: Path

    def __getitem__(self, step_id: str) -> Step:
        for step in self.steps:
            if step.id == step_id:
                return step
        raise ConfigurationError(f"There is no step {step_id!r}; {did_you_mean(step_id, [s.id for s in self.steps])}.")

    def ids(self, *kinds: str) -> list[str]:
        """The steps of these kinds, in order."""
        return [s.id for s in self.steps if role_of(s) in kinds]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Step id → fingerprint."""
        return {s.id: s.fingerprint for s in self.steps}

    @property
    def final_model(self) -> str:
        """The step whose model the recipe ends with."""
        return (self.ids("distilled") or self.ids("signal") or self.ids("fusion"))[-1]

    def until(self, kind: str) -> Plan:
        """The part of the plan that steps of this kind need, themselves included."""
        wanted = {s.id for s in self.steps if role_of(s) == kind}
        for step in reversed(self.steps):
            if step.id in wanted:
                wanted.update(step.inputs.values())
        return Plan(self.config, tuple(s for s in self.steps if s.id in wanted), self.workspace)


def role_of(step: Step) -> str:
    """The kind of step that this is, or that it stands in for if a user's folder took its place."""
    return step.settings["role"] if step.kind == "import" else step.kind
