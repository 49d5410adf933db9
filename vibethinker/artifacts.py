"""Publish, find and validate the immutable outputs of steps.

A step writes into a staging folder. Publishing syncs its files, writes `manifest.json` (sizes, hashes, fingerprint,
settings, inputs, versions, metrics), and renames the folder to `artifacts/<step>/<fingerprint>/`; readers trust
nothing without a valid manifest. Outputs that fail validation move to `attic/`, so that nothing is ever overwritten.
Payload files are byte-reproducible; times are in the manifest only. Validation of a single folder, its levels and
the scan of weights are in `vibethinker.validation`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vibethinker import faults, locks, validation
from vibethinker.errors import ConfigurationError, InfrastructureError

MANIFEST = validation.MANIFEST
SCHEMA = validation.SCHEMA
INPUTS = "inputs.json"  # of a step's checkpoints: role → content digest
UPDATES = "updates"  # of a step's checkpoints: a trainer's, a folder for each update that was saved
EVIDENCE = "evidence"  # of a step's checkpoints: what a training left that diverged
SCRATCH = "-ranks"  # ends the name of a folder beside a step's staging, where its other processes write
SMALL_BYTES = 1 << 28  # a fifth of a second to hash


@dataclass(frozen=True)
class Artifact:
    """A published output: its folder and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """One hash over the names and contents of the payload."""
        return content_digest(self.manifest["files"])

    @property
    def metrics(self) -> dict[str, Any]:
        """What the step measured."""
        return self.manifest["metrics"]


