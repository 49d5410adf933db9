"""What happens when a training has diverged: its evidence is kept, and it goes back to an earlier update or ends.

Going back is a decision on the disk and nothing else: `rollbacks.json` beside the step's checkpoints says up to which
update the saved ones are still good, and by how much all learning rates shrink. Then the process leaves, and the next
one goes on from the newest checkpoint that is left, as after a kill (`resuming`). So optimizer, schedule, random
numbers, data, engine and sharding come back in the one way in which they always do, and a kill at any moment, before,
between or after, changes nothing. The same rows come again, and a stage's problems are sampled with the same seeds, by
other weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vibethinker import environment
from vibethinker.artifacts import EVIDENCE, UPDATES, write_json
from vibethinker.errors import DivergedError, InfrastructureError, RolledBackError
from vibethinker.training import processes
from vibethinker.training.callbacks import plain
from vibethinker.training.divergence import Sign

if TYPE_CHECKING:
    from vibethinker.training.common import Run
    from vibethinker.training.resuming import Resuming

ROLLBACKS = "rollbacks.json"
ROWS = 50  # of metrics that are kept as evidence


class Rollbacks:
    """Those that a training has made so far, in its folder of checkpoints.

    Attributes:
        made: of each the `sign`, the `update` that showed it, `healthy`, the last good one before it, and `rate`.

    Raises:
        InfrastructureError: the file can't be read.
    """

    def __init__(self, state: Path) -> None:
        self._file = state / ROLLBACKS
        try:
            self.made: list[dict[str, Any]] = json.loads(self._file.read_text())
        except FileNotFoundError:
            self.made = []
        except (OSError, ValueError) as error:
            raise InfrastructureError(
                f"{self._file} can't be read ({error}), and without it the training's learning rate isn't known: "
                f"remove {state} to begin the step anew."
            ) from None

    @property
    def rate(self) -> float:
        """What all learning rates are multiplied by."""
        return math.prod(one["rate"] for one in self.made)

    def add(self, sign: Sign, healthy: int, rate: float) -> None:
        """Note one more, whole or not at all."""
        self.made.append({"sign": sign.name, "update": sign.update, "healthy": healthy, "rate": rate})
        if processes.rank() == 0:
            write_json(self._file, self.made)

    def metrics(self) -> dict[str, Any]:
        """What the step's manifest says of them; nothing where there were none."""
        return {"rollbacks": len(self.made), "rollback_rate": self.rate, "rolled_back": self.made} if self.made else {}


class Halt:
    """Ends a training in which a sign has shown; see the module."""

    def __init__(self, run: Run, trainer: Resuming, rollbacks: Rollbacks) -> None:
        self._run, self._trainer, self._rollbacks = run, trainer, rollbacks

    def __call__(self, sign: Sign, row: Mapping[str, Any]) -> NoReturn:
        """Keep the evidence, and leave; called by all processes.

        Raises:
            RolledBackError: the step is to be run again, and goes on from an earlier update.
            DivergedError: it may not, or it would be of no use.
        """
        settings, made = self._run.divergence, len(self._rollbacks.made)
        healthy = sign.healthy
        if every := self._run.checkpoints.every:
            healthy -= healthy % every  # one that is there whatever the time that saving took
        back = healthy if sign.curable and made < settings.rollbacks else None
        assert self._trainer.resumable is not None
        self._trainer.resumable.finish()  # what is saved is part of the evidence
        kept = self._keep(sign, row, back)
        finding = f"{sign.finding} at update {sign.update}"
        if back is not None:
            self._rollbacks.add(sign, back, settings.rollback_rate)
        processes.barrier()
        if back is not None:
            rate, where = self._rollbacks.rate, f"going back to update {back} or before" if back else "starting over"
            count = f"rollback {made + 1} of {settings.rollbacks}"
            text = f"{finding} ({kept}): {where} at {rate:g} of the learning rate, {count}."
            self._run.emit.warning(text)
            self._run.emit.metrics(sign.update, {"rollbacks": made + 1, "rollback_rate": rate})
            raise RolledBackError(text)
        mend = sign.mend
        if sign.curable:
            own = ", or have it done by execution.divergence.rollbacks"
            mend += f" further than {made} rollback{'s' * (made > 1)} did" if made else own
        raise DivergedError(f"{finding} ({kept}): {mend}.")

    def _keep(self, sign: Sign, row: Mapping[str, Any], back: int | None) -> str:
        """Save the evidence; says where it is, or why it isn't."""
        run, made = self._run, len(self._rollbacks.made)
        folder = run.state / EVIDENCE / (f"update-{sign.update}" + (f"-rollback-{made}" if made else ""))
        if processes.rank():
            return f"evidence is in {folder}"
        rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()[-ROWS:]]
        last = {name: plain(value) for name, value in row.items()}
        saved = [path.name for path in (run.state / UPDATES).glob("*") if path.name.isdigit()]
        summary = {
            "sign": sign.name,
            "finding": sign.finding,
            "update": sign.update,
            "since": sign.since,
            "numbers": dict(sign.numbers),
            "last_healthy_update": sign.healthy,
            "saved_updates": sorted(map(int, saved)),
            "goes_back_to": back,
            "rollbacks_before": self._rollbacks.made,
            "seed": run.seed,
            "deterministic": run.deterministic,
            "settings": dict(run.settings),
            "divergence": run.divergence.model_dump(),
            "versions": environment.versions(),
            "environment": environment.facts(),
        }
        try:
            write_json(folder / "divergence.json", _as_json(summary))
            write_json(folder / "metrics.json", _as_json([*rows, {"step": sign.update, **last}]))
            if rollouts := self._trainer.sample():
                write_json(folder / "rollouts.json", _as_json(rollouts))
        except OSError as error:
            return f"its evidence could not be saved: {error.strerror}"
        return f"evidence is in {folder}"


def _as_json(value: Any) -> Any:
    """The value with what JSON lacks as text: NaN, infinity, and surrogates without their other half."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.encode(errors="replace").decode() if isinstance(value, str) else value
