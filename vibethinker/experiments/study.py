"""The folder of an experiment: what was declared before its first run, which runs it has, and what they have shown.

`<workspace>/experiments/<id>/` holds experiment.yaml (by which it can be run again), result.json, report.md and plots/.
result.json is written before anything runs, with the design as `registered`, and anew whenever a run has ended. A lock,
`alive`, is held as long as a process works on it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vibethinker import __version__, locks, runs
from vibethinker.artifacts import Store, write_json, write_text
from vibethinker.errors import ConfigurationError
from vibethinker.experiments import report
from vibethinker.experiments.design import Cell, Experiment
from vibethinker.experiments.results import Results
from vibethinker.plan import role_of

SCHEMA = 1
ALIVE = "alive"


class Study:
    """An experiment under way; its methods may be called from any thread.

    Raises:
        ConfigurationError: another process works on it, or another version wrote what is there.
    """

    def __init__(self, experiment: Experiment, values: Mapping[str, Any]) -> None:
        self.experiment = experiment
        self.folder = experiment.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._alive = locks.attempt(self.folder / ALIVE)
        if self._alive is None:
            raise ConfigurationError(f"The experiment {experiment.id} is being run by another process: wait for it.")
        earlier = read_result(self.folder) if (self.folder / "result.json").exists() else {}
        self.registered = earlier.get("registered") or _declared(experiment)
        self.looks: list[dict[str, Any]] = earlier.get("looks", [])
        self._runs: dict[tuple[str, int], dict[str, Any]] = {
            (run["arm"], run["seed"]): run for run in earlier.get("runs", [])
        }
        self.status = "running"
        write_text(self.folder / "experiment.yaml", yaml.safe_dump(dict(values), sort_keys=False))
        self.save()

    @property
    def gone(self) -> dict[str, int]:
        """Arm → after how many seeds it was given up."""
        found: dict[str, int] = {}
        for look in self.looks:
            found |= {one["arm"]: look["after"] for one in look["arms"] if one["futile"]}
        return found

    def going(self, seed: int) -> list[Cell]:
        """The runs of a seed: of the arms that haven't been given up, and none once no arm but controls is left."""
        tested = {arm for _, _, arm in self.experiment.pairs()}
        if tested <= self.gone.keys():
            return []
        return [cell for cell in self.experiment.of_seed(seed) if cell.arm not in self.gone]

    def lacking(self, cell: Cell, going: Iterable[Cell]) -> bool:
        """Whether a run would wait for another one: needs, for a step of its own, an output that it shares with one of
        those that go on and that has yet to be made. Evaluations don't count: nothing waits for them."""
        store = Store(self.experiment.workspace)
        return any(store.read(*one) is None for other in going for one in _shared_inputs(cell, other))

    def finished(self, cell: Cell) -> str | None:
        """The id of this cell's run, if one has completed with all its outputs still there."""
        try:
            folder = runs.latest(self.experiment.workspace, cell.plan.fingerprints)
        except ConfigurationError:
            return None
        store = Store(self.experiment.workspace)
        there = all(store.read(step.id, step.fingerprint) for step in cell.plan.steps)
        return folder.name if there and runs.read_summary(folder)["status"] == "completed" else None

    def diverged(self, cell: Cell) -> bool:
        """Whether this cell's training has diverged, which it would do again."""
        return self._runs.get((cell.arm, cell.seed), {}).get("status") == "diverged"

    def note(self, cell: Cell, run_id: str, status: str, error: str | None = None) -> None:
        """Keep what became of a cell's run, and what all runs so far show."""
        with self._lock:
            run = {"arm": cell.arm, "seed": cell.seed, "run_id": run_id, "status": status}
            self._runs[cell.arm, cell.seed] = run | ({"error": error} if error else {})
        self.save()

    def look(self, after: int) -> list[str]:
        """After so many seeds, give up the arms that have no hope by the declared rule; returns those of this look. A
        look that an earlier process had is not had again."""
        rule = self.experiment.design.futility
        if rule is None or after not in rule.looks:
            return []
        if all(look["after"] != after for look in self.looks):
            gone = {arm: at for arm, at in self.gone.items() if at < after}
            self.looks.append({"after": after, "arms": Results(self.experiment, gone).look(rule, after)})
            self.save()
        return [arm for arm, at in self.gone.items() if at == after]

    def save(self) -> dict[str, Any]:
        """Write result.json, report.md and the plots; returns the first."""
        with self._lock:
            results = Results(self.experiment, self.gone)
            diverged = Counter(run["arm"] for run in self._runs.values() if run["status"] == "diverged")
            document = {
                "schema": SCHEMA,
                "id": self.experiment.id,
                "name": self.experiment.design.name,
                "question": self.experiment.design.question,
                "status": self.status,
                "registered": self.registered,
                "runs": [
                    self._runs[key] for cell in self.experiment.cells if (key := (cell.arm, cell.seed)) in self._runs
                ],
                "looks": self.looks,
                "given_up": self.gone,
                "means": results.means(),
                "comparisons": results.comparisons(diverged, final=self.status == "completed"),
                "cost": results.cost(),
            }
            write_json(self.folder / "result.json", document)
            report.write(self.folder, document, results.curves())
        return document

    def end(self, status: str) -> dict[str, Any]:
        """Note how it ended: completed, failed or interrupted."""
        self.status = status
        return self.save()

    def close(self) -> None:
        """Nothing is done for it any more."""
        if self._alive is not None:
            self._alive.close()


def ended(experiment: Experiment) -> bool:
    """Whether all that the design asks for has been done, and its outputs are there."""
    folder = experiment.folder
    if not (folder / "result.json").exists():
        return False
    result, store = read_result(folder), Store(experiment.workspace)
    noted = {(run["arm"], run["seed"]) for run in result["runs"] if run["status"] == "completed"}
    return result["status"] == "completed" and all(
        store.read(step.id, step.fingerprint)
        for cell in experiment.cells
        if (cell.arm, cell.seed) in noted
        for step in cell.plan.steps
    )


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of an experiment, refused with a sentence if another version wrote it."""
    return runs.read_document(folder / "result.json", SCHEMA, f"move {folder} out of the way")


def _shared_inputs(cell: Cell, other: Cell) -> set[tuple[str, str]]:
    """Step and fingerprint of outputs that both runs have and a step which the other one hasn't reads."""
    theirs = other.plan.fingerprints

    def shared(name: str) -> bool:
        return theirs.get(name) == cell.plan[name].fingerprint

    return {
        (name, cell.plan[name].fingerprint)
        for step in cell.plan.steps
        if not shared(step.id) and role_of(step) not in ("evaluation", "report")
        for name in step.depends_on
        if shared(name)
    }


def _declared(experiment: Experiment) -> dict[str, Any]:
    return {
        "time": time.time(),
        "version": __version__,
        "profile": experiment.design.profile,
        "settings": experiment.design.settings,
        "arms": {arm: dict(own) for arm, own in experiment.arms.items()},
        **experiment.rules,
        "family": len(list(experiment.pairs())),
    }
