"""Which folder a user means by MODEL, and what the workspace knows of it.

MODEL is a model or adapter folder, a published output with a model at its top level, or the id of a step of a run
(`fusion`, `signal-2`, `distilled`). `specialist-<domain>` is the checkpoint that probing chose for the domain,
whichever training it is of: the specialist's own, its second stage, or that of all domains together. Of a published one
the run that made it is known, and with it configuration, scores and data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vibethinker import runs, validation
from vibethinker.artifacts import Artifact, Store
from vibethinker.errors import ConfigurationError
from vibethinker.models.files import ADAPTER_CONFIG, CONFIG, check_model_folder, is_adapter

MODEL_FILES = (CONFIG, ADAPTER_CONFIG)
SPECIALISTS = ("specialist", "hard")  # steps, before the first dash, that leave checkpoints


@dataclass(frozen=True)
class Found:
    """A model that can be loaded.

    Attributes:
        folder: of the model or adapter.
        base: the model folder of an adapter.
        id: the step that made it, or the folder's name.
        output: the published output that holds it.
        run: the folder of the run that is known to have it.
    """

    folder: Path
    base: Path | None
    id: str
    output: Artifact | None = None
    run: Path | None = None

    @property
    def name(self) -> str:
        """A name for people and files."""
        profile = self.config.get("profile")
        return f"vibethinker-{profile}-{self.id}" if profile else self.id

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The run's resolved configuration; empty where there is none."""
        path = self.run / "config.yaml" if self.run else None
        return yaml.safe_load(path.read_text()) if path and path.is_file() else {}

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """The run's summary; empty where there is none."""
        return runs.read_summary(self.run) if self.run else {}

    def input(self, step: str) -> Artifact | None:
        """What a step of the same run has published, if it is still there."""
        entry = next((s for s in self.summary.get("steps", ()) if s["id"] == step), None)
        return Store(self.run.parents[1]).read(step, entry["fingerprint"]) if entry and self.run else None


def find(model: str, workspace: Path, run_id: str | None = None, base: Path | None = None) -> Found:
    """The model that `model` names; what is published is read to its end before anybody relies on it.

    Args:
        workspace: in which step ids are looked up.
        run_id: whose steps they are; None is the latest run.
        base: the model of an adapter; None looks for the published one that it was trained on.

    Raises:
        ConfigurationError: there is no such model, it is damaged, or an adapter's base is unknown.
    """
    folder = Path(model).expanduser()
    run = None
    if not folder.is_dir():
        run = runs.latest(workspace) if run_id is None else workspace / "runs" / run_id
        folder = _of_step(model, workspace, run)
    if not any((folder / name).is_file() for name in MODEL_FILES):
        inner = sorted(p.parent.relative_to(folder).as_posix() for n in MODEL_FILES for p in folder.glob(f"*/*/{n}"))
        hint = f"name one of those in it: {', '.join(inner)}" if inner else "name a model's folder"
        raise ConfigurationError(f"{folder} has no {CONFIG} at its top level: {hint}.")
    check_model_folder(folder)
    validation.refuse_damaged(folder)
    output = _published(folder)
    if is_adapter(folder) and base is None:
        base = _base_of(output) if output else None
        if base is None:
            raise ConfigurationError(f"{folder} holds an adapter: name the model it was trained on with --base.")
    if base is not None:
        check_model_folder(base)
        validation.refuse_damaged(base)
    if run is None and output is not None:
        run = _run_of(output)
    return Found(folder, base, output.manifest["step"] if output else folder.absolute().name, output, run)


def _of_step(step: str, workspace: Path, run: Path) -> Path:
    """The folder of the model that a step of this run left."""
    summary = runs.read_summary(run)
    steps = {entry["id"]: entry for entry in summary["steps"]}
    probes = {f"specialist-{i.removeprefix('probe-')}": i for i in steps if i.startswith("probe-")}
    models = [i for i in steps if i.split("-")[0] in ("base", *SPECIALISTS, "fusion", "signal", "distilled")]
    known = list(dict.fromkeys([*models, *probes]))
    if step not in known:
        raise ConfigurationError(
            f"There is no folder {step}, and no model of that name in the run {run.name}: it has {', '.join(known)}."
        )
    probe, made = steps.get(probes.get(step, "")), step
    if probe is not None:
        made = next((i for i in probe.get("depends_on", ()) if i.split("-")[0] in SPECIALISTS), step)
    artifact = Store(workspace).read(made, steps[made]["fingerprint"])
    if artifact is None:
        raise ConfigurationError(f"{made} isn't published in the run {run.name} (yet): `vibethinker status` says why.")
    chosen = Store(workspace).read(probe["id"], probe["fingerprint"]) if probe is not None else None
    if chosen is None:
        return artifact.folder  # of a specialist, whose checkpoints are named then
    return artifact.folder / "checkpoints" / json.loads((chosen.folder / "probe.json").read_text())["selected"]


def _published(folder: Path) -> Artifact | None:
    """The output that a folder is, or is a checkpoint of."""
    absolute = folder.resolve()
    for place in (absolute, *absolute.parents[:2]):
        manifest, _ = validation.read_manifest(place)
        if manifest is not None and "step" in manifest:
            return Artifact(place, manifest)
    return None


def _base_of(output: Artifact) -> Path | None:
    """The published model that an adapter's step read, by the digest that it noted."""
    wanted = {output.manifest["inputs"].get(role) for role in ("base", "model")} - {None}
    for path in sorted(output.folder.parents[1].glob(f"*/*/{validation.MANIFEST}")):
        manifest, _ = validation.read_manifest(path.parent)
        if manifest and (path.parent / CONFIG).is_file() and Artifact(path.parent, manifest).digest in wanted:
            return path.parent
    return None


def _run_of(output: Artifact) -> Path | None:
    """The folder of the run that made an output, where it lies in a workspace that still has it."""
    workspace = output.folder.parents[2] if len(output.folder.parents) > 2 else None
    run = workspace / "runs" / str(output.manifest.get("run_id")) if workspace else None
    return run if run and (run / "summary.json").is_file() else None