class Store:
    """The artifacts of a workspace."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace

    def folder(self, step: str, fingerprint: str) -> Path:
        """Where an output is, or will be, published."""
        return self.workspace / "artifacts" / step / fingerprint

    def checkpoints(self, step: str, fingerprint: str) -> Path:
        """A step's own resumable state, which outlives its process."""
        return self.workspace / "checkpoints" / step / fingerprint

    def resumable(self, step: str, fingerprint: str, inputs: Mapping[str, str]) -> Path:
        """The folder of `checkpoints`, made, for a step that reads these inputs (role → content digest); what an
        earlier process made of others is removed."""
        folder = self.checkpoints(step, fingerprint)
        made_of = self._made_of(folder)
        if made_of != dict(inputs) and (made_of is not None or inputs):
            shutil.rmtree(folder, ignore_errors=True)
        if made_of != dict(inputs):
            write_json(folder / INPUTS, dict(inputs))
        return folder

    def update(self, step: str, fingerprint: str, inputs: Mapping[str, str]) -> int | None:
        """The update after which an unfinished training of this step goes on with these inputs, if one was saved."""
        folder = self.checkpoints(step, fingerprint)
        if self._made_of(folder) != dict(inputs):
            return None
        saved = (folder / UPDATES).glob(f"*/{MANIFEST}")
        return max((int(path.parent.name) for path in saved if path.parent.name.isdigit()), default=None)

    def _made_of(self, folder: Path) -> dict[str, str] | None:
        try:
            return json.loads((folder / INPUTS).read_text())
        except (OSError, ValueError):
            return None

    def read(self, step: str, fingerprint: str) -> Artifact | None:
        """The published output if its manifest can be read and speaks of this step; nothing is checked further."""
        folder = self.folder(step, fingerprint)
        manifest, reason = validation.read_manifest(folder)
        if reason or manifest is None or manifest.get("fingerprint") != fingerprint:
            return None
        return Artifact(folder, manifest)

    def model_words(self, step: str, fingerprint: str) -> dict[str, Any] | None:
        """What the config.json of a published model says; None where there is none."""
        file = self.folder(step, fingerprint) / "config.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def input(self, step: str, fingerprint: str) -> Artifact:
        """The published output that a step names as its input; only its manifest is read.

        Raises:
            InfrastructureError: it is gone.
        """
        artifact = self.read(step, fingerprint)
        if artifact is None:
            raise InfrastructureError(f"The output of {step} is gone: run the same command again to remake it.")
        return artifact

    def read_whole(self, step: str, fingerprint: str, tell: Callable[[], None] = lambda: None) -> Artifact:
        """`input`, read to the end, whatever its size, before the step relies on it; `tell` is called meanwhile.

        Raises:
            InfrastructureError: it is gone, or was damaged and is now in the attic, so that the next run remakes it.
        """
        artifact = self.input(step, fingerprint)
        if reason := validation.check(artifact.folder, "digest", tell):
            with self.lock(step, fingerprint, tell):
                if self.folder(step, fingerprint).exists() and validation.check(artifact.folder, "digest", tell):
                    self.retire(step, fingerprint)
            raise InfrastructureError(
                f"The output of {step} was damaged ({reason}): run the same command again to remake it."
            )
        return artifact

    def find(
        self, step: str, fingerprint: str, inputs: Mapping[str, str] | None = None, level: str | None = None
    ) -> tuple[Artifact | None, str | None]:
        """A hit, or None and why what is there can't be one (None and None if nothing is there).

        Args:
            inputs: role → content digest of what is published now; the manifest must have recorded the same.
            level: how deep the payload is validated; None reads everything of a small one and, of one above
                SMALL_BYTES, the sizes only.
        """
        if not self.folder(step, fingerprint).exists():
            return None, None
        artifact = self.read(step, fingerprint)
        if artifact is None:
            return None, "its manifest is missing or unreadable"
        size = sum(entry["size"] for entry in artifact.manifest["files"].values())
        if reason := validation.check(artifact.folder, level or ("digest" if size <= SMALL_BYTES else "size")):
            return None, reason
        if inputs is not None and dict(inputs) != artifact.manifest["inputs"]:
            return None, "it was made from other inputs than those published now"
        return artifact, None

    def retire(self, step: str, fingerprint: str) -> Path:
        """Move an output out of the way; returns its new place in `attic/`."""
        return self._to_attic(self.folder(step, fingerprint), f"{step}-{fingerprint[:12]}")

    def start_over(self, step: str, fingerprint: str, waiting: Callable[[], None]) -> None:
        """Move a step's output and what it could go on from out of the way, once no process makes it."""
        with self.lock(step, fingerprint, waiting):
            if self.folder(step, fingerprint).exists():
                self.retire(step, fingerprint)
            if (resumable := self.checkpoints(step, fingerprint)).exists():
                self._to_attic(resumable, f"{step}-{fingerprint[:12]}-checkpoints")

    def _to_attic(self, folder: Path, name: str) -> Path:
        attic = self.workspace / "attic"
        attic.mkdir(parents=True, exist_ok=True)
        return folder.rename(attic / f"{name}-{time.time_ns()}")

    @contextmanager
    def lock(self, step: str, fingerprint: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the step's lock, which the kernel frees when its holder dies.

        `waiting` is called once a second while another process holds it.
        """
        with locks.held(self.lock_file(step, fingerprint), waiting):
            yield

    def lock_file(self, step: str, fingerprint: str) -> Path:
        """What `lock` locks."""
        return self.workspace / "locks" / f"{step}-{fingerprint}"

    def staging(self, step: str, fingerprint: str) -> Path:
        """An empty folder to write into; call it under the lock, which makes an older one stale."""
        folder = self.workspace / "staging" / f"{step}-{fingerprint}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def discard(self, staging: Path) -> None:
        """Remove a staging folder that was not published."""
        shutil.rmtree(staging, ignore_errors=True)

    def writer(self, folder: Path) -> Path:
        """The lock of the step that writes into this folder of `staging/`, as its output or as its ranks' scratch."""
        return self.workspace / "locks" / folder.name.removesuffix(SCRATCH)

    def publish(
        self,
        staging: Path,
        step: str,
        fingerprint: str,
        *,
        inputs: Mapping[str, str],
        record: Mapping[str, Any],
        tell: Callable[[], None] = lambda: None,
    ) -> Artifact:
        """Make a staged output visible, whole or not at all.

        Args:
            inputs: role → content digest of each artifact that was read.
            record: further manifest entries: kind, settings, metrics, versions, revision, seconds, …
            tell: called with each file.
        """
        if not any(p.is_file() for p in staging.rglob("*")):
            raise InfrastructureError(f"The step {step} ended without writing any file.")
        own = {"step": step, "fingerprint": fingerprint, "inputs": dict(inputs)}
        record = {**record, **own, "tensors": validation.tensor_digests(staging)}
        manifest = seal(staging, record, at="publish", about=step, tell=tell)
        return self._install(staging, step, fingerprint, manifest)

    def adopt(self, staging: Path, step: str, fingerprint: str, manifest: Mapping[str, Any]) -> Artifact:
        """Make a staged copy of an output visible that another machine has published; call it under the lock."""
        for path in staging.rglob("*"):
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        for folder in {p.parent for p in staging.rglob("*")}:
            sync_folder(folder)
        return self._install(staging, step, fingerprint, manifest)

    def _install(self, staging: Path, step: str, fingerprint: str, manifest: Mapping[str, Any]) -> Artifact:
        target = self.folder(step, fingerprint)
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(target.parent.parent)  # which may have got the step's folder just now
        if target.exists():  # an invalid one that nobody has retired yet: a rename onto a full folder fails
            self.retire(step, fingerprint)
        faults.point("publish.rename", step)
        os.rename(staging, target)
        faults.point("publish.renamed", step)
        sync_folder(target.parent)
        faults.point("publish.synced", step)
        shutil.rmtree(self.checkpoints(step, fingerprint), ignore_errors=True)
        with suppress(OSError):  # another fingerprint's are there
            self.checkpoints(step, fingerprint).parent.rmdir()
        faults.point("publish.cleaned", step)
        return Artifact(target, manifest)


def seal(
    folder: Path,
    record: Mapping[str, Any],
    known: dict[tuple[int, int, int], str] | None = None,
    *,
    at: str,
    about: str = "",
    tell: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write a manifest with the digest of each file, everything synced to the disk; returns it.

    Args:
        record: further entries.
        known: digests by inode, size and time of change, of files that were sealed before under another name.
        at, about: how the fault points on its way are called, and the step that they speak of.
        tell: called with each file.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        state = path.stat()
        tell()
        key = state.st_ino, state.st_size, state.st_mtime_ns
        digest = known.get(key) if known is not None else None
        if digest is None:
            with path.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                os.fsync(handle.fileno())
        if known is not None:
            known[key] = digest
        files[path.relative_to(folder).as_posix()] = {"sha256": digest, "size": state.st_size}
        faults.point(f"{at}.file", about)
    manifest, text = validation.sealed({**record, "files": files})
    with (folder / MANIFEST).open("w") as handle:
        handle.write(text)
        faults.point(f"{at}.manifest", about)
        handle.flush()
        os.fsync(handle.fileno())
    for inner in {p.parent for p in folder.rglob("*")} | {folder}:
        sync_folder(inner)
    faults.point(f"{at}.sealed", about)
    return manifest


def content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """A hash over names and contents, from a manifest's `files`."""
    text = "".join(f"{name}\0{entry['sha256']}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of one file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """A hash over the names and contents of a folder's files, hidden ones and a manifest left out."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    visible = [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return content_digest({p.relative_to(folder).as_posix(): {"sha256": file_digest(p)} for p in visible})


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w") as handle:
            handle.write(text)
            faults.point("json.written", path.name)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    faults.point("json.replaced", path.name)


def check_workspace(workspace: Path, needed: int = 64 << 20) -> None:
    """Refuse a workspace that can't be written, or lacks room for a run, before anything starts.

    Args:
        needed: bytes that have to be free.
    """
    existing = next(p for p in (workspace, *workspace.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigurationError(f"The workspace {workspace} can't be written: choose another by --workspace.")
    probe = existing / f".vibethinker-{os.getpid()}"
    try:
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        raise ConfigurationError(
            f"The workspace {workspace} can't be written ({error.strerror}): choose another by --workspace, or make "
            "room."
        ) from None
    if (free := shutil.disk_usage(existing).free) < needed:
        raise ConfigurationError(
            f"The disk of the workspace {workspace} has {free >> 20} MiB free but a run needs {needed >> 20} MiB: "
            "make room, or choose another by --workspace."
        )


def sync_folder(folder: Path) -> None:
    """Have the disk keep what was made, renamed or removed in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
