"""The folder of one run: its configuration, plan, summary, logs, and how to find the latest.

`<workspace>/runs/<run id>/` holds config.yaml (resolved), plan.json, summary.json and report.html (contracts),
logs/<step>.log, and state.json with the command that resumes and the run's number, by which runs are ordered: a clock
may be set back. The summary is written anew at each change, so that `vibethinker status` can read it while the run goes
on; live.json says meanwhile what its steps are at (vibethinker.live). A lock, `alive`, is held as long as the run's
process lives; it tells `vibethinker gc` what not to touch.

A run that was killed, interrupted, suspended or failed goes on in its own folder, and so in its own MLflow run, when it
is started again: the newest run of exactly the same steps, unless its process still lives (`unfinished`).
"""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import yaml

from vibethinker import environment, locks
from vibethinker.artifacts import Artifact, Store, write_json, write_text
from vibethinker.config import environment_settings
from vibethinker.energy import Energy
from vibethinker.errors import ConfigurationError, VibeThinkerError
from vibethinker.estimates import estimate, gpu_of
from vibethinker.live import Live
from vibethinker.plan import Plan, StepState
from vibethinker.redaction import redact
from vibethinker.schedule import whole
from vibethinker.spending import Spending

SCHEMA = 1
ALIVE, STARTING = "alive", ".starting"  # locks: of a run's folder, and of a workspace's locks
FINISHED = ("done", "cached")


