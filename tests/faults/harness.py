"""Break the real product, start it again by the same command, and compare with a run that nothing happened to.

A case names the step it breaks. Its workspace is a copy of the reference's, in which that step and all that follow
from it aren't published yet, so only those run: a full run a case would take hours. With `alone` the steps that follow
are kept too, to be reused if the step comes out with the reference's bytes. An empty MLflow store and the reference's
Prefect database are copied too, since making them takes seconds; each run has a Prefect server of its own, unless
`environ` names one.

Every update of a training is saved (`execution.checkpoints.seconds=0`). Left out: power cuts, which only fsync's order
answers, and machines other than this one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from vibethinker import faults, runs, validation

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 400.0  # for a start of micro; of another profile three times what the reference took
REFERENCE_SECONDS = 3600.0
RESTARTS = 3


@dataclass(frozen=True)
class Case:
    """What is to go wrong, in which step.

    Attributes:
        at: `point:n`, or `random` for a moment while the step's process lives.
        action: `run` kills the whole run, `process` only the one that is there; ENOSPC or EIO fails a call.
        share: for random ones, of the time that the step took in the reference.
    """

    step: str
    at: str
    action: str
    share: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.at}{f' {self.share:.2f}' if self.at == 'random' else ''} {self.action} {self.step}"


@dataclass
class Result:
    """What came of it; `problems` is empty where all is as it should be. `late`: a random kill came when its step was
    published already, `share` is when it came."""

    case: str
    share: float = 0.0
    fired: bool = False
    late: bool = False
    restarts: int = 0
    rerun: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Reference:
    """A finished run.

    Args:
        folder: where an empty MLflow store is kept.
        workspace: the run's; the run is made if there is none.
        environ: added to the environment of each run.
        alone: a case undoes its own step only.
    """

    def __init__(
        self,
        folder: Path,
        profile: str,
        workspace: Path,
        environ: Mapping[str, str] | None = None,
        alone: bool = False,
    ) -> None:
        self.workspace, self.profile, self.alone = workspace, profile, alone
        self.environ = {**os.environ, "OMP_NUM_THREADS": "1", **(environ or {})}
        self.store = folder / "empty-mlflow.db"
        if not any(self.workspace.glob("runs/*/summary.json")):
            status, output = _ended(self.command(self.workspace), self.environ, REFERENCE_SECONDS)
            assert status == 0, output
        run = runs.folders(self.workspace)[-1]  # the first one; other tests may have run since
        self.plan: dict[str, dict[str, Any]] = {
            s["id"]: s for s in json.loads((run / "plan.json").read_text())["steps"]
        }
        self.seconds = {s["id"]: s["seconds"] for s in json.loads((run / "summary.json").read_text())["steps"]}
        self.limit = max(LIMIT_SECONDS, 3 * sum(self.seconds.values()))
        if not self.store.exists():
            code = f"from mlflow import MlflowClient; MlflowClient('sqlite:///{self.store}').search_experiments()"
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=self.environ, cwd=folder)

    def files(self, step: str) -> int:
        """How many files a step published."""
        output = self.workspace / "artifacts" / step / self.plan[step]["fingerprint"]
        return len(json.loads((output / "manifest.json").read_text())["files"])

    def command(self, workspace: Path) -> list[str]:
        """The same for every start."""
        words = ["run", "--profile", self.profile, "--set", "execution.checkpoints.seconds=0"]
        return [sys.executable, "-m", "vibethinker", *words, "--workspace", str(workspace)]

    def run(self, workspace: Path) -> tuple[int, str]:
        """Run to the end."""
        return _ended(self.command(workspace), self.environ, self.limit)

    def undone(self, step: str) -> set[str]:
        """What a case of a step has to do: the step, and all that need it unless it's broken `alone`."""
        found = {step}
        if self.alone:
            return found
        for id, entry in self.plan.items():  # in the order in which they can run
            if found.intersection(entry["depends_on"]):
                found.add(id)
        return found

    def copy(self, target: Path, step: str | None = None) -> None:
        """A workspace in which this step is the first to do, or nothing is left to do."""
        for id in self.plan.keys() - (self.undone(step) if step else set()):
            output = Path("artifacts") / id / self.plan[id]["fingerprint"]
            shutil.copytree(self.workspace / output, target / output)
        if (self.workspace / "prefect").is_dir():
            shutil.copytree(self.workspace / "prefect", target / "prefect")
        shutil.copyfile(self.store, target / "mlflow.db")


def play(reference: Reference, case: Case, folder: Path) -> Result:
    """Break a run as `case` says, restart it until it succeeds, and look at what it left.

    A step can be faster than in the reference: a random kill that came too late comes again, at half of the time.
    """
    result = _play(reference, case, folder)
    while result.late and not result.problems:
        result = _play(reference, replace(case, share=round(result.share / 2, 3)), folder)
        result.case = case.name
    return result


