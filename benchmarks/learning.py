"""What the recipe learned, from the runs of several seeds, with 95 % paired bootstrap intervals over all problems.

    for s in 1 2 3; do vibethinker run --set seed=$s --workspace work; done
    python benchmarks/learning.py work/runs/* [--output FILE]

Three claims: each specialist's Pass@8 is above the base's on its domain; the fused model's mean Pass@8 is not below
the base's; the signal stages raise avg@8 over the maths domains by at least 5 points over the fused model. Problems of
different seeds are different problems, so their paired differences are pooled. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from outcome import tell

from vibethinker.environment import versions
from vibethinker.evaluation.comparison import compare
from vibethinker.runs import read_summary
from vibethinker.settings import CODE_DOMAIN

K = 8
SIGNAL_POINTS = 0.05


def main() -> None:
    """Read the runs and print the claims with their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, one a seed")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    runs = [Outcomes(folder) for folder in arguments.runs]
    domains = runs[0].domains
    math = [d for d in domains if d != CODE_DOMAIN]
    claims = [
        claim(runs, f"specialist-{d} Pass@{K} over base on {d}", "base", f"specialist-{d}", [d], K, above=0.0)
        for d in domains
    ]
    claims.append(claim(runs, f"fusion mean Pass@{K} over base", "base", "fusion", domains, K, at_least=0.0))
    final = runs[0].final
    title = f"{final} avg@{K} over fusion, maths"
    claims.append(claim(runs, title, "fusion", final, math, None, above=0.0, at_least=SIGNAL_POINTS))
    result = {
        "claims": claims,
        "all_hold": all(c["holds"] for c in claims),
        "scores": {model: pooled(runs, model) for model in runs[0].models},
        "seeds": [r.seed for r in runs],
        "seconds": [r.seconds for r in runs],
        "versions": versions(),
        "command": f"python benchmarks/learning.py ({len(runs)} runs of the profile {runs[0].profile})",
    }
    tell(result, arguments.output)
    sys.exit(not result["all_hold"])


class Outcomes:
    """One run's evaluations: model → rows of outcomes.jsonl, whose sets carry the seed."""

    def __init__(self, folder: Path) -> None:
        workspace, summary = folder.parents[1], read_summary(folder)
        plan = json.loads((folder / "plan.json").read_text())
        self.profile = plan["profile"]
        self.domains = [s["domain"] for s in plan["steps"] if s["id"].startswith("probe-")]
        self.models: dict[str, list[dict[str, Any]]] = {}
        finished = []
        for step in summary["steps"]:
            artifact = workspace / "artifacts" / step["id"] / step["fingerprint"]
            manifest = json.loads((artifact / "manifest.json").read_text())
            finished.append(manifest["finished"])
            if step["id"] == "data":
                self.seed = manifest["settings"]["seed"]
            if step["id"].startswith("evaluation-"):
                with (artifact / "outcomes.jsonl").open() as file:
                    self.models[step["id"].removeprefix("evaluation-")] = [json.loads(line) for line in file]
        self.final = max(m for m in self.models if m.startswith("signal-"))
        self.seconds = round(max(finished) - json.loads((folder / "state.json").read_text())["started"])

    def rows(self, model: str, domains: list[str]) -> list[dict[str, Any]]:
        """The model's rows of these domains, made distinct from those of other seeds."""
        return [{**row, "set": f"{self.seed}/{row['set']}"} for row in self.models[model] if row["set"] in domains]


def claim(
    runs: list[Outcomes], title: str, base: str, model: str, domains: list[str], k: int | None,
    above: float | None = None, at_least: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The pooled difference and whether it holds: `above` is for the interval's low end, `at_least` for the value."""
    first = [row for run in runs for row in run.rows(base, domains)]
    second = [row for run in runs for row in run.rows(model, domains)]
    found = compare(first, second, k)
    holds = (above is None or found.low > above) and (at_least is None or found.difference >= at_least)
    figures = {name: round(value, 4) for name, value in found._asdict().items()}
    return {"claim": title, **figures, "low_above": above, "at_least": at_least, "holds": bool(holds)}


def pooled(runs: list[Outcomes], model: str) -> dict[str, dict[str, float]]:
    """Domain → the model's mean avg and Pass@K over the seeds' problems."""
    from vibethinker.evaluation.estimators import pass_at_k

    result = {}
    for domain in sorted({row["set"] for row in runs[0].models[model]}):
        rows = [row for run in runs for row in run.rows(model, [domain])]
        means = {
            f"avg@{K}": sum(r["correct"] / r["samples"] for r in rows) / len(rows),
            f"pass@{K}": sum(pass_at_k(r["samples"], r["correct"], K) for r in rows) / len(rows),
        }
        result[domain] = {name: round(value, 4) for name, value in means.items()}
    return result


if __name__ == "__main__":
    main()
