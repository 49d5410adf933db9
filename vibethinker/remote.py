"""A store that several machines share: a second level behind the workspace, at any address that fsspec knows.

The workspace stays what steps read and write. What is published there is also put into the store, and what the
workspace lacks is taken from it, so that every machine with the same address reuses what the others have made:

    <url>/artifacts/<step>/<fingerprint>/manifest.json          the very text of the workspace's; publishes
    <url>/artifacts/<step>/<fingerprint>/<content digest>/…     the files that it lists
    <url>/attic/…                                               manifests of what was found damaged or was refreshed

An object store has no rename. So files come first and the manifest last, and what has no valid manifest is nothing.
Outputs of other contents have other folders, so that machines which make one step at once can't mix their files: both
compute, the first manifest stays, and on a CPU both have the same bytes. A machine whose own output differs keeps using
its own, and puts nothing into the store that was made from it: what is in the store always fits together. Only what
arrives whole counts: a download is staged, and its digests checked, before the workspace has it.

Left out: leases, so that of two machines which start a step together one computes in vain; and removal of old outputs,
for which the lifecycle rules of a bucket are the place. Credentials come from the environment, by fsspec's own ways.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from vibethinker import locks, validation
from vibethinker.artifacts import MANIFEST, Artifact, Store, content_digest
from vibethinker.errors import ConfigurationError, InfrastructureError

TRANSFERS = 4  # of whole outputs at once; each holds some hundred MB of a large file in memory
DIGEST_LETTERS = 16

Named = tuple[str, str]  # step id, fingerprint


class Remote:
    """The store at one address; safe to use from several threads.

    Args:
        url: for example `s3://bucket/prefix` or `file:///mnt/shared/store`.

    Raises:
        ConfigurationError: there is no such kind of address, or what it needs isn't installed.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        try:
            self._fs, root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"storage.url {url!r} can't be used ({_first_line(error)}): install vibethinker[s3] for s3://, or the "
                "package that fsspec names."
            ) from None
        self._root = root.rstrip("/")
        self._turns = threading.BoundedSemaphore(TRANSFERS)

    def check(self) -> None:
        """Write, read and remove a small object, before hours of work rely on it.

        Raises:
            ConfigurationError: there is no such bucket, or it can't be written with the credentials at hand.
            InfrastructureError: it doesn't answer.
        """
        probe = f"{self._root}/.vibethinker-{time.time_ns()}"
        try:
            self._make_parent(probe)
            self._fs.pipe_file(probe, b"\0")
            whole = self._fs.cat_file(probe) == b"\0"
            self._fs.rm_file(probe)
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise ConfigurationError(
                f"The store {self.url} can't be written ({_first_line(error)}): see that it exists, and that the "
                "environment has credentials that may write there."
            ) from None
        except Exception as error:  # each file system's library has errors of its own
            raise self._unreachable(error) from error
        if not whole:
            raise InfrastructureError(f"The store {self.url} returned other bytes than were written: use another.")

    def fetch(
        self, store: Store, step: str, fingerprint: str, inputs: Mapping[str, str] | None = None
    ) -> tuple[Artifact | None, str | None]:
        """Take an output into the workspace; None and why what is there can't be used, or None and None if nothing is
        there, or another process of this machine makes or takes it just now.

        Args:
            inputs: role → content digest of what is published here; an output made from others is of no use.

        Raises:
            InfrastructureError: the store doesn't answer.
        """
        lock = locks.attempt(store.lock_file(step, fingerprint))
        if lock is None:
            return None, None
        with lock, self._turns, self._reached():
            return self._fetch(store, step, fingerprint, inputs)

    def _fetch(
        self, store: Store, step: str, fingerprint: str, inputs: Mapping[str, str] | None
    ) -> tuple[Artifact | None, str | None]:
        text = self._manifest_text(step, fingerprint)
        if text is None:
            return None, None
        staging = store.staging(step, fingerprint)
        try:
            (staging / MANIFEST).write_bytes(text)
            manifest, reason = validation.read_manifest(staging)
            if manifest is None or manifest.get("step") != step or manifest.get("fingerprint") != fingerprint:
                return None, reason or f"its {MANIFEST} is another output's"
            if inputs is not None and dict(inputs) != manifest["inputs"]:
                return None, "it was made from other inputs than those published here"
            folder = self._payload(step, fingerprint, manifest)
            for name in manifest["files"]:
                target = staging / _inside(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # then the check says which one is missing
                    self._fs.get_file(f"{folder}/{name}", str(target))
            if reason := validation.check(staging, "digest"):
                self.retire(step, fingerprint)
                return None, reason
            return store.adopt(staging, step, fingerprint, manifest), None
        finally:
            store.discard(staging)

    def share(self, artifact: Artifact, inputs: Mapping[str, Named]) -> str | None:
        """Put a published output into the store unless it is there; None, or why the store can't have it.

        Args:
            inputs: role → the step, with its fingerprint, that fills it.

        Raises:
            InfrastructureError: the store doesn't answer.
        """
        step, fingerprint = artifact.manifest["step"], artifact.manifest["fingerprint"]
        made_of = artifact.manifest["inputs"]
        with self._turns, self._reached():
            text = self._manifest_text(step, fingerprint)
            there = None if text is None else validation.parse_manifest(text)[0]
            if there and there["inputs"] == made_of:
                if content_digest(there["files"]) == artifact.digest:
                    return None
                return "another machine's, with other bytes, was first"
            for role, named in inputs.items():
                source = self._manifest(*named)
                if source is None or content_digest(source["files"]) != made_of[role]:
                    return f"it was made from another output of {named[0]} than the store has"
            if there:
                self.retire(step, fingerprint)
            folder = self._payload(step, fingerprint, artifact.manifest)
            for name in artifact.manifest["files"]:
                self._make_parent(f"{folder}/{name}")
                self._fs.put_file(str(artifact.folder / name), f"{folder}/{name}")
            unreadable = text is not None and there is None
            with suppress(FileExistsError):  # another machine was faster; S3 refuses the second one
                self._fs.pipe_file(
                    self._place(step, fingerprint, MANIFEST),
                    (artifact.folder / MANIFEST).read_bytes(),
                    mode="overwrite" if unreadable else "create",
                )
        return None

    def retire(self, step: str, fingerprint: str) -> None:
        """Unpublish an output, its manifest kept in the attic; whoever makes it next may publish it anew.

        Raises:
            InfrastructureError: the store doesn't answer.
        """
        with self._reached():
            text = self._manifest_text(step, fingerprint)
            if text is None:
                return
            aside = f"{self._root}/attic/{step}-{fingerprint[:12]}-{time.time_ns()}.json"
            self._make_parent(aside)
            self._fs.pipe_file(aside, text)
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._place(step, fingerprint, MANIFEST))

    def _manifest(self, step: str, fingerprint: str) -> dict[str, Any] | None:
        """The manifest, if there is a valid one."""
        text = self._manifest_text(step, fingerprint)
        return None if text is None else validation.parse_manifest(text)[0]

    def _manifest_text(self, step: str, fingerprint: str) -> bytes | None:
        try:
            return self._fs.cat_file(self._place(step, fingerprint, MANIFEST))
        except FileNotFoundError:
            return None

    def _payload(self, step: str, fingerprint: str, manifest: Mapping[str, Any]) -> str:
        return self._place(step, fingerprint, content_digest(manifest["files"])[:DIGEST_LETTERS])

    def _place(self, step: str, fingerprint: str, name: str) -> str:
        return f"{self._root}/artifacts/{step}/{fingerprint}/{name}"

    def _make_parent(self, path: str) -> None:
        """Folders of those file systems that have them; a bucket is never created."""
        if "file" in self._fs.protocol or "memory" in self._fs.protocol:
            self._fs.makedirs(self._fs._parent(path), exist_ok=True)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (InfrastructureError, ConfigurationError):
            raise
        except Exception as error:  # each file system's library has errors of its own
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> InfrastructureError:
        return InfrastructureError(
            f"The store {self.url} can't be used ({type(error).__name__}: {_first_line(error)}): see that it answers "
            "and that its credentials hold."
        )


def _inside(name: str) -> Path:
    """A manifest's file name as a path that stays inside its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name == MANIFEST:
        raise InfrastructureError(f"A manifest in the store lists the file {name!r}, which no output can have.")
    return Path(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
