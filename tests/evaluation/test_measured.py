"""Where earlier measurements are found, and how two of them differ in what they were measured on."""

from __future__ import annotations

import json
import shutil

import pytest

from vibethinker.artifacts import Store, write_json
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.evaluation.contamination import stage_files, trained_on
from vibethinker.evaluation.measured import SCHEMA, common, differences, load

SETTINGS = {"samples": 4, "k": [4], "temperature": 1.0, "top_p": 0.95, "max_tokens": 8}


def published(store, step, fingerprint, files, inputs=None, **settings):
    """An output with these files, as its step publishes it."""
    staging = store.staging(step, fingerprint)
    for name, text in files.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_text(text)
    digests = {role: artifact.digest for role, artifact in (inputs or {}).items()}
    record = {"kind": step.partition("-")[0], "metrics": {}, "seconds": 1.0, "settings": settings}
    return store.publish(staging, step, fingerprint, inputs=digests, record=record)


def evaluation(correct: int, seed: int = 1, digest: str = "d"):
    sets = {"s": {"digest": digest, "problems": 2, "settings": SETTINGS}}
    document = {"schema": SCHEMA, "seed": seed, "prompts": {}, "sets": sets, "tables": {}}
    rows = [{"set": "s", "id": str(i), "correct": correct, "samples": 4} for i in range(2)]
    return {
        "evaluation.json": json.dumps(document),
        "outcomes.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "scores.json": "{}",
    }


@pytest.fixture
def workspace(tmp_path):
    """A workspace with a run that has measured `base` and `fusion`, and failed at a specialist."""
    store, steps = Store(tmp_path), []
    for model, correct in (("base", 1), ("fusion", 3), ("specialist-code", 4)):
        step = f"evaluation-{model}"
        published(store, step, f"f-{model}", evaluation(correct))
        steps.append({"id": step, "fingerprint": f"f-{model}", "state": "done"})
    steps.append({"id": "evaluation-signal-1", "fingerprint": "f", "state": "failed"})
    run = tmp_path / "runs" / "tiny-1"
    summary = {"schema": 1, "run_id": "tiny-1", "status": "failed", "steps": steps, "models": [], "warnings": []}
    write_json(run / "summary.json", summary)
    write_json(run / "state.json", {"number": 1, "started": 1.0})
    return tmp_path


def test_models_of_runs_and_folders_of_evaluations_are_found(workspace):
    folder = Store(workspace).folder("evaluation-base", "f-base")
    for name, correct in (
        ("base", 1), ("fusion", 3), ("final", 3), ("tiny-1", 3), ("tiny-1:base", 1), (str(folder), 1),
        (f"{workspace / 'runs' / 'tiny-1'}:fusion", 3), (str(workspace / "runs" / "tiny-1"), 3),
        ("specialist-code", 4),
    ):  # fmt: skip
        found = load(name, workspace)
        assert [row["correct"] for row in found.rows] == [correct] * 2, name
        assert common(found, found) == ["s"] and differences(found, found) == []


def test_what_is_no_measurement_is_told_in_one_sentence(workspace, tmp_path):
    for name, said in (
        ("signal-1", "has measured base, fusion, specialist-code"),
        ("tiny-2:base", "no run 'tiny-2'.*tiny-1"),
        ("absent.json", "no file absent.json"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            load(name, workspace)
    folder = Store(workspace).folder("evaluation-base", "f-base")
    (folder / "outcomes.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="no whole output"):
        load("base", workspace)
    for text, said in (("{", "isn't JSON"), ("[]", "schema 2, not None"), ('{"schema": 2}', "lacks 'sets'")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(DataError, match=said):
            load(str(tmp_path / "x.json"), workspace)


def test_every_difference_that_matters_is_named(workspace):
    store, base = Store(workspace), load("base", workspace)
    other = evaluation(2, seed=2, digest="e")
    document = json.loads(other["evaluation.json"])
    document["sets"]["s"]["settings"] = {**SETTINGS, "temperature": 0.6, "k": [1]}
    document["prompts"] = {"system": "Think."}
    other["evaluation.json"] = json.dumps(document)
    found = differences(base, load(str(published(store, "evaluation-x", "f", other).folder), workspace))
    assert len(found) == 4
    for said in ("other problems", "temperature 1.0 and 0.6", "seeds are 1 and 2", "prompts"):
        assert any(said in sentence for sentence in found)


def test_the_data_that_a_model_descends_from_is_found_by_what_outputs_have_read(tmp_path, tiny_model_folder):
    store = Store(tmp_path)
    other = published(store, "data", "d1", {"rl/a.parquet": "other"})
    data = published(store, "data", "d2", {"rl/a.parquet": "this"})
    base = published(store, "base", "b", {"config.json": "{}"})
    trained = published(store, "specialist-a", "s", {"checkpoints/1/config.json": "{}"}, {"base": base, "data": data})
    fused = published(store, "fusion", "f", {"config.json": "{ }"}, {"specialist": trained})
    assert trained_on(fused.folder) == trained_on(trained.folder / "checkpoints" / "1") == data.folder != other.folder
    assert trained_on(base.folder) is None
    stage = {"name": "math", "train_data": "mine.jsonl"}
    first = published(store, "signal-1", "1", {"config.json": "{  }"}, {"model": fused, "data": data}, stage=stage)
    plain = {"model": first, "data": data}
    last = published(store, "signal-2", "2", {"config.json": "{   }"}, plain, stage={**stage, "train_data": None})
    assert stage_files(last.folder) == ["mine.jsonl"] and stage_files(fused.folder) == []
    assert trained_on(last.folder) == data.folder
    assert trained_on(shutil.copytree(tiny_model_folder, tmp_path / "elsewhere")) is None