def _play(reference: Reference, case: Case, folder: Path) -> Result:
    workspace, notes = folder / "workspace", folder / "passings"
    shutil.rmtree(folder, ignore_errors=True)
    workspace.mkdir(parents=True)
    reference.copy(workspace, case.step)
    action = {"run": "freeze", "process": "kill"}.get(case.action, case.action)
    fault = "record" if case.at == "random" else f"{case.at}:{action}"
    environ = {**reference.environ, "VIBETHINKER_FAULT": fault, "VIBETHINKER_FAULT_FILE": str(notes)}
    result, began, status = Result(case.name, case.share), time.monotonic(), -1
    command = reference.command(workspace)
    for start in range(RESTARTS + 1):
        result.restarts = start
        with (folder / f"printed-{start}").open("w+") as printed:
            run = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=printed, stderr=printed)
            if start == 0 and case.at == "random":
                result.fired = _killed_at_random(reference, case, run, notes)
                result.late = any(line.startswith(f"publish.renamed {case.step} ") for line in _lines(notes))
            elif start == 0 and case.action == "run":
                _kill_when_frozen(run, notes, reference.limit)
            try:
                status = run.wait(reference.limit)
            except subprocess.TimeoutExpired:
                run.kill()
                result.problems.append(f"it hung for {reference.limit:.0f} s")
                break
        if status != 0 and (left := _survivors(notes)):
            result.problems.append(f"{left} processes survived")
        if "Traceback" in (folder / f"printed-{start}").read_text():
            result.problems.append("it printed a traceback")
        if status == 0:
            break
    if case.at != "random":
        name, _, number = case.at.partition(":")
        result.fired = sum(line.startswith(f"{name} ") for line in _lines(notes)) >= int(number)
    if not result.fired and not result.late:
        result.problems.append("nothing went wrong: the place was never reached")
    if status != 0:
        result.problems.append(f"it ended with {status} after {result.restarts} restarts")
    else:
        _look(reference, case, workspace, notes, result)
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _killed_at_random(reference: Reference, case: Case, run: subprocess.Popen[bytes], notes: Path) -> bool:
    """Kill while the step's process lives; False if it was over before the moment came."""
    process = None
    while process is None and run.poll() is None:
        time.sleep(0.01)
        process = _begun(notes, case.step)
    if process is None:
        return False
    time.sleep(case.share * reference.seconds[case.step])
    try:
        os.kill(run.pid if case.action == "run" else process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _kill_when_frozen(run: subprocess.Popen[bytes], notes: Path, seconds: float) -> None:
    """Kill the whole run once one of its processes has stopped at the point."""
    limit = time.monotonic() + seconds
    while run.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
        for pid in {int(line.split()[2]) for line in _lines(notes)[-40:]}:
            with suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                    run.kill()
                    return


def _begun(notes: Path, step: str) -> int | None:
    """The process that runs a step, once it holds the lock."""
    lines = (line.split() for line in _lines(notes))
    return next((int(pid) for name, about, pid in lines if (name, about) == ("child.locked", step)), None)


def _survivors(notes: Path, seconds: float = 10.0) -> int:
    """How many processes of a dead run still live after so long."""
    limit = time.monotonic() + seconds
    while (left := sum(1 for _ in _processes(notes))) and time.monotonic() < limit:
        time.sleep(0.2)
    return left


def _processes(notes: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("VIBETHINKER_FAULT_FILE") == str(
                notes
            ):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _look(reference: Reference, case: Case, workspace: Path, notes: Path, result: Result) -> None:
    """Compare with the reference, and count what was done."""
    for step, entry in reference.plan.items():
        place = Path("artifacts") / step / entry["fingerprint"]
        if reason := validation.check(workspace / place, "digest"):
            result.problems.append(f"{step}: {reason}")
            continue
        made, expected = (
            json.loads((w / place / "manifest.json").read_text()) for w in (workspace, reference.workspace)
        )
        if different := _differing(made["files"], expected["files"]):
            result.problems.append(f"{step} differs in {', '.join(different)}")
        if len(list((workspace / place).parent.iterdir())) != 1:
            result.problems.append(f"{step} has several outputs")
    events = Counter(tuple(line.split()[:2]) for line in _lines(notes))
    todo = reference.undone(case.step)
    for step in reference.plan:
        begun, published = events["child.locked", step], events["publish.renamed", step]
        if published > 1 or (step not in todo and begun):
            result.problems.append(f"{step} was done again after it was published")
        if begun > 1:
            result.rerun.append(step)
    result.leftovers = [n for n in ("staging", "checkpoints", "attic") if any((workspace / n).glob("*"))]
    if len(list(workspace.glob("runs/*/state.json"))) != 1:  # by which a folder counts as a run
        result.problems.append("it is several runs")
    if "attic" in result.leftovers:
        result.problems.append("a whole output went to the attic")
    _look_at_mlflow(reference, workspace, todo, result)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _look_at_mlflow(reference: Reference, workspace: Path, todo: set[str], result: Result) -> None:
    """However often it was started, it is one run and one child a step, all finished, with each update once."""
    with closing(sqlite3.connect(workspace / "mlflow.db")) as store:
        found = store.execute(
            "select k.value, s.value, r.status from runs r "
            "join tags k on k.run_uuid = r.run_uuid and k.key = 'vibethinker.kind' "
            "left join tags s on s.run_uuid = r.run_uuid and s.key = 'vibethinker.step'"
        ).fetchall()
        rows = store.execute(
            "select t.value, m.key, m.step, count(*) from metrics m join tags t on t.run_uuid = m.run_uuid "
            "where t.key = 'vibethinker.step' and m.key not like 'system/%' group by 1, 2, 3"
        ).fetchall()
    kinds = Counter((kind, step) for kind, step, _ in found)
    if kinds != Counter({("run", None): 1} | {("step", step): 1 for step in todo}):
        result.problems.append(f"MLflow has the runs {sorted(map(str, kinds.elements()))}")
    if open_ := [step or "the run" for _, step, status in found if status != "FINISHED"]:
        result.problems.append(f"MLflow has not heard the end of {', '.join(open_)}")
    if doubled := [row for row in rows if row[3] > 1]:
        result.problems.append(f"MLflow has {len(doubled)} metric steps twice, as {doubled[0][:3]}")
    told = {(step, at) for step, key, at, _ in rows if not key.startswith("final/")}
    for step in todo:
        file = reference.workspace / "artifacts" / step / reference.plan[step]["fingerprint"] / "metrics.jsonl"
        wanted = {json.loads(line)["step"] for line in file.read_text().splitlines()} if file.exists() else set()
        if missing := wanted - {at for one, at in told if one == step}:
            result.problems.append(f"MLflow lacks the updates {sorted(missing)} of {step}")


def cases(reference: Reference, random_kills: int, seed: int = 0, points: bool = True) -> list[Case]:
    """Every point (if `points`), and random moments within six phases; shuffled, so that a part of the campaign says
    something about all of it. Steps' boundaries are broken in steps of every kind, other points in kinds by turns; of
    the files that a step publishes the first, one in the middle and the last."""
    drawn = random.Random(seed)
    kinds = [
        "signal-1",
        "evaluation-signal-2",
        "fusion",
        "data",
        "probe-algebra",
        "report",
        "specialist-algebra",
        "base",
    ]
    kinds = [kind for kind in kinds if kind in reference.plan]
    trained = [kind for kind in ("signal-1", "specialist-algebra", "base") if kind in kinds]
    found: list[Case] = []
    for i, name in enumerate(faults.POINTS if points else ()):
        turns = trained if name.startswith("update.") else kinds
        actions = ["run"] if name.startswith(("step.", "json.")) else ["run", "process"]
        if name in ("publish.file", "publish.manifest", "publish.sealed", "publish.rename", "publish.synced",
                    "update.written", "update.file", "update.manifest", "update.rename", "json.written"):  # fmt: skip
            actions += ["ENOSPC", "EIO"]
        for j, action in enumerate(actions):
            numbers = [1, 4, 9] if name.startswith("json.") else [20] if name == "update.file" else [1]
            step = turns[(i + j) % len(turns)]
            if name.startswith("step."):
                found += [Case(kind, f"{name}:1", action) for kind in kinds]
                continue
            if name == "publish.file" and action in ("run", "process"):
                files = reference.files(step)
                numbers = sorted({1, (files + 1) // 2, files})
            if name.startswith("update.") and (name != "update.file" or step == "signal-1"):
                numbers = [1] if step == "signal-1" else [2]  # micro's stage saves once before its end
            found += [Case(step, f"{name}:{n}", action) for n in numbers]
    phases = ["data", "specialist-algebra", "probe-algebra", "fusion", "signal-1", "evaluation-signal-2"]
    for i in range(random_kills):
        step = phases[i % len(phases)]
        found.append(Case(step, "random", "process" if i // len(phases) % 3 == 2 else "run", round(drawn.random(), 2)))
    drawn.shuffle(found)
    found = list(dict.fromkeys(found))
    while sum(case.at == "random" for case in found) < random_kills:  # two were drawn alike
        found.append(Case(drawn.choice(phases), "random", "run", round(drawn.random(), 2)))
        found = list(dict.fromkeys(found))
    return found


def _ended(command: list[str], environ: Mapping[str, str], seconds: float) -> tuple[int, str]:
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    return done.returncode, done.stdout + done.stderr


def _lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []
