"""Is this folder whole? Five levels, each including those before it.

`exists`: a sound manifest, or for a plain model folder config.json, weights and a tokenizer; `size`: every
file has its recorded size; `finite`: every safetensors header is sound and no weight is NaN or Inf; `digest`: every
file has its recorded sha256; `generates`: the model loads and produces tokens (imports torch; the others don't).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vibethinker.errors import ConfigurationError
from vibethinker.models.files import check_model_folder

MANIFEST = "manifest.json"
SCHEMA = 2  # 1 had no seal
LEVELS = ("exists", "size", "finite", "digest", "generates")
CHUNK_BYTES = 1 << 24


def check(folder: Path, level: str = "size", tell: Callable[[], None] = lambda: None) -> str | None:
    """The reason why a folder is invalid at this level, or None if it is valid; `tell` is called with each file that is
    read, since a large folder takes minutes.

    Raises:
        ConfigurationError: the level has another name, or another version wrote the manifest.
    """
    if level not in LEVELS:
        raise ConfigurationError(f"There is no validation level {level!r}: use {', '.join(LEVELS)}.")
    manifest, reason = read_manifest(folder)
    if reason:
        return reason
    for name in LEVELS[: LEVELS.index(level) + 1]:
        if name == "digest" and manifest is None and level != "digest":
            continue  # a folder from elsewhere has nothing to compare with, but it can still be loaded
        try:
            reason = _CHECKS[name](folder, manifest, tell)
        except OSError as error:  # of the disk, or of another process that has just moved the folder away
            reason = f"a file can't be read: {error}"
        if reason:
            return reason
    return None


def refuse_damaged(folder: Path) -> None:
    """Whether a folder that somebody names is, as far as it is a step's output or a checkpoint in one, what was
    published; all of that is read. A folder from elsewhere has nothing to compare with.

    Raises:
        ConfigurationError: it isn't.
    """
    absolute = folder.absolute()
    output = next((f for f in (absolute, *absolute.parents[:2]) if (f / MANIFEST).is_file()), None)
    if output is not None and (reason := check(output, "digest")):
        raise ConfigurationError(f"{folder} was damaged since it was published ({reason}): let its run make it anew.")


def tensor_digests(folder: Path) -> dict[str, str]:
    """File → sha256 over the names, types and shapes of its tensors."""
    digests = {}
    for path in sorted(folder.rglob("*.safetensors")):
        header, _ = read_header(path)
        shapes = {name: [entry["dtype"], entry["shape"]] for name, entry in header.items()}
        digests[path.relative_to(folder).as_posix()] = hashlib.sha256(
            json.dumps(shapes, sort_keys=True).encode()
        ).hexdigest()
    return digests


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors of a safetensors file (name → dtype, shape, data_offsets) and where their data starts.

    Raises:
        ValueError: the file is no whole safetensors file.
    """
    with path.open("rb") as handle:
        raw = handle.read(8)
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else 0
        if not 0 < length <= path.stat().st_size - 8:
            raise ValueError(f"{path.name} is cut off")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if path.stat().st_size != 8 + length + end:
        raise ValueError(f"{path.name} is cut off")
    return header, 8 + length


