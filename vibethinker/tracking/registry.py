"""The registry: every finished run's model is its name's `candidate`, and the `champion` is the best one so far.

A candidate takes the champion's place only if it is better on the configured benchmark: of the problems that both were
measured on, with the same settings and the same content, its share of right samples is higher, and significantly so by
the paired sign-flip test (`vibethinker.evaluation.comparison`). The first that was measured has nobody to beat. What
was decided, and why, is recorded on the version, also where the champion stays.

The outcomes that are compared lie beside the model as the run's artefact `evaluation/outcomes.jsonl`, so that a run on
another machine can compare its own with them.

A model is judged once by the same benchmark. The decision is written down before the alias moves, so that it may be
applied twice without harm: the second time moves the alias if that hadn't happened, and the champion is still the one
that was beaten.

Left out: a correction for the number of candidates that have been tried against one champion.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vibethinker.errors import DataError

CANDIDATE, CHAMPION = "candidate", "champion"  # aliases
PREFIX = "vibethinker."
OUTCOMES, FOLDER = "outcomes.jsonl", "evaluation"
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Offer:
    """A finished run's model.

    Attributes:
        name: of the registered model.
        artifact: step and fingerprint, by which a version is known again.
        run: MLflow's id of the pipeline run, of which the model and its outcomes are artefacts.
        time_ms: when the run had finished.
        sets: evaluation set → a digest of its problems and of how they were measured.
        benchmark: the set that decides; None: all.
        outcomes: rows of outcomes.jsonl; none where the model wasn't measured.
        tags: further ones of the version.
    """

    name: str
    artifact: str
    run: str
    time_ms: int
    sets: Mapping[str, str] = field(default_factory=dict)
    benchmark: str | None = None
    outcomes: Rows = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def measured(self) -> dict[str, str]:
        """The sets that decide."""
        return {name: digest for name, digest in self.sets.items() if self.benchmark in (None, name)}

    @property
    def key(self) -> str:
        """By what the model was judged."""
        return hashlib.sha256(json.dumps(self.measured, sort_keys=True).encode()).hexdigest()[:16]


def offer(client: Any, one: Offer) -> str:
    """Register a model and decide whether it becomes champion; returns the sentence that says why."""
    from mlflow import MlflowException

    try:
        client.create_registered_model(one.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = _version(client, one)
    held = _alias(client, one.name, CANDIDATE)
    if held is None or int(held.tags.get(f"{PREFIX}time_ms", 0)) <= one.time_ms:
        client.set_registered_model_alias(one.name, CANDIDATE, version.version)
    return _promote(client, one, version)


def _version(client: Any, one: Offer) -> Any:
    """The version of this model, made if there is none, with the outcomes by which it is judged now."""
    found = client.search_model_versions(f"name = '{one.name}'", max_results=1000)
    version = next((v for v in found if v.tags.get(f"{PREFIX}artifact") == one.artifact), None)
    tags = {
        **{f"{PREFIX}{name}": value for name, value in one.tags.items()},
        f"{PREFIX}sets": json.dumps(one.sets, sort_keys=True),
        f"{PREFIX}outcomes_run": one.run,
        f"{PREFIX}time_ms": str(one.time_ms),
    }
    if version is None:
        source = f"{client.get_run(one.run).info.artifact_uri}/model"
        tags[f"{PREFIX}artifact"] = one.artifact
        return client.create_model_version(one.name, source, one.run, tags=tags, await_creation_for=30)
    if one.outcomes:
        for name, value in tags.items():
            client.set_model_version_tag(one.name, version.version, name, value)
    return version


def _promote(client: Any, one: Offer, version: Any) -> str:
    champion = _alias(client, one.name, CHAMPION)
    if champion is not None and str(champion.version) == str(version.version):
        return version.tags.get(f"{PREFIX}why", "It is the champion already.")
    against = None if champion is None else champion.version
    key, _, before = version.tags.get(f"{PREFIX}judged", "").partition(" ")
    if key == one.key:
        why = version.tags[f"{PREFIX}why"]
        promoted = version.tags[f"{PREFIX}promotion"] == "promoted" and before == str(against)
    else:
        promoted, why = judge(client, one, champion)
        for name, value in {
            "why": why,
            "promotion": "promoted" if promoted else "kept",
            "judged": f"{one.key} {against}",
        }.items():
            client.set_model_version_tag(one.name, version.version, f"{PREFIX}{name}", value)
        client.update_model_version(one.name, version.version, why)
    if promoted:
        client.set_registered_model_alias(one.name, CHAMPION, version.version)
    return why


def judge(client: Any, one: Offer, champion: Any | None) -> tuple[bool, str]:
    """Whether the model takes the champion's place, and why."""
    from mlflow import MlflowException

    if not one.outcomes or not one.measured:
        return False, f"It can't be champion: it wasn't measured{f' on {one.benchmark}' if one.benchmark else ''}."
    if champion is None:
        return True, "It is the first champion of this name, since there was none to beat."
    rival = f"version {champion.version}"
    theirs = json.loads(champion.tags.get(f"{PREFIX}sets", "{}"))
    common = {name for name, digest in one.measured.items() if theirs.get(name) == digest}
    if not common:
        what = f"the benchmark {one.benchmark}" if one.benchmark else "an evaluation set"
        return False, f"It doesn't replace {rival}: the two weren't measured on {what} with the same problems alike."
    try:
        rows = _outcomes(client, champion.tags[f"{PREFIX}outcomes_run"])
    except (MlflowException, OSError, KeyError, ValueError):
        return False, f"It doesn't replace {rival}, whose outcomes can't be read."
    return better(
        [row for row in rows if row["set"] in common],
        [row for row in one.outcomes if row["set"] in common],
        rival,
        ", ".join(sorted(common)),
    )


def better(champion: Rows, candidate: Rows, rival: str, scope: str) -> tuple[bool, str]:
    """Whether the candidate's share of right samples is significantly higher, and the sentence that says so."""
    from vibethinker.evaluation.comparison import compare

    try:
        found = compare(champion, candidate)
    except DataError as error:
        return False, f"It doesn't replace {rival}: {error}"
    samples = max((len(row["verdicts"]) for row in candidate if "verdicts" in row), default=0)
    numbers = f"{100 * found.difference:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    how = f"avg@{samples} {numbers} on {scope}, {found.problems} problems, paired, p = {found.p:.2g}"
    if found.difference > 0 and found.significant:
        return True, f"It replaces {rival}: {how}."
    judged = "significantly worse" if found.significant else "no significant difference"
    return False, f"It doesn't replace {rival}: {how}, {judged}."


def _outcomes(client: Any, run: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run, f"{FOLDER}/{OUTCOMES}", folder)
        return read_outcomes(Path(path))


def read_outcomes(path: Path) -> list[dict[str, Any]]:
    """The rows of an outcomes.jsonl."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _alias(client: Any, name: str, alias: str) -> Any | None:
    from mlflow import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
