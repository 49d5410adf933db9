"""The second paper's further steps: started as a part of the whole recipe, and really run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.pipeline import whole_recipe
from flows.running import Running
from tasks.recipe import StepTask
from tests.flows.conftest import Api, vibethinker
from vibethinker import validation
from vibethinker.config import load
from vibethinker.plan import build

SETTINGS = (
    "domains=[algebra]",
    "signal.stages=[{name: math, context: 96, steps: 1}]",
    # A base that nearly never is right leaves nothing to distil.
    "base_model.embedded={hidden_size: 96, layers: 4, heads: 4, kv_heads: 2, intermediate_size: 256, steps: 300}",
    "spectrum.hard={samples: 4, max_tokens: 48}",
    "distillation={samples: 4, max_tokens: 48}",
)


@pytest.mark.parametrize("mode", ["per_domain", "trajectory"])
@pytest.mark.parametrize("settings", [(), ("spectrum.hard.samples=4", "distillation.samples=4")])
def test_the_recipe_starts_every_step_of_the_plan_once(settings, mode, tmp_path, monkeypatch) -> None:
    plan = build(load("micro", overrides=[*settings, f"spectrum.mode={mode}"], environ={}), tmp_path)
    started: list[str] = []

    def submit(run_id: str, step_id: str, wait_for: list[str]) -> str:
        assert wait_for == plan[step_id].depends_on
        started.append(step_id)
        return step_id

    monkeypatch.setattr(StepTask, "of", lambda *_: SimpleNamespace(submit=submit))
    whole_recipe(Running(SimpleNamespace(plan=plan, config=plan.config, run=SimpleNamespace(id="run"))))
    assert sorted(started) == sorted(step.id for step in plan.steps)


@pytest.mark.service
@pytest.mark.long
def test_two_stages_of_supervision_and_self_distillation(api: Api, tmp_path: Path) -> None:
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    command = ["run", "--profile", "micro", "--workspace", str(tmp_path), *options]
    done = vibethinker(*command, environ=api.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert {s["state"] for s in summary["steps"]} == {"done"}
    steps = {s["id"]: s for s in summary["steps"]}
    assert {"solutions-algebra", "hard-algebra", "solutions-signal-1", "selection", "distilled"} <= set(steps)
    models = {m["id"]: m for m in summary["models"]}
    assert list(models)[-1] == "distilled"
    assert validation.check(Path(models["distilled"]["path"]), "generates") is None
    assert models["specialist-algebra"]["scores"]
    again = vibethinker(*command, environ=api.environ)
    assert again.returncode == 0
    assert len(list((tmp_path / "artifacts" / "distilled").iterdir())) == 1
