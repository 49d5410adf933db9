"""How near a run's estimate was to what it took.

    vibethinker run --profile tiny --workspace NEW                # measures
    vibethinker run --profile tiny --workspace NEW --set seed=2   # is estimated from that
    python benchmarks/estimates.py NEW

Takes the newest completed run of the workspace, or --run. `error` is what it took, divided by the estimate, less 1: of
the time in which steps ran, and of each step that the run made. Prints one JSON object; the exit code is 1 where the
whole is off by more than --most.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from outcome import tell

from vibethinker import runs


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--run", help="a run's id [the newest that is completed]")
    parser.add_argument("--most", type=float, default=0.25, help="error of the whole that is good enough")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = compared(runs.read_summary(_folder(arguments.workspace, arguments.run)))
    tell(result, arguments.output)
    sys.exit(abs(result["error"]) > arguments.most)


def compared(summary: dict[str, Any]) -> dict[str, Any]:
    """The estimates of a run beside its times, in seconds."""
    steps = {
        step["id"]: {
            "source": step["estimate"]["source"],
            "estimated": step["estimate"]["seconds"],
            "took": step["seconds"],
            "error": _error(step["seconds"], step["estimate"]["seconds"]),
        }
        for step in summary["steps"]
        if step["state"] == "done"
    }
    errors = [abs(step["error"]) for step in steps.values() if step["error"] is not None and step["took"] > 1]
    estimate, spent = summary["estimate"], summary["spent"]
    return {
        "run": summary["run_id"],
        "made_by": summary["made_by"],
        "measured": f"{estimate['measured']} of {estimate['steps']} steps",
        "estimated": estimate["seconds"],
        "took": round(spent["seconds"], 1),
        "error": _error(spent["seconds"], estimate["seconds"]),
        "estimated_elapsed": estimate["elapsed_seconds"],
        "elapsed": round(spent["elapsed"], 1),
        "median_error_of_steps_over_1_s": round(statistics.median(errors), 3) if errors else None,
        "steps": steps,
    }


def _error(took: float, estimated: float | None) -> float | None:
    return round(took / estimated - 1, 3) if estimated else None


def _folder(workspace: Path, run_id: str | None) -> Path:
    if run_id:
        return workspace / "runs" / run_id
    return next(f for f in runs.folders(workspace) if runs.read_summary(f)["status"] == "completed")


if __name__ == "__main__":
    main()
