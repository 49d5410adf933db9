"""Whatever is changed in the checkpoints that real trainings kept is found, and the one before is used."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Emitted
from tests.training.stopping import Fragile, Killed, die, files, prepared, restarted, trained
from vibethinker.operations import TrainerCheckpoints
from vibethinker.training.resumable import Resumable

pytestmark = pytest.mark.slow

KINDS = ("base", "sft", "sft-packed-lora", "signal")
OLDER, NEWER = "00000003", "00000004"
FLIPS = 125  # of each kind of training


@pytest.fixture(scope="module")
def made() -> dict[str, tuple]:
    """What `killed` has made of each kind, since a training takes longer than most tests; read only."""
    return {}


@pytest.fixture
def killed(made, new_step, taught_folder, data_folder, tmp_path):
    """A function kind → the step's function, an uninterrupted training's output, and the context of one that was killed
    in its fifth update, whose checkpoints after the third and the fourth share no file."""

    def make(kind: str):
        if kind not in made:
            run, new = prepared(kind, new_step, taught_folder, data_folder)
            whole, context = new(), new()
            run(whole)
            with pytest.raises(Killed):
                run(replace(context, emit=Fragile(5, die)))
            assert sorted(p.name for p in (context.checkpoints / "updates").iterdir()) == [OLDER, NEWER]
            made[kind] = run, whole.output, context
        run, whole, context = made[kind]
        output, state = tmp_path / "output", tmp_path / "state"
        output.mkdir()
        shutil.copytree(context.checkpoints, state)
        return run, whole, replace(context, output=output, checkpoints=state)

    return make


@pytest.fixture
def saved(killed) -> Callable[[str], Path]:
    """A function kind → the folder of a killed training's checkpoints."""
    return lambda kind: killed(kind)[2].checkpoints / "updates"


def newest(updates: Path) -> tuple[Path | None, list[str]]:
    """What a training would go on from, and the warnings that it gives."""
    emitted = Emitted()
    return Resumable(updates, [], TrainerCheckpoints(), emitted).newest(), emitted.warnings


def refused(updates: Path) -> bool:
    """Whether the newest checkpoint gives way to the one before, with a warning; then it is put back."""
    found, warnings = newest(updates)
    for aside in updates.glob(f"{NEWER}-unusable*"):
        aside.rename(updates / NEWER)
    return found == updates / OLDER and len(warnings) == 1 and "update 4 can't be used" in warnings[0]


@contextmanager
def held(*paths: Path) -> Iterator[None]:
    """Put these files back afterwards."""
    whole = {path: path.read_bytes() for path in paths}
    yield
    for path, data in whole.items():
        path.write_bytes(data)


