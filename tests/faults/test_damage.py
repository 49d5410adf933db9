"""Whatever is changed in what a step published or a training saved is found before it is used."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Emitted
from tests.test_artifacts import FINGERPRINT, safetensors
from vibethinker import artifacts, validation
from vibethinker.artifacts import Store, seal
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.operations import TrainerCheckpoints
from vibethinker.training.resumable import Resumable


def fill(folder: Path) -> None:
    """Files of the kinds that steps and trainers write."""
    (folder / "checkpoints").mkdir(parents=True)
    safetensors(folder / "model.safetensors", [float(i) for i in range(64)])
    safetensors(folder / "checkpoints" / "adapter.safetensors", [1.0, -2.0], "BF16")
    (folder / "config.json").write_text('{"hidden_size": 48}\n')
    (folder / "metrics.jsonl").write_text('{"loss": 1e-05, "step": 1}\n{"loss": 0.5, "step": 2}\n')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "optimizer.pt").write_bytes(bytes(range(256)))
    (folder / "remembered.json").write_text("{}")


@pytest.fixture
def published(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    staging = store.staging("step", FINGERPRINT)
    fill(staging)
    record = {"metrics": {"é": 1e-7, "n": {1: 2.5}}, "seconds": 1.0, "settings": {"rate": 1e22}}
    store.publish(staging, "step", FINGERPRINT, inputs={"data": "d"}, record=record)
    return store


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def hit(store: Store) -> bool:
    return store.find("step", FINGERPRINT, {"data": "d"})[0] is not None


def test_flipped_bits_of_all_files_are_found(published: Store) -> None:
    drawn, all_files = random.Random(6), files(published.folder("step", FINGERPRINT))
    for i in range(160):
        path = all_files[i % len(all_files)]
        bit = drawn.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert not hit(published), f"bit {bit} of {path.name}"
        flip(path, bit)
    assert hit(published)


def test_the_bits_of_a_manifest_count_all_over_it(published: Store) -> None:
    path = published.folder("step", FINGERPRINT) / "manifest.json"
    for bit in range(0, 8 * path.stat().st_size, 71):  # eight steps of it hit each of a byte's bits
        flip(path, bit)
        assert published.read("step", FINGERPRINT) is None, bit
        flip(path, bit)
    assert hit(published)


def test_a_file_that_is_cut_emptied_deleted_or_swapped_is_found(published: Store) -> None:
    all_files = files(published.folder("step", FINGERPRINT))
    for path, other in zip(all_files, all_files[1:] + all_files[:1], strict=True):
        whole, another = path.read_bytes(), other.read_bytes()
        for damaged in (whole[:-1], whole[: len(whole) // 2], b"", another):
            path.write_bytes(damaged)
            assert not hit(published), path.name
        path.unlink()
        assert not hit(published), path.name
        path.write_bytes(another)
        other.write_bytes(whole)
        assert not hit(published), path.name
        path.write_bytes(whole)
        other.write_bytes(another)
    assert hit(published)


@pytest.mark.parametrize("change", [{"metrics": {"x": 2}}, {"inputs": {"data": "e"}}, {"schema": 1}, {"schema": "2"}])
def test_a_manifest_that_was_edited_is_found(published: Store, change: dict[str, object]) -> None:
    path = published.folder("step", FINGERPRINT) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change, indent=1, sort_keys=True) + "\n")
    assert published.read("step", FINGERPRINT) is None


def test_an_older_versions_manifest_without_a_seal_is_read(published: Store) -> None:
    path = published.folder("step", FINGERPRINT) / "manifest.json"
    older = {name: value for name, value in json.loads(path.read_text()).items() if name != "seal"}
    path.write_text(json.dumps(older | {"schema": 1}))
    assert hit(published)


def test_a_newer_versions_manifest_is_refused_where_its_seal_holds(
    published: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "SCHEMA", 3)
    seal(published.folder("step", FINGERPRINT), {"fingerprint": FINGERPRINT, "inputs": {}}, at="publish")
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match="schema 3"):
        published.read("step", FINGERPRINT)


def test_a_large_input_is_read_to_its_end_before_a_step_uses_it(
    published: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "SMALL_BYTES", 0)
    assert published.read_whole("step", FINGERPRINT).metrics["é"] == 1e-7
    flip(published.folder("step", FINGERPRINT) / "model.safetensors", 8 * 200)
    assert hit(published)  # of a large one the sizes alone are looked at
    with pytest.raises(InfrastructureError, match="damaged"):
        published.read_whole("step", FINGERPRINT)
    assert published.find("step", FINGERPRINT) == (None, None)
    assert len(list((published.workspace / "attic").iterdir())) == 1
    with pytest.raises(InfrastructureError, match="is gone"):
        published.read_whole("step", FINGERPRINT)


def test_a_file_that_the_disk_does_not_give_back_is_damage(published: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*words: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(validation.hashlib, "file_digest", unreadable)
    found, reason = published.find("step", FINGERPRINT)
    assert found is None
    assert reason is not None and "can't be read" in reason


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def swapped(path: Path) -> None:
    other = path.parent / ("config.json" if path.name != "config.json" else "optimizer.pt")
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    other.write_bytes(mine)


def flipped(path: Path) -> None:
    flip(path, random.Random(path.name).randrange(8 * path.stat().st_size))


@pytest.mark.parametrize("damage", [cut, emptied, swapped, flipped, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    updates = tmp_path / "updates"
    names = ("optimizer.pt", "remembered.json", "model.safetensors", "metrics.jsonl", "manifest.json")
    for name in names:
        for update in (1, 2):
            fill(updates / f"{update:08d}")
            seal(updates / f"{update:08d}", {"layout": "whole", "update": update}, at="update")
        damage(updates / "00000002" / name)
        emitted = Emitted()
        newest = Resumable(updates, [], TrainerCheckpoints(), emitted).newest()
        assert newest == updates / "00000001", name
        assert "update 2 can't be used" in emitted.warnings[0]
        shutil.rmtree(updates)
