"""What the whole recipe makes of a 0.5 B model on GSM8K and MATH, on one GPU: greedy accuracy before and after.

    python benchmarks/gpu_gsm8k_recipe.py --model FOLDER --data FOLDER [--workspace DIR] [--stages N] [--set a.b=v]

It starts `vibethinker run` with docs/examples/gsm8k-math.yaml and tells what the run's summary and manifests say; run
again in the same workspace, it resumes. `--stages N` ends after the first N signal stages, with evaluations of what
there is, for machines that are lent by the quarter of an hour; without it the run goes to its end. DATA has
gsm8k_train.jsonl, gsm8k_test.jsonl, math_train.jsonl and math500_test.jsonl.

`ours` is the final model's greedy accuracy on GSM8K's test set, `peer` the base model's, `intervals` their 95 %
intervals over problems and that of the paired difference. `training_seconds` is what specialists and signal stages took
from their first to their last step, rollouts, grading and the compilation in the first step included, added up over
steps that ran side by side; the aim is 15 minutes. Starts of Python and vLLM, the teacher's traces, probing, fusion
and evaluation are apart: `seconds` has each step whole, in its process once Python has started.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from outcome import tell

from vibethinker import config, runs
from vibethinker.evaluation.comparison import compare

ROOT = Path(__file__).parents[1]
RECIPE = Path("docs/examples/gsm8k-math.yaml")
RESULT = Path(__file__).parent / "results" / "gsm8k_recipe.json"
SETS, METRIC = ("gsm8k_test", "math500"), "avg@1"
PHASES = ("seconds_training", "seconds_generation", "seconds_grading")
TRAINED = ("specialist-", "signal-")
TOLD = ("p", "reward", "length", "truncated", "zero_variance", "entropy", "grad_norm", "importance")  # of an update


def main() -> None:
    """Run the recipe, or what is left of it, and print what it achieved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder; it is also the teacher")
    parser.add_argument("--data", type=Path, required=True, help="folder of the four files")
    parser.add_argument("--workspace", type=Path, default=Path("workspace-gsm8k"))
    parser.add_argument("--stages", type=int, help="end after so many signal stages; the result isn't kept")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="more settings")
    parser.add_argument("--output", type=Path, help=f"[{RESULT.relative_to(ROOT)}, once all stages have run]")
    arguments = parser.parse_args()
    models = (f"base_model.source={arguments.model}", f"data.teacher.model={arguments.model}")
    settings = [*models, *arguments.settings]
    if arguments.stages is not None:
        stages = config.load(None, ROOT / RECIPE, settings).signal.stages[: arguments.stages]
        written = [stage.model_dump(mode="json", exclude_defaults=True) for stage in stages]
        settings.append(f"signal.stages={json.dumps(written)}")
    command = ["run", "--config", str(RECIPE), *(word for one in settings for word in ("--set", one))]
    workspace = arguments.workspace.absolute()
    full = [sys.executable, "-m", "vibethinker", *command, "--workspace", str(workspace)]
    environ = os.environ | {"DATA_DIR": str(arguments.data.absolute())}
    if status := subprocess.run(full, cwd=ROOT, env=environ, stdout=sys.stderr).returncode:
        sys.exit(f"{shlex.join(full)} ended with status {status}; the same command goes on from there.")
    result = told(workspace) | {"command": shlex.join(["vibethinker", *command])}
    tell(result, arguments.output or (RESULT if arguments.stages is None else None))


def told(workspace: Path) -> dict[str, Any]:
    """The result of the workspace's latest run."""
    summary = runs.read_summary(runs.latest(workspace))
    steps = {step["id"]: Published(workspace, step) for step in summary["steps"]}
    models = {model["id"]: model["scores"] for model in summary["models"]}
    final = max((id for id in models if id.startswith("signal-")), default="fusion")
    ours, peer = (models[id]["gsm8k_test"][METRIC] for id in (final, "base"))
    trained = {id: step for id, step in steps.items() if id.startswith(TRAINED)}
    training = {id: round(sum(step.metrics.get(phase, 0.0) for phase in PHASES), 1) for id, step in trained.items()}
    return {
        "work": f"greedy accuracy on GSM8K's test set: {final} beside the base model",
        "ours": round(ours["value"], 4),
        "peer": round(peer["value"], 4),
        "ratio": round(ours["value"] / peer["value"], 3) if peer["value"] else None,
        "unit": "accuracy",
        "aim": 0.45,
        "intervals": {
            "ours": interval(ours),
            "peer": interval(peer),
            "difference": {name: gain(steps["evaluation-base"], steps[f"evaluation-{final}"], name) for name in SETS},
        },
        "training_seconds": round(sum(training.values()), 1),
        "training_seconds_aim": 900,
        "details": {
            "models": {id: {name: entry(scores[name]) for name in SETS} for id, scores in models.items()},
            "seconds": {id: step.manifest["seconds"] for id, step in steps.items()},
            "training": training,
            "phases": {
                id: {name: round(step.metrics[name], 1) for name in PHASES if name in step.metrics}
                for id, step in trained.items()
            },
            "probes": {
                id: {name: round(step.metrics[name], 4) for name in ("pass@1", "pass@8") if name in step.metrics}
                for id, step in steps.items()
                if id.startswith("probe-")
            },
            "traces": {id: step.metrics["traces"] for id, step in trained.items() if "traces" in step.metrics},
            "updates": {id: ends(step.rows("metrics.jsonl")) for id, step in trained.items() if "signal" in id},
        },
        "warnings": summary["warnings"],
        "revision": steps["base"].manifest["revision"],
        "versions": steps[final].manifest["versions"],
    }


class Published:
    """A step's output in the workspace."""

    def __init__(self, workspace: Path, step: dict[str, Any]) -> None:
        self.folder = workspace / "artifacts" / step["id"] / step["fingerprint"]
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.metrics: dict[str, Any] = step["metrics"]

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A JSONL file of it."""
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


def entry(scores: dict[str, Any]) -> dict[str, Any]:
    """One model on one set."""
    accuracy = scores[METRIC]
    rest = {"truncated": scores["truncated"]["value"], "mean_tokens": scores["mean_tokens"]["value"]}
    found = {"accuracy": accuracy["value"], "low": accuracy["low"], "high": accuracy["high"]} | rest
    return {name: round(value, 4) for name, value in found.items()} | {"problems": accuracy["problems"]}


def interval(score: dict[str, Any]) -> list[float]:
    """The ends of a score's interval."""
    return [round(score["low"], 4), round(score["high"], 4)]


def gain(base: Published, final: Published, name: str) -> dict[str, float]:
    """The final model's accuracy minus the base's on one set, paired by problem, with its interval."""
    rows = ([row for row in one.rows("outcomes.jsonl") if row["set"] == name] for one in (base, final))
    return {key: round(value, 4) for key, value in compare(*rows)._asdict().items()}


def ends(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How a stage's updates began and ended: means over the first and the last tenth of them."""
    tenth = max(1, len(rows) // 10)
    parts = {"first": rows[:tenth], "last": rows[-tenth:]}
    means: dict[str, Any] = {"updates": len(rows)}
    for part, some in parts.items():
        values = {name: [row[name] for row in some if name in row] for name in TOLD}
        means[part] = {name: round(sum(found) / len(found), 4) for name, found in values.items() if found}
    return means


if __name__ == "__main__":
    main()
