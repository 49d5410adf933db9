"""The short campaign of tests/faults: two ways to die, and random damage to what a run published."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.faults.harness import Case, Reference, play
from tests.flows.conftest import Api, Finished
from vibethinker.artifacts import Store

pytestmark = pytest.mark.service


@pytest.mark.parametrize(
    "case",
    [
        Case("signal-1", "update.renamed:1", "run"),
        pytest.param(Case("evaluation-signal-2", "publish.renamed:1", "process"), marks=pytest.mark.long),
        # All is published, and nobody has told MLflow and Prefect.
        pytest.param(Case("report", "step.ended:1", "run"), marks=pytest.mark.long),
    ],
    ids=lambda case: case.name,
)
def test_a_killed_run_ends_as_if_nothing_had_happened(case: Case, micro: Finished, api: Api, tmp_path: Path) -> None:
    reference = Reference(tmp_path, "micro", micro.workspace, api.environ)
    result = play(reference, case, tmp_path / "case")
    assert result.fired
    assert result.problems == []
    assert result.restarts == (case.action == "run")
    # What was killed right after the rename is found published; a training begins again, from the saved update.
    assert result.rerun == (["signal-1"] if case.step == "signal-1" else [])


def test_500_flipped_bits_in_a_finished_run_are_all_found(micro: Finished, tmp_path: Path) -> None:
    shutil.copytree(micro.workspace / "artifacts", tmp_path / "artifacts")
    store, drawn = Store(tmp_path), random.Random(0)
    kinds: dict[str, list[Path]] = {}
    for path in sorted((tmp_path / "artifacts").rglob("*")):
        if path.is_file() and path.stat().st_size:
            kinds.setdefault(path.name if path.suffix == ".json" else path.suffix, []).append(path)
    names = sorted(kinds)
    for i in range(500):
        path = drawn.choice(kinds[names[i % len(names)]])
        step, fingerprint = path.relative_to(tmp_path / "artifacts").parts[:2]
        whole, place = path.read_bytes(), drawn.randrange(path.stat().st_size)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << drawn.randrange(8)]) + whole[place + 1 :])
        found, reason = store.find(step, fingerprint)
        assert found is None, f"byte {place} of {path}"
        assert reason
        path.write_bytes(whole)
    assert all(store.find(s["id"], s["fingerprint"])[0] for s in micro.plan["steps"])


@pytest.mark.long
def test_a_damaged_output_alone_is_made_again(micro: Finished, api: Api, tmp_path: Path) -> None:
    reference, workspace = Reference(tmp_path, "micro", micro.workspace, api.environ), tmp_path / "workspace"
    reference.copy(workspace)
    [weights] = (workspace / "artifacts" / "fusion").glob("*/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    status, output = reference.run(workspace)
    assert status == 0, output
    [run] = (workspace / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert {step["id"] for step in summary["steps"] if step["state"] == "done"} == {"fusion"}
    assert any("fusion" in text and "sha256 differs" in text for text in summary["warnings"])
    assert weights.read_bytes() == whole
    assert len(list((workspace / "attic").iterdir())) == 1