def of_kinds(checkpoint: Path) -> list[list[Path]]:
    """The files that aren't empty, by their names."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.stat().st_size:
            kinds.setdefault(path.name, []).append(path)
    return [kinds[name] for name in sorted(kinds)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_flipped_bit_is_found(saved: Callable[[str], Path], kind: str) -> None:
    updates, drawn = saved(kind), random.Random(kind)
    kinds = of_kinds(updates / NEWER)
    assert len(kinds) >= 9  # weights, optimizer, scheduler, random numbers, states, arguments, metrics, manifest …
    for i in range(FLIPS):
        path = drawn.choice(kinds[i % len(kinds)])
        with held(path):
            data = bytearray(path.read_bytes())
            place, bit = drawn.randrange(len(data)), drawn.randrange(8)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            assert refused(updates), f"bit {bit} of byte {place} of {path}"
    assert newest(updates) == (updates / NEWER, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_emptied_deleted_or_swapped_is_found(saved: Callable[[str], Path], kind: str) -> None:
    updates = saved(kind)
    all_files = [path for paths in of_kinds(updates / NEWER) for path in paths]
    for path, neighbour in zip(all_files, all_files[1:] + all_files[:1], strict=True):
        stale = updates / OLDER / path.relative_to(updates / NEWER)
        with held(path, neighbour):
            whole, other = path.read_bytes(), neighbour.read_bytes()
            others = [other, stale.read_bytes()] if stale.exists() else [other]
            for data in (whole[:-1], whole[: len(whole) // 2], b"", *others):
                if data != whole:
                    path.write_bytes(data)
                    assert refused(updates), f"{path}, {len(data)} bytes"
            path.unlink()
            assert refused(updates), f"{path} is gone"
            path.mkdir()
            assert refused(updates), f"{path} is a folder"
            path.rmdir()
            path.symlink_to("nowhere")
            assert refused(updates), f"{path} leads nowhere"
            path.unlink()
            if other != whole:
                path.write_bytes(other)
                neighbour.write_bytes(whole)
                assert refused(updates), f"{path} and {neighbour}"
    assert newest(updates) == (updates / NEWER, [])


DAMAGES = {"base": "optimizer.pt", "sft": "model.safetensors", "sft-packed-lora": "rng_state.pth"} | {
    "signal": "remembered.json"
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one(killed, kind: str) -> None:
    run, whole, context = killed(kind)
    path = context.checkpoints / "updates" / NEWER / DAMAGES[kind]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    context = restarted(context)
    run(context)
    assert ["update 4 can't be used" in text for text in context.emit.warnings] == [True]
    assert trained(context.emit) == [4, 5, 6]
    assert files(context.output) == files(whole)


def test_a_checkpoint_under_another_ones_number_is_found(saved: Callable[[str], Path]) -> None:
    updates = saved("base")
    shutil.rmtree(updates / NEWER)
    shutil.copytree(updates / OLDER, updates / NEWER)
    assert refused(updates)


def test_what_does_not_belong_to_a_checkpoint_is_moved_away_and_changes_nothing(killed) -> None:
    run, whole, context = killed("sft")
    checkpoint = context.checkpoints / "updates" / NEWER
    for name in ("pytorch_model.bin", "scaler.pt", "written/checkpoints/step-000004/added.json", "written/new/x"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(b"not of this training")
    context = restarted(context)
    run(context)
    [warning] = context.emit.warnings
    assert "4" in warning and all(name in warning for name in ("pytorch_model.bin", "scaler.pt", "added.json", "new"))
    assert trained(context.emit) == [5, 6]
    assert files(context.output) == files(whole)
    assert {"pytorch_model.bin", "written/new/x"} < set(files(next(checkpoint.parent.glob(f"{NEWER}-foreign*"))))


@pytest.mark.long
def test_a_file_that_several_checkpoints_share_is_trusted_in_none_of_them(new_step, taught_folder, data_folder) -> None:
    run, new = prepared("sft", new_step, taught_folder, data_folder)
    whole, context = new(), new()
    run(whole)
    with pytest.raises(Killed):
        run(replace(context, emit=Fragile(5, die)))
    shared = "written/checkpoints/step-000002/model.safetensors"
    [path, other] = sorted((context.checkpoints / "updates").glob(f"*/{shared}"))
    assert path.samefile(other)
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x00\x01\x02")
    context = restarted(context)
    run(context)
    assert len(context.emit.warnings) == 2
    assert trained(context.emit) == [1, 2, 3, 4, 5, 6]
    assert files(context.output) == files(whole.output)


@pytest.mark.long
@pytest.mark.parametrize("place", ["checkpoint", "updates"])
@pytest.mark.parametrize("how", ["dangling symlink", "file"])
def test_what_lies_where_a_folder_should_be_is_put_aside(killed, place: str, how: str) -> None:
    run, whole, context = killed("sft")
    path = context.checkpoints / "updates" / (NEWER if place == "checkpoint" else "")
    for again in range(2):  # what was put aside before is in nobody's way
        if path.is_dir():
            shutil.rmtree(path)
        if how == "file":
            path.write_text("")
        else:
            path.symlink_to("nowhere")
        context = restarted(context)
        with pytest.raises(Killed):
            run(replace(context, emit=Fragile(5, die)))
        assert path.is_dir() and not path.is_symlink(), again
    context = restarted(context)
    run(context)
    assert files(context.output) == files(whole)


@pytest.mark.long
def test_a_damaged_one_is_put_aside_again_and_again(saved: Callable[[str], Path]) -> None:
    updates = saved("base")
    shutil.copytree(updates / NEWER, updates.with_name("kept"))
    for _ in range(3):
        (updates / NEWER / "optimizer.pt").unlink()
        assert newest(updates)[0] == updates / OLDER
        shutil.copytree(updates.with_name("kept"), updates / NEWER)
    assert newest(updates)[0] == updates / NEWER


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.parametrize("name", ["optimizer.pt", "manifest.json", "written/checkpoints", ""])
def test_what_may_not_be_read_is_not_used(saved: Callable[[str], Path], name: str) -> None:
    updates = saved("sft")
    (updates / NEWER / name).chmod(0)
    found, warnings = newest(updates)
    assert found == updates / OLDER
    assert "update 4 can't be used" in warnings[0]


def test_what_the_disk_can_not_give_is_not_used(saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    updates, digest = saved("base"), hashlib.file_digest

    def fails(file, name):
        if file.name.endswith(f"{NEWER}/optimizer.pt"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", fails)
    assert refused(updates)