def sealed(record: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A manifest of these entries and its text; its `seal` is the sha256 of the text without it."""
    manifest = json.loads(json.dumps({**record, "schema": SCHEMA}))  # as it will be read: keys are strings there
    manifest["seal"] = _seal(manifest)
    return manifest, _text(manifest)


def read_manifest(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """A folder's manifest, or None and why it can't be trusted (None and None if there is none).

    Every bit of it counts: the text has to be the very one that was written, and its seal has to hold.

    Raises:
        ConfigurationError: another version wrote it.
    """
    if not folder.is_dir():
        return None, f"{folder} is no folder"
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None, None
    except OSError:
        return None, f"{MANIFEST} can't be read"
    return parse_manifest(text, folder)


def parse_manifest(data: bytes, folder: Path | str = "") -> tuple[dict[str, Any] | None, str | None]:
    """`read_manifest` of the bytes of one that lies in `folder`."""
    try:
        text = data.decode()
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        return None, f"{MANIFEST} can't be read"
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return None, f"{MANIFEST} lists no files"
    schema = manifest.get("schema")
    if schema == 1 and "seal" not in manifest:
        return manifest, None
    intact = manifest.get("seal") == _seal(manifest) and text == _text(manifest)
    # A damaged digit stays one digit, so a longer number is another version's, however that seals.
    if schema != SCHEMA and isinstance(schema, int) and (intact or schema > 9):
        raise ConfigurationError(
            f"{folder}/{MANIFEST} has schema {schema}, this version reads up to {SCHEMA}: use another --workspace, or "
            "the version that wrote it."
        )
    return (manifest, None) if intact else (None, f"{MANIFEST} isn't what was published: its seal doesn't hold")


def _text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


def _seal(manifest: Mapping[str, Any]) -> str:
    text = _text({name: value for name, value in manifest.items() if name != "seal"})
    return hashlib.sha256(text.encode()).hexdigest()


def _exists(folder: Path, manifest: dict[str, Any] | None, tell: Callable[[], None]) -> str | None:
    if manifest is not None:
        missing = [name for name in manifest["files"] if not (folder / name).is_file()]
        return f"{missing[0]} is missing" if missing else None
    try:
        check_model_folder(folder)
    except ConfigurationError as error:
        return str(error).rstrip(".")
    return None


def _size(folder: Path, manifest: dict[str, Any] | None, tell: Callable[[], None]) -> str | None:
    for name, entry in (manifest["files"] if manifest else {}).items():
        if (size := (folder / name).stat().st_size) != entry["size"]:
            return f"{name} has {size} bytes instead of {entry['size']}"
    return None


def _finite(folder: Path, manifest: dict[str, Any] | None, tell: Callable[[], None]) -> str | None:
    for path in sorted(folder.rglob("*.safetensors")):
        tell()
        try:
            bad = next(_not_finite(path), None)
        except (ValueError, KeyError, TypeError) as error:
            return f"{path.relative_to(folder)} is no whole safetensors file ({error})"
        if bad:
            return f"{path.relative_to(folder)} has NaN or Inf in {bad}"
    return None


def _not_finite(path: Path) -> Iterator[str]:
    """Names of the tensors that hold a NaN or an Inf; bfloat16 is read by its bits, since numpy lacks it."""
    import numpy as np

    types = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    header, start = read_header(path)
    with path.open("rb") as handle:
        for name, entry in header.items():
            if entry["dtype"] not in types:
                continue
            begin, end = entry["data_offsets"]
            for offset in range(begin, end, CHUNK_BYTES):
                handle.seek(start + offset)
                block = np.frombuffer(handle.read(min(CHUNK_BYTES, end - offset)), dtype=types[entry["dtype"]])
                bad = (block & 0x7F80) == 0x7F80 if entry["dtype"] == "BF16" else ~np.isfinite(block)
                if bad.any():
                    yield name
                    break


def _digest(folder: Path, manifest: dict[str, Any] | None, tell: Callable[[], None]) -> str | None:
    if manifest is None:
        return f"there is no {MANIFEST} to compare with; a folder from elsewhere can be checked up to `finite`"
    for name, entry in manifest["files"].items():
        tell()
        with (folder / name).open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != entry["sha256"]:
                return f"{name} isn't what was published: its sha256 differs"
    return None


def _generates(folder: Path, manifest: dict[str, Any] | None, tell: Callable[[], None]) -> str | None:
    if not (folder / "config.json").is_file():
        return "it holds no model at its top level (config.json)"
    from vibethinker import models
    from vibethinker.generation.transformers_engine import TransformersEngine

    try:
        tokenizer = models.load_tokenizer(folder)
        engine = TransformersEngine(models.load_model(folder), tokenizer)
        prompt = tokenizer("1+1=")["input_ids"]
        [[completion]] = engine.generate([prompt], samples=1, max_tokens=4, temperature=0.0, top_p=1.0, seed=0)
    except Exception as error:  # whatever a foreign folder makes the loader raise is the answer
        return f"it doesn't load and generate ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return None if completion.tokens else "it loads but produces no token"


_CHECKS: dict[str, Callable[[Path, dict[str, Any] | None, Callable[[], None]], str | None]] = {
    "exists": _exists,
    "size": _size,
    "finite": _finite,
    "digest": _digest,
    "generates": _generates,
}
