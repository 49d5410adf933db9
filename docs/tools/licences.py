"""Writes docs/licences.md from the metadata of what is installed: `python -m docs.tools.licences`, on Linux in the
environment that `make` makes. What a package says of itself is taken over; the texts aren't looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = Path(__file__).parents[1] / "licences.md"
EXTRAS = ("train", "service", "slack", "postgres", "ray", "s3")
UNSTATED = "not stated"
# What the licence files say of packages whose metadata says nothing.
READ = {"huey": "MIT", "skops": "MIT", "zss": "BSD"}
_HEAD = """\
# Licences of what is installed

<!-- Written by `python -m docs.tools.licences` from the packages' metadata: run it again, don't change this page. -->

vibethinker itself is under the MIT licence. This is what each package that it brings along says of its own licence,
without those that only tests and development need. The versions are those of `constraints.txt`, on Linux without a
GPU; torch's CUDA build brings NVIDIA's libraries, and vLLM and Unsloth more packages (`constraints-gpu.txt`). `make
dist` writes the same and more, of the whole environment, as a CycloneDX file beside the wheel.

| package | licence | comes with |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = [f"| {name} | {said} | {', '.join(extras)} |" for name, (said, extras) in sorted(brought().items())]
    return _HEAD + "\n".join(rows) + "\n"


def brought() -> dict[str, tuple[str, list[str]]]:
    """Package → its licence, and what brings it: `always`, or extras."""
    always = set(_needed("vibethinker", ()))
    found = {name: ["always"] for name in always}
    for extra in EXTRAS:
        for name in set(_needed("vibethinker", (extra,))) - always:
            found.setdefault(name, []).append(extra)
    return {name: (READ.get(name) or licence(metadata.metadata(name)), extras) for name, extras in found.items()}


def licence(said: metadata.PackageMetadata) -> str:
    """What a package's metadata says: its expression, else its classifiers, else the first line of what is written."""
    if expression := said.get("License-Expression"):
        return expression
    classified = [one for one in said.get_all("Classifier") or [] if one.startswith("License :: ")]
    names = [one.rpartition(" :: ")[2] for one in classified if one != "License :: OSI Approved"]
    written = (said.get("License") or "").strip().partition("\n")[0]
    return " · ".join(names) or written or UNSTATED


def _needed(name: str, extras: Iterable[str], seen: set[tuple[str, str]] | None = None) -> Iterator[str]:
    """All installed packages that one needs with these extras, itself left out."""
    seen = set() if seen is None else seen
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        needed = canonicalize_name(requirement.name)
        for extra in ("", *sorted(requirement.extras)):
            if (needed, extra) in seen or not _installed(needed):
                continue
            seen.add((needed, extra))
            yield needed
            yield from _needed(needed, (extra,) if extra else (), seen)


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