class Run:
    """One run's folder and its summary.

    A step's `state` is waiting, running, done, cached, failed or skipped (it needed one that failed); the run's
    `status` is running, completed, failed, interrupted, suspended (it goes on by an answer in Prefect) or paused (it
    goes on when it is started again with a larger budget; `reason` says so). `goes_on` says that an earlier process had
    begun it. `spending` is what it costs, `estimates` what its steps should (step id → as `vibethinker.estimates`).
    """

    def __init__(self, plan: Plan, run_id: str | None = None) -> None:
        self.plan = plan
        self.id = run_id or f"{plan.config.profile}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        self.folder = plan.workspace / "runs" / self.id
        self.store = Store(plan.workspace)
        self._lock = threading.Lock()
        self._steps: dict[str, dict[str, Any]] = {
            s.id: {
                "id": s.id,
                "fingerprint": s.fingerprint,
                "depends_on": s.depends_on,
                "state": "waiting",
                "seconds": None,
                "metrics": {},
            }
            for s in plan.steps
        }
        self._warnings: list[str] = []
        self._alive: TextIOWrapper | None = None
        self.live = Live(self.folder)
        self._refreshed: list[str] = []
        self._made: dict[str, Mapping[str, Any]] = {}
        self._estimate: dict[str, Any] | None = None
        self.goes_on = False
        self.status = "running"
        self.reason = ""
        self.estimates: dict[str, dict[str, Any]] = {}
        self.spending: Spending | None = None

    @property
    def resume_command(self) -> str:
        """The command that goes on where this run stops, from the folder in which it was started: its resolved
        configuration, whatever the profile, the file, the environment or a deployment contributed to it. Settings
        that the environment names are repeated, since it would win over the file. A refreshed step needs no second
        refresh."""
        words = [program("vibethinker"), "run", "--config", str(self.folder / "config.yaml")]
        for path, value in environment_settings(self.plan.config).items():
            words += ["--set", f"{path}={json.dumps(value)}"]
        for step in self.plan.steps:
            if step.kind == "import":
                words += ["--from", f"{step.id}={step.outside['source']}"]
        return shlex.join([*words, "--workspace", str(self.plan.workspace)])

    @classmethod
    def begin(cls, plan: Plan, *, fresh: bool = False, refreshed: Collection[str] = ()) -> Run:
        """The unfinished run of this plan, or a new one (always, if `fresh`); alive from now on. Under `starting`.

        Args:
            refreshed: steps that this run, or the unfinished one, began with making again.
        """
        folder = None if fresh else unfinished(plan.workspace, plan.fingerprints, refreshed)
        run = cls(plan, folder.name if folder else None)
        run._alive = locks.attempt(run.folder / ALIVE)
        if folder and run._alive is None:  # another process was faster
            return cls.begin(plan, fresh=True, refreshed=refreshed)
        run._refreshed = sorted(refreshed) or (refreshed_by(folder) if folder else [])
        while run._alive is None:  # somebody looks whether it is held
            time.sleep(0.01)
            run._alive = locks.attempt(run.folder / ALIVE)
        if folder:
            run.goes_on = True
            run._go_on(read_summary(folder))
        return run

    def _go_on(self, before: Mapping[str, Any]) -> None:
        """Keep what was told, and what was estimated before anything had run."""
        self._warnings = list(before["warnings"])
        self._estimate = before.get("estimate")
        for step in before["steps"]:
            if "estimate" in step:
                self._steps[step["id"]]["estimate"] = step["estimate"]

    def create(self, states: Mapping[str, StepState], warnings: Sequence[str] = ()) -> None:
        """Write config.yaml, plan.json, state.json and the first summary. What it means to reuse must have been looked
        up under the same `starting` in which it began."""
        number = 1 + max((_order(folder)[0] for folder in folders(self.plan.workspace)), default=0)
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        values = self.plan.config.model_dump(mode="json", by_alias=True)
        write_text(self.folder / "config.yaml", yaml.safe_dump(values, sort_keys=False))
        document = plan_document(self.plan, states, self.id)
        write_json(self.folder / "plan.json", document)
        self.estimates = {step["id"]: step["estimate"] for step in document["steps"]}
        self._estimate = self._estimate or document["estimate"]
        for id, entry in self._steps.items():
            told = {name: self.estimates[id][name] for name in ("seconds", "usd", "source")}
            entry.setdefault("estimate", told)
        on_gpu = gpu_of(self.plan.config)[1] is not None
        self.spending = Spending(self.folder, self.plan.config.execution.price, Energy(on_gpu))
        for text in warnings:
            self.warn(text)
        self.save()
        # The last one: by it a folder counts as a run.
        state = {"resume": self.resume_command, "started": time.time(), "number": number, "refreshed": self._refreshed}
        write_json(self.folder / "state.json", state)

    def log(self, step_id: str) -> Path:
        """Where the step's process writes whatever its libraries print."""
        return self.folder / "logs" / f"{step_id}.log"

    def update(
        self, step_id: str, state: str, artifact: Artifact | None = None, error: VibeThinkerError | None = None
    ) -> None:
        """Note a step's new state; `artifact` is its output, `error` what ended it: a sentence and its class."""
        if state == "running":
            self.live.began(step_id)
        else:
            self.live.ended(step_id)
        with self._lock:  # other steps' threads write all of it out
            entry = self._steps[step_id]
            entry["state"] = state
            entry.pop("error", None)
            entry.pop("kind", None)
            if artifact is not None:
                entry |= {"seconds": artifact.manifest["seconds"], "metrics": artifact.metrics}
                self._made[step_id] = artifact.manifest
            if error:
                entry |= {"error": str(error), "kind": error.kind}
        self.save()

    def warn(self, text: str) -> None:
        """Keep a warning for the summary and the report, without secrets."""
        text = redact(text)
        with self._lock:
            if text not in self._warnings:
                self._warnings.append(text)

    def end(self, status: str) -> dict[str, Any]:
        """How the run ended; steps that were never reached are `skipped`. Returns the summary, which isn't written yet:
        until it is (`save`), the run goes on when it is started again."""
        self.status = status
        with self._lock:
            for entry in self._steps.values():
                if entry["state"] in ("waiting", "running"):
                    entry["state"] = "skipped"
            return self._summary()

    def finish(self, status: str) -> dict[str, Any]:
        """Note how the run ended; returns the summary."""
        self.end(status)
        return self.save()

    def close(self) -> None:
        """Nothing is done for this run any more."""
        if self.spending is not None:
            self.spending.tick(save=True)
        self.live.close()
        if self._alive is not None:
            self._alive.close()

    def save(self) -> dict[str, Any]:
        """Write summary.json and return it."""
        with self._lock:
            summary = self._summary()
            write_json(self.folder / "summary.json", summary)
        return summary

    def report(self) -> dict[str, Any]:
        """The published report.json, or nothing before there is one."""
        step = self._steps.get("report")
        if step is None or step["state"] not in FINISHED:
            return {}
        artifact = self.store.read("report", step["fingerprint"])
        return json.loads((artifact.folder / "report.json").read_text()) if artifact else {}

    def _summary(self) -> dict[str, Any]:
        report, models = self.report(), []
        for step in self.plan.steps:
            entry = self._steps[step.id]
            if step.id.startswith("evaluation-") and entry["state"] in FINISHED:
                artifact = self.store.read(step.id, step.fingerprint)
                model = self.plan[step.inputs["model"]] if "model" in step.inputs else None
                if artifact and model:
                    scores = json.loads((artifact.folder / "scores.json").read_text())
                    path = self._model_path(step.inputs, model)
                    models.append({"id": step.id.removeprefix("evaluation-"), "path": path, "scores": scores})
        spent = self.spending.document() if self.spending else {"total": {}, "steps": {}}
        for id, entry in self._steps.items():
            if id in spent["steps"]:
                entry["spent"] = spent["steps"][id]
        warnings = self._warnings + [w for w in report.get("warnings", []) if w not in self._warnings]
        return {
            "schema": SCHEMA,
            "run_id": self.id,
            "status": self.status,
            "reason": self.reason,
            "steps": list(self._steps.values()),
            "estimate": self._estimate,
            "spent": spent["total"],
            "made_by": environment.made_by(self._made.values()),
            "models": models,
            "comparisons": report.get("comparisons", []),
            "warnings": warnings,
        }

    def _model_path(self, inputs: Mapping[str, str], model: Any) -> str:
        folder = self.store.folder(model.id, model.fingerprint)
        if "probe" in inputs:
            probe = self.plan[inputs["probe"]]
            chosen = self.store.read(probe.id, probe.fingerprint)
            if chosen:
                selected = json.loads((chosen.folder / "probe.json").read_text())["selected"]
                folder = folder / "checkpoints" / selected
        return str(folder)


