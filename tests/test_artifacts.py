"""Publishing is all or nothing, validation finds what is wrong, and nothing invalid is reused."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from vibethinker import validation
from vibethinker.artifacts import Artifact, Store, check_workspace
from vibethinker.cli import main
from vibethinker.commands.measuring import check_before
from vibethinker.errors import ConfigurationError
from vibethinker.models import check_model_folder
from vibethinker.models.sources import run_import

FINGERPRINT = "a" * 64


def safetensors(path: Path, values: list[float], dtype: str = "F32") -> None:
    data = np.asarray(values, dtype="<f4")
    raw = data.tobytes() if dtype == "F32" else (data.view("<u4") >> 16).astype("<u2").tobytes()
    header = json.dumps({"w": {"dtype": dtype, "shape": [len(values)], "data_offsets": [0, len(raw)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw)


def publish(store: Store, values: list[float] | None = None, inputs: dict[str, str] | None = None) -> Artifact:
    staging = store.staging("step", FINGERPRINT)
    (staging / "sub").mkdir()
    (staging / "sub" / "note.txt").write_text("hello")
    safetensors(staging / "model.safetensors", values or [1.0, 2.0])
    record = {"metrics": {"x": 1}, "seconds": 1.0}
    return store.publish(staging, "step", FINGERPRINT, inputs=inputs or {}, record=record)


def test_a_published_output_is_found_with_its_metrics(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = publish(store)
    found, reason = store.find("step", FINGERPRINT, {}, level="digest")
    assert reason is None
    assert found is not None
    assert found.metrics == {"x": 1}
    assert found.digest == made.digest
    assert not (tmp_path / "staging" / f"step-{FINGERPRINT}").exists()


def test_equal_payloads_have_equal_digests_whatever_the_time(tmp_path: Path) -> None:
    assert publish(Store(tmp_path / "a")).digest == publish(Store(tmp_path / "b")).digest
    assert publish(Store(tmp_path / "a")).digest != publish(Store(tmp_path / "c"), [1.0, 3.0]).digest


def test_a_folder_without_a_manifest_is_no_hit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.folder("step", FINGERPRINT).mkdir(parents=True)
    found, reason = store.find("step", FINGERPRINT)
    assert found is None
    assert reason


def test_other_inputs_make_it_no_hit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, inputs={"data": "1"})
    assert store.find("step", FINGERPRINT, {"data": "1"})[0]
    found, reason = store.find("step", FINGERPRINT, {"data": "2"})
    assert found is None
    assert "other inputs" in (reason or "")


def test_publishing_over_an_invalid_output_keeps_it_in_the_attic(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = publish(store)
    (made.folder / "sub" / "note.txt").unlink()
    publish(store)
    assert store.find("step", FINGERPRINT, {})[0]
    assert len(list((tmp_path / "attic").iterdir())) == 1


@pytest.mark.parametrize(
    ("damage", "level"),
    [("missing", "exists"), ("cut", "size"), ("nan", "finite"), ("flipped", "digest")],
)
def test_each_level_finds_its_damage_and_the_one_before_does_not(tmp_path: Path, damage: str, level: str) -> None:
    made = publish(Store(tmp_path), [1.0, float("nan")] if damage == "nan" else None)
    note, weights = made.folder / "sub" / "note.txt", made.folder / "model.safetensors"
    if damage == "missing":
        note.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "flipped":
        note.write_text("hellO")
    assert validation.check(made.folder, level)
    lower = validation.LEVELS.index(level) - 1
    if lower >= 0:
        assert validation.check(made.folder, validation.LEVELS[lower]) is None


def test_infinity_is_found_in_bfloat16(tmp_path: Path) -> None:
    for name, values, bad in (("a", [1.0, -3e38], False), ("b", [1.0, float("inf")], True)):
        (tmp_path / name).mkdir()
        safetensors(tmp_path / name / "model.safetensors", values, "BF16")
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "tokenizer.json").write_text("{}")
        assert bool(validation.check(tmp_path / name, "finite")) is bad


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_folder_from_elsewhere_must_be_complete(tmp_path: Path, missing: str) -> None:
    safetensors(tmp_path / "model.safetensors", [1.0])
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert validation.check(tmp_path, "finite") is None
    (tmp_path / missing).unlink()
    assert validation.check(tmp_path, "exists")


def test_a_model_that_was_damaged_since_it_was_published_is_refused_by_whoever_is_given_it(
    tmp_path: Path, tiny_model_folder: Path, new_step, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    staging = store.staging("specialist-algebra", FINGERPRINT)
    shutil.copytree(tiny_model_folder, staging / "checkpoints" / "step-1")
    store.publish(staging, "specialist-algebra", FINGERPRINT, inputs={}, record={"metrics": {}})
    model = store.folder("specialist-algebra", FINGERPRINT) / "checkpoints" / "step-1"
    validation.refuse_damaged(model)
    validation.refuse_damaged(tiny_model_folder)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-9] ^= 4
    (model / "model.safetensors").write_bytes(weights)
    check_model_folder(model)
    with pytest.raises(ConfigurationError, match="was damaged since it was published"):
        validation.refuse_damaged(model)
    with pytest.raises(ConfigurationError, match="was damaged since it was published"):
        run_import(new_step({"role": "fusion"}, source=str(model)))
    with pytest.raises(ConfigurationError, match="was damaged since it was published"):
        check_before([model], None, None)
    with pytest.raises(SystemExit, match="2"):
        main(["fuse", str(model), str(model), "--output", str(tmp_path / "fused")])
    assert "was damaged since it was published" in capsys.readouterr().err


def test_an_unknown_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="exists, size, finite, digest, generates"):
        validation.check(tmp_path, "deep")


def test_a_manifest_of_another_schema_is_refused_with_a_sentence(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = publish(store).folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(ConfigurationError, match="schema 99"):
        store.find("step", FINGERPRINT)


def test_a_workspace_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can't be written"):
        check_workspace(tmp_path / "file" / "workspace")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_workspace_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="can't be written"):
        check_workspace(tmp_path / "workspace")
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="make room"):
        check_workspace(tmp_path, needed=1 << 62)


def test_what_a_training_saved_is_kept_for_the_same_inputs_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.resumable("signal-1", "f1", {"model": "a"})
    assert store.update("signal-1", "f1", {"model": "a"}) is None
    for update in (3, 12):
        (folder / "updates" / f"{update:08d}").mkdir(parents=True)
        (folder / "updates" / f"{update:08d}" / "manifest.json").write_text("{}")
    (folder / "updates" / "00000020").mkdir()  # never sealed
    assert store.update("signal-1", "f1", {"model": "a"}) == 12
    assert store.resumable("signal-1", "f1", {"model": "a"}) == folder
    assert store.update("signal-1", "f1", {"model": "a"}) == 12
    assert store.update("signal-1", "f1", {"model": "b"}) is None
    store.resumable("signal-1", "f1", {"model": "b"})
    assert not (folder / "updates").exists()


def test_the_state_of_a_step_without_inputs_is_kept_if_an_older_version_left_no_note_of_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.checkpoints("data", "f1") / "spool").mkdir(parents=True)
    assert (store.resumable("data", "f1", {}) / "spool").is_dir()
