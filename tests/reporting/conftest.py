"""A synthetic run, its report, its summary and its configuration."""

from __future__ import annotations

from typing import Any

import pytest

from tests.reporting.synthetic import HOSTILE, SyntheticRun


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    return SyntheticRun(tmp_path_factory.mktemp("run") / "inputs").build()


@pytest.fixture(scope="session")
def report(synthetic: SyntheticRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return synthetic.report(tmp_path_factory.mktemp("report"))


@pytest.fixture
def summary(report: dict[str, Any]) -> dict[str, Any]:
    """summary.json of the synthetic run, as the flow writes it."""
    metrics = {"scores": {m["id"]: m["means"] for m in report["models"]}, "warnings": len(report["warnings"])}
    ids = ["data", "base", *(m["id"] for m in report["models"][1:]), "report"]
    return {
        "schema": 1,
        "run_id": "tiny-20260101-120000-abcd",
        "status": "completed",
        "steps": [
            {"id": id, "fingerprint": f"{i:064x}", "depends_on": ids[max(0, i - 1) : i], "state": "done",
             "seconds": 3.5 * i, "metrics": metrics if id == "report" else {},
             "estimate": {"seconds": 3.0 * i, "usd": 0.01 * i, "source": "measured"},
             "spent": {"seconds": 4.0 * i, "usd": 0.01 * i}}
            for i, id in enumerate(ids)
        ],
        "estimate": {"seconds": 90.0, "elapsed_seconds": 110.0, "work_seconds": 110.0, "usd": 0.3, "slots": 2,
                     "measured": 8, "steps": 9},
        "spent": {"seconds": 99.0, "elapsed": 120.0, "usd": 0.36},
        "made_by": {"versions": {"torch": ["2.13.0"]}, "machines": ["a CPU"], "revisions": ["ab" * 20]},
        "models": [{"id": m["id"], "path": "p", "scores": m["scores"]} for m in report["models"]],
        "comparisons": report["comparisons"],
        "warnings": report["warnings"],
    }  # fmt: skip


@pytest.fixture
def config() -> dict[str, Any]:
    stages = [{"name": "math", "context": 128}, {"name": "code", "context": 144}]
    return {"profile": "tiny", "seed": 1, "signal": {"stages": stages}, "note": HOSTILE}
