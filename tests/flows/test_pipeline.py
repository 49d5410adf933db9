"""The whole recipe, really run: what Prefect, the workspace and MLflow hold afterwards, and what a rerun does."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.conftest import ROOT, Api, Finished, vibethinker
from tests.slack import Slack
from vibethinker import validation
from vibethinker.config import load
from vibethinker.data.folding import fold
from vibethinker.data.schema import Problem, Trace, read_records
from vibethinker.tracking.journal import undelivered

pytestmark = pytest.mark.service


def test_every_step_is_done_and_every_model_has_scores(micro: Finished) -> None:
    summary = micro.summary
    assert summary["schema"] == 1
    assert summary["status"] == "completed"
    assert {s["state"] for s in summary["steps"]} == {"done"}
    names = ["base", "specialist-algebra", "specialist-statistics", "specialist-code", "fusion", "signal-1", "signal-2"]
    assert [m["id"] for m in summary["models"]] == names
    for model in summary["models"]:
        assert (Path(model["path"]) / "config.json").is_file()
        for scores in model["scores"].values():
            assert {"value", "low", "high", "problems", "samples"} <= set(scores["avg@2"])


def test_the_api_s_task_runs_are_the_plan_s_steps(api: Api, micro: Finished) -> None:
    flow_run = api.flow_run(micro.summary["run_id"])
    assert flow_run["state_type"] == "COMPLETED"
    runs = api.task_runs(flow_run["id"])
    steps = {s["id"]: s for s in micro.plan["steps"]}
    assert set(runs) == set(steps)
    names = {run["id"]: name for name, run in runs.items()}
    for name, run in runs.items():
        assert run["state_name"] == "Completed"
        upstream = [names[i["id"]] for inputs in run["task_inputs"].values() for i in inputs if "id" in i]
        assert sorted(upstream) == sorted(steps[name]["depends_on"])


def test_specialists_overlap_in_time(api: Api, micro: Finished) -> None:
    runs = api.task_runs(api.flow_run(micro.summary["run_id"])["id"])
    spans = sorted(span(run) for name, run in runs.items() if name.startswith("specialist-"))
    assert len(spans) == 3
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans))


def span(run: dict[str, Any]) -> tuple[datetime, datetime]:
    start, end = run["start_time"], run["end_time"]
    return datetime.fromisoformat(start), datetime.fromisoformat(end)


def test_artifacts_show_progress_tables_and_a_summary(api: Api, micro: Finished) -> None:
    flow_run = api.flow_run(micro.summary["run_id"])["id"]
    of_run = {"id": {"any_": [flow_run]}}
    made = api.filter("artifacts", flow_runs=of_run, limit=200)
    found = {a["key"]: (a["type"], a["data"], a["description"]) for a in made}
    for step in micro.plan["steps"]:
        kind, percent, _ = found[step["id"]]
        assert (kind, float(percent)) == ("progress", 100), step["id"]
    assert re.match(r"4 of 4 loss \d", found["specialist-algebra"][2])
    for key, columns in {
        "probe-algebra-table": {"checkpoint", "pass@2", "cut off", "chosen"},
        "fusion-table": {"specialist", "checkpoint", "weight"},
        "evaluation-fusion-table": {"set", "problems", "avg@2", "pass@2", "tokens"},
    }.items():
        kind, rows, _ = found[key]
        assert kind == "table"
        assert columns <= set(json.loads(rows)[0])
    assert found["data-card"][0] == found["summary-micro"][0] == "markdown"
    assert f"Report: `{micro.folder / 'report.html'}`" in found["summary-micro"][1]


def test_models_generate_and_everything_published_is_whole(micro: Finished) -> None:
    for step in micro.plan["steps"]:
        folder = micro.workspace / "artifacts" / step["id"] / step["fingerprint"]
        level = "generates" if step["id"] in ("base", "fusion", "signal-2") else "digest"
        assert validation.check(folder, level) is None


def test_no_held_out_problem_is_in_a_training_set(micro: Finished) -> None:
    [data] = (micro.workspace / "artifacts" / "data").iterdir()
    held_out = {
        fold(p.problem)
        for split in ("evaluation", "probe", "validation")
        for file in (data / split).glob("*.parquet")
        for p in read_records(file, Problem)
    }
    trained = {fold(p.problem) for file in (data / "rl").glob("*.parquet") for p in read_records(file, Problem)}
    trained |= {fold(t.problem) for file in (data / "sft").glob("*.parquet") for t in read_records(file, Trace)}
    assert len(held_out) == 3 * (8 + 4 + 4)
    assert len(trained) > 300
    assert not held_out & trained


def test_mlflow_has_a_parent_run_a_child_a_step_and_the_final_model(micro: Finished, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{micro.workspace / 'mlflow.db'}")
    [experiment] = [e for e in client.search_experiments() if e.name == "vibethinker"]
    runs = client.search_runs([experiment.experiment_id], max_results=200)
    children = {r.data.tags["vibethinker.step"]: r for r in runs if "mlflow.parentRunId" in r.data.tags}
    [parent] = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert set(children) == {s["id"] for s in micro.plan["steps"]}
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert parent.data.params["profile"] == "micro"
    history = client.get_metric_history(children["signal-1"].info.run_id, "reward")
    assert [m.step for m in history] == [1, 2]
    assert "report.html" in [f.path for f in client.list_artifacts(parent.info.run_id)]
    assert "config.json" in " ".join(f.path for f in client.list_artifacts(parent.info.run_id, "model"))
    steps = {s["id"]: s["fingerprint"] for s in micro.plan["steps"]}
    assert {f"vibethinker.fingerprint.{i}": f for i, f in steps.items()}.items() <= parent.data.tags.items()
    for step in ("signal-1", "evaluation-signal-2"):
        table = json.loads(
            Path(client.download_artifacts(children[step].info.run_id, "generations.json", str(tmp_path))).read_text()
        )
        assert {row[table["columns"].index("sort")] for row in table["data"]} & {"good", "bad", "disputed"}
    assert children["signal-1"].data.params["objective.group_size"] == "4"
    assert {"p_histogram/00 of 4", "p_histogram/04 of 4", "engine_gap"} <= children["signal-1"].data.metrics.keys()
    assert "system/disk_usage_percentage" in parent.data.metrics


def test_mlflow_knows_what_each_step_has_read(micro: Finished) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{micro.workspace / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=200)
    read = {
        run.data.tags.get("vibethinker.step", ""): {
            one.dataset.name: ({tag.key: tag.value for tag in one.tags}, json.loads(one.dataset.profile))
            for one in run.inputs.dataset_inputs
        }
        for run in runs
    }
    assert set(read["specialist-code"]) == {"sft/code"}
    assert set(read["probe-code"]) == {"probe/code", "validation/code"}
    assert set(read["signal-1"]) == {"rl/algebra", "rl/statistics"}
    sets = {f"evaluation/{domain}" for domain in ("algebra", "statistics", "code")}
    assert set(read["evaluation-signal-2"]) == sets
    assert set(read[""]) == {"sft", "rl", "probe", "validation", *sets}
    [data] = (micro.workspace / "artifacts" / "data").iterdir()
    files = json.loads((data / "manifest.json").read_text())["files"]
    tags, profile = read["probe-code"]["probe/code"]
    assert tags == {"mlflow.data.context": "probing", "sha256": files["probe/code.parquet"]["sha256"]}
    assert profile["num_rows"] == 4


def test_the_final_model_is_candidate_and_first_champion(micro: Finished) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{micro.workspace / 'mlflow.db'}")
    aliases = client.get_registered_model("vibethinker-micro").aliases
    assert set(aliases) == {"candidate", "champion"}  # of which runs of other tests may have later ones
    first = client.get_model_version("vibethinker-micro", "1")
    assert first.tags["vibethinker.promotion"] == "promoted"
    assert first.description == "It is the first champion of this name, since there was none to beat."


def test_the_output_says_what_was_achieved_and_where_things_are(micro: Finished) -> None:
    for word in ("report.html", "mlflow.db", "vibethinker run", "fusion"):
        assert word in micro.output


def test_libraries_write_to_the_step_s_log_not_to_the_screen(micro: Finished) -> None:
    assert "Traceback" not in micro.output
    assert (micro.folder / "logs" / "signal-1.log").exists()


def test_the_same_run_again_executes_nothing_and_starts_no_server(micro: Finished) -> None:
    before = sorted(p.name for p in (micro.workspace / "runs").iterdir())
    state = micro.folder / "tracking.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "delivered": 0}))  # as if MLflow had been away
    assert undelivered(micro.folder)
    closed = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    again = vibethinker("run", "--profile", "micro", "--workspace", str(micro.workspace), environ=closed)
    assert again.returncode == 0, again.stderr
    assert sorted(p.name for p in (micro.workspace / "runs").iterdir()) == before
    assert not undelivered(micro.folder), "what MLflow lacked is sent all the same"


@pytest.mark.parametrize("command", ["status", "report", "logs"])
def test_commands_tell_of_the_latest_run(micro: Finished, command: str) -> None:
    done = vibethinker(command, "--workspace", str(micro.workspace))
    assert done.returncode == 0, done.stderr
    assert "signal-1" in done.stdout


@pytest.mark.long
def test_a_changed_last_stage_reuses_everything_before_it(api: Api, micro: Finished) -> None:
    change = "signal.stages.1.overrides={learning_rate: 0.00005}"
    arguments = ("--profile", "micro", "--workspace", str(micro.workspace), "--set", change)
    planned = json.loads(vibethinker("plan", "--json", *arguments).stdout)
    to_run = {s["id"] for s in planned["steps"] if s["state"] == "to_run"}
    assert to_run == {"signal-2", "evaluation-signal-2", "report"}
    done = vibethinker("run", *arguments, environ=api.environ)
    assert done.returncode == 0, done.stderr
    newest = max((micro.workspace / "runs").iterdir(), key=lambda p: (p / "state.json").stat().st_mtime)
    summary = json.loads((newest / "summary.json").read_text())
    assert {s["id"] for s in summary["steps"] if s["state"] == "done"} == to_run
    runs = api.task_runs(api.flow_run(summary["run_id"])["id"])
    assert {name for name, run in runs.items() if run["state_name"] == "Cached"} == set(runs) - to_run


@pytest.mark.long
def test_a_damaged_output_is_made_anew(api: Api, micro: Finished) -> None:
    [report] = [s for s in micro.plan["steps"] if s["id"] == "report"]
    folder = micro.workspace / "artifacts" / "report" / report["fingerprint"]
    (folder / "report.json").write_text("{}")
    done = vibethinker("run", "--profile", "micro", "--workspace", str(micro.workspace), environ=api.environ)
    assert done.returncode == 0, done.stderr
    assert validation.check(folder, "digest") is None
    assert any(p.name.startswith("report-") for p in (micro.workspace / "attic").iterdir())


@pytest.mark.long
def test_a_killed_run_leaves_nothing_alive_and_the_next_one_goes_on(api: Api, tmp_path: Path) -> None:
    arguments = ["run", "--profile", "micro", "--workspace", str(tmp_path)]
    run = subprocess.Popen([sys.executable, "-m", "vibethinker", *arguments], env=dict(api.environ), cwd=ROOT)
    base = tmp_path / "artifacts" / "base"
    limit = time.monotonic() + 300
    while not base.exists() and time.monotonic() < limit and run.poll() is None:
        time.sleep(0.05)
    family = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(family, timeout=3)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    made = (next(base.iterdir()) / "manifest.json").stat().st_mtime_ns
    done = vibethinker(*arguments, environ=api.environ)
    assert done.returncode == 0, done.stderr
    assert (next(base.iterdir()) / "manifest.json").stat().st_mtime_ns == made


@pytest.mark.long
def test_a_model_of_one_s_own_takes_the_place_of_a_step(api: Api, micro: Finished, tmp_path: Path) -> None:
    [own] = [m["path"] for m in micro.summary["models"] if m["id"] == "specialist-algebra"]
    done = vibethinker(
        "run", "--profile", "micro", "--workspace", str(tmp_path), "--from", f"fusion={own}", environ=api.environ
    )
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert [m["id"] for m in summary["models"]] == ["fusion", "signal-1", "signal-2"]
    assert not (tmp_path / "artifacts" / "base").exists()


@pytest.mark.long
def test_one_trajectory_can_serve_all_domains(api: Api, tmp_path: Path) -> None:
    done = vibethinker(
        "run", "--profile", "micro", "--workspace", str(tmp_path), "--set", "spectrum.mode=trajectory",
        environ=api.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "artifacts").glob("specialist-*"))) == 1
    assert len(list((tmp_path / "artifacts").glob("probe-*"))) == 3


def test_a_failing_step_ends_the_run_with_a_sentence_and_the_way_on_and_tells_slack(
    api: Api, tmp_path: Path, slack: Slack
) -> None:
    # A learning rate that no float survives: the loss is NaN within a few steps.
    done = vibethinker(
        "run", "--profile", "micro", "--workspace", str(tmp_path),
        "--set", "spectrum.sft.learning_rate=1.0e+30", "--set", "spectrum.sft.final_learning_rate=1.0e+29",
        environ={**api.environ, "SLACK_WEBHOOK_URL": slack.url},
    )  # fmt: skip
    assert done.returncode == 1
    assert "lower the learning rate" in done.stderr
    assert "Traceback" not in done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    assert f"vibethinker run --config {folder / 'config.yaml'} --workspace {tmp_path}" in done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    states = {s["id"]: s["state"] for s in summary["steps"]}
    assert summary["status"] == "failed"
    assert states["base"] == "done"
    assert "failed" in {states[i] for i in states if i.startswith("specialist-")}
    assert states["fusion"] == states["report"] == "skipped"
    [post] = slack.posts
    flow_run = api.flow_run(folder.name)
    assert f"{folder.name} diverged in specialist-" in post["blocks"][0]["text"]["text"]
    for part in ("*Evidence*", f"/runs/flow-run/{flow_run['id']}|Prefect>", str(folder / "report.html")):
        assert part in slack.texts()[0]
    assert f"vibethinker run --config {folder / 'config.yaml'} --workspace {tmp_path}\n```" in slack.texts()[0].replace(
        "\\n", "\n"
    )
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"hook-of-the-test" in p.read_bytes()]
    logs = api.filter("logs", logs={"flow_run_id": {"any_": [flow_run["id"]]}}, limit=200)
    assert "hook-of-the-test" not in json.dumps(logs)


def test_a_server_that_does_not_answer_is_named_with_the_way_on(tmp_path: Path) -> None:
    environ = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "home")}
    done = vibethinker("run", "--profile", "micro", "--workspace", str(tmp_path / "workspace"), environ=environ)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Prefect's server at http://127.0.0.1:9/api" in done.stderr
    assert "go on by" in done.stderr


@pytest.mark.long
def test_every_deployment_is_deployed_without_a_question(api: Api) -> None:
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    for arguments in (["work-pool", "create", "vibethinker", "--type", "process"], ["deploy", "--all"]):
        done = subprocess.run([*prefect, *arguments], env=dict(api.environ), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    deployed = {d["name"] for d in api.filter("deployments")}
    assert {"micro", "tiny", "qwen3-0.6b", "vibethinker-1.5b", "vibethinker-3b"} <= deployed
    assert {"data", "spectrum", "signal", "evaluation"} <= deployed
    for deployment in api.filter("deployments"):
        profile = deployment["parameters"].get("profile")
        assert profile is None or load(profile, environ={}).profile == profile