def program(name: str) -> str:
    """How a command of this environment can be called: by its name, or by its path where the name finds none."""
    script = Path(sys.executable).with_name(name)
    return str(script) if script.is_file() and shutil.which(name) is None else name


def plan_document(plan: Plan, states: Mapping[str, StepState], run_id: str | None = None) -> dict[str, Any]:
    """plan.json: every step with its fingerprint, what it needs, its state now and its estimate; and the estimate of
    all that aren't cached."""
    estimates = estimate(plan)
    wanted = [id for id, state in states.items() if state.state != "cached"]
    steps = [
        {
            "id": s.id,
            "kind": s.kind,
            "fingerprint": s.fingerprint,
            "depends_on": s.depends_on,
            "domain": s.domain,
            "stage": s.stage,
            "plugins": s.settings.get("plugins", {}),
            "state": states[s.id].state,
            "reason": states[s.id].reason,
            "resumes_after": states[s.id].update,
            "estimate": estimates[s.id],
        }
        for s in plan.steps
    ]
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "profile": plan.config.profile,
        "steps": steps,
        "estimate": whole(plan, estimates, wanted, gpu_of(plan.config)[1]),
    }


@contextmanager
def starting(workspace: Path) -> Iterator[None]:
    """Nothing is collected in this workspace during the `with` block, in which a run looks up what it reuses and is
    created; runs may start together."""
    with locks.shared(workspace / "locks" / STARTING):
        yield


def folders(workspace: Path) -> list[Path]:
    """The folders of all runs, the newest first."""
    return sorted((p.parent for p in (workspace / "runs").glob("*/state.json")), key=_order, reverse=True)


def started(folder: Path) -> float:
    """When a run was started, Unix time; 0 if its state.json can't be read."""
    return _order(folder)[1]


def _order(folder: Path) -> tuple[int, float, str]:
    """By which a run is newer than another. Runs that an older version made have no number."""
    try:
        state = json.loads((folder / "state.json").read_text())
        return int(state.get("number", 0)), float(state["started"]), folder.name
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0, 0.0, folder.name


def unfinished(workspace: Path, fingerprints: Mapping[str, str], refreshed: Collection[str] = ()) -> Path | None:
    """The newest run of exactly these steps (step id → fingerprint), if it did not complete and its process is gone;
    where steps are to be made again, only one that began with making these again."""
    try:
        folder = latest(workspace, fingerprints)
    except ConfigurationError:
        return None
    ended = (folder / ALIVE).exists() and not locks.is_held(folder / ALIVE)
    if not ended or read_summary(folder)["status"] == "completed":
        return None
    return folder if not refreshed or refreshed_by(folder) == sorted(refreshed) else None


def refreshed_by(folder: Path) -> list[str]:
    """The steps that a run began with making again."""
    try:
        return list(json.loads((folder / "state.json").read_text()).get("refreshed", []))
    except (OSError, ValueError):
        return []


def latest(workspace: Path, fingerprints: Mapping[str, str] | None = None) -> Path:
    """The folder of the newest run, of exactly these steps if given (step id → fingerprint).

    Raises:
        ConfigurationError: there is none.
    """
    for folder in folders(workspace):
        summary = read_summary(folder)
        if fingerprints is None or {s["id"]: s["fingerprint"] for s in summary["steps"]} == dict(fingerprints):
            return folder
    raise ConfigurationError(f"The workspace {workspace} has no such run yet: start one by `vibethinker run`.")


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run, refused with a sentence if another version wrote it."""
    return read_document(folder / "summary.json", SCHEMA, "name another run")


def read_document(file: Path, schema: int, mend: str) -> dict[str, Any]:
    """A JSON object that this program has written.

    Args:
        schema: which this version reads.
        mend: what helps where the file can't be read.

    Raises:
        ConfigurationError: it can't be read, or another version wrote it.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        raise ConfigurationError(f"{file} can't be read: {mend}.") from None
    if found.get("schema") != schema:
        raise ConfigurationError(
            f"{file} has schema {found.get('schema')!r}, this version reads {schema}: use the one that wrote it."
        )
    return found
