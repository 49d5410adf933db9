"""The file of an experiment: what is compared with what, over which seeds, and by which rule; and the runs of it.

Arms are named partial configurations, laid over what they share, which is laid over a profile. A setting may be written
in nested keys or with dots, and dots reach into lists (`signal.stages.0.steps`). Axes multiply the arms. An arm and a
seed make a run. Of the environment only VIBETHINKER_WORKER_PYTHON counts, since a variable would win over the arms.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from vibethinker import config as configuration
from vibethinker.config import Config
from vibethinker.errors import ConfigurationError
from vibethinker.experiments import statistics
from vibethinker.fields import Settings, setting
from vibethinker.messages import explain
from vibethinker.plan import Plan, build

NAME = r"^[a-z0-9][a-z0-9._-]*$"
SEEDED = {"signal": "signal.seed", "spectrum": "spectrum.seed", "everything": "seed"}
FINAL = "final"


class Comparison(Settings):
    """One question that is put to each arm, against the control."""

    metric: str = setting("avg", "avg: the share of right samples; pass@K", pattern=r"^(avg|pass@[1-9][0-9]*)$")
    sets: tuple[str, ...] | None = setting(None, "evaluation sets, whose problems are pooled; None: all")
    model: str = setting(FINAL, "which model: final, base, fusion, signal-1, specialist-algebra, …")
    control: str | None = setting(None, "the arm to compare with; None: the experiment's")
    arms: tuple[str, ...] | None = setting(None, "the arms to compare; None: all others")

    @property
    def k(self) -> int | None:
        """K of pass@K."""
        return None if self.metric == "avg" else int(self.metric.removeprefix("pass@"))


class Futility(Settings):
    """When an arm is given up: at a look none of its comparisons can still hope for `gain`."""

    looks: tuple[int, ...] = setting(..., "after how many seeds", min_length=1)
    gain: float = setting(..., "the least difference worth having, as a share (0.01 is a point)", gt=0)
    risk: float = setting(
        0.05, "how likely an arm that has it may wrongly be given up, over all looks", gt=0, lt=0.5
    )  # fmt: skip


class Design(Settings):
    """All of an experiment's file."""

    name: str = setting(..., "begins the experiment's id", pattern=NAME)
    question: str = setting("", "what is asked, for the report")
    profile: str = setting("tiny", "the profile that all runs start from")
    config: str | None = setting(None, "a YAML file laid over the profile; relative to this one")
    settings: dict[str, Any] = setting(dict, "settings that all arms share")
    arms: dict[str, dict[str, Any] | None] = setting(dict, "name → the settings in which this arm differs")
    axes: dict[str, tuple[Any, ...]] = setting(dict, "setting → values, by which the arms are multiplied")
    control: str = setting(..., "the arm that the others are compared with")
    seeds: tuple[int, ...] = setting((1, 2, 3), "one run an arm and seed", min_length=1)
    reseed: Literal["signal", "spectrum", "everything"] = setting(
        "signal", "what a seed draws anew: the stages, specialists and all after them, or data and base too"
    )
    comparisons: tuple[Comparison, ...] = setting(..., "what is tested, declared beforehand", min_length=1)
    alpha: float = setting(0.05, "the probability that any difference is wrongly called significant", gt=0, lt=0.5)
    futility: Futility | None = setting(None, "when arms are given up early; None: never")
    at_once: int = setting(1, "runs side by side; steps still take turns on the same slots and GPUs", ge=1)

    @property
    def rounds(self) -> list[tuple[int, tuple[int, ...]]]:
        """Of each round how many seeds are made by its end, and its seeds. A round ends with a look, so that nothing
        which the look may give up has begun."""
        looks = self.futility.looks if self.futility else ()
        ends = sorted({*looks, len(self.seeds)})
        return [(end, self.seeds[begin:end]) for begin, end in itertools.pairwise([0, *ends])]


@dataclass(frozen=True)
class Cell:
    """An arm with a seed: one run."""

    arm: str
    seed: int
    plan: Plan

    @property
    def title(self) -> str:
        """What it is called where people read of it."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def config(self) -> Config:
        """Its settings."""
        return self.plan.config

    def evaluation(self, model: str) -> str:
        """The step that measures this model."""
        return f"evaluation-{self.plan.final_model if model == FINAL else model}"


@dataclass(frozen=True)
class Experiment:
    """A design with its runs, in the order in which they are made: seed by seed, the control first.

    `arms` has each arm's own settings, axes included.
    """

    design: Design
    arms: Mapping[str, Mapping[str, Any]]
    cells: tuple[Cell, ...]
    workspace: Path

    @cached_property
    def id(self) -> str:
        """The design's name and a digest of all that decides what comes out: another design is another experiment."""
        content = {
            "cells": [[cell.arm, cell.seed, cell.plan.fingerprints] for cell in self.cells],
            "rules": self.rules,
            "statistics": statistics.VERSION,
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.design.name}-{digest[:8]}"

    @property
    def folder(self) -> Path:
        """Where what is said of it goes."""
        return self.workspace / "experiments" / self.id

    @property
    def rules(self) -> dict[str, Any]:
        """What was declared beforehand, beside the arms."""
        kept = ("control", "seeds", "reseed", "comparisons", "alpha", "futility")
        return {name: value for name, value in self.design.model_dump(mode="json").items() if name in kept}

    def of_seed(self, seed: int) -> list[Cell]:
        """The runs of one seed."""
        return [cell for cell in self.cells if cell.seed == seed]

    def pairs(self) -> Iterator[tuple[Comparison, str, str]]:
        """Each comparison with its control and one of its arms: the family that is corrected for."""
        for comparison in self.design.comparisons:
            control = comparison.control or self.design.control
            yield from ((comparison, control, arm) for arm in comparison.arms or self.arms if arm != control)


class _Loader(yaml.SafeLoader):
    """YAML whose keys are unique: PyYAML would silently take the last of two arms of one name."""


def _unique(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if twice := next((key for i, key in enumerate(keys) if key in keys[:i]), None):
        raise ConfigurationError(f"{twice!r} is there twice (line {node.start_mark.line + 1}): rename or remove one.")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique)


def read(file: Path) -> dict[str, Any]:
    """The plain values of an experiment's file, `config` made absolute.

    Raises:
        ConfigurationError: it can't be read, or isn't YAML with unique keys.
    """
    text = configuration.read_text(file, f"The experiment {file}")
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"The experiment {file} isn't valid YAML: {' '.join(str(error).split())}.") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"The experiment {file}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"The experiment {file} must hold keys and values: see docs/experiments.md.")
    if isinstance(values.get("config"), str):
        values["config"] = str((file.parent / Path(values["config"]).expanduser()).absolute())
    return values


def overridden(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The values with `a.b=value` texts laid over what the arms share, beneath the arms.

    Raises:
        ConfigurationError: a text has another form.
    """
    shared = dict(values.get("settings") or {})
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(f"--set takes KEY=VALUE such as execution.slots=1, not {text!r}.")
        try:
            shared[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigurationError(f"--set {key}: {value!r} isn't a YAML value; quote it.") from None
    return {**values, "settings": shared} if shared else dict(values)


def make(values: Mapping[str, Any], workspace: Path) -> Experiment:
    """The experiment that a file's values describe, every run planned.

    Raises:
        ConfigurationError, DataError: in one sentence, what is wrong and how to mend it.
    """
    try:
        design = Design.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigurationError(explain(error, Design)) from None
    arms = _arms(design)
    order = [design.control, *(arm for arm in arms if arm != design.control)]
    _check(design, arms)
    shared = list(_texts(design.settings))
    cells = tuple(_cell(design, arm, arms[arm], seed, shared, workspace) for seed in design.seeds for arm in order)
    found = Experiment(design, {arm: arms[arm] for arm in order}, cells, workspace)
    _check_runs(found)
    return found


def _arms(design: Design) -> dict[str, dict[str, Any]]:
    """Arm → its settings, with every combination of the axes' values."""
    arms: dict[str, dict[str, Any]] = {}
    points = itertools.product(*([(key, value) for value in values] for key, values in design.axes.items()))
    for point in points if design.axes else [()]:
        words = [f"{key.rpartition('.')[2]}-{_word(value)}" for key, value in point]
        for name, own in (design.arms or {"": {}}).items():
            arm = "-".join([*([name] if name else []), *words])
            if not re.match(NAME, arm):
                raise ConfigurationError(
                    f"An arm can't be named {arm!r}: use small letters, digits, points, hyphens and underscores."
                )
            if arm in arms:
                raise ConfigurationError(f"Two arms are named {arm!r}: rename one, or an axis's value.")
            arms[arm] = {**(own or {}), **dict(point)}
    return arms


def _word(value: Any) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", str(value).lower()).strip("-")


def _check(design: Design, arms: Mapping[str, Any]) -> None:
    named = [("control", design.control)]
    for number, comparison in enumerate(design.comparisons):
        at = f"comparisons.{number}"
        named += [(f"{at}.control", comparison.control)] if comparison.control else []
        named += [(f"{at}.arms", arm) for arm in comparison.arms or ()]
    for where, arm in named:
        if arm not in arms:
            raise ConfigurationError(f"{where} is {arm!r}, which is no arm; the arms are {', '.join(arms)}.")
    if len(arms) < 2:
        raise ConfigurationError("An experiment compares arms with a control: give it two arms or more.")
    if len(set(design.seeds)) < len(design.seeds):
        raise ConfigurationError("seeds has one seed twice: a run repeated is the same run, so leave it out.")
    if design.futility:
        for look in design.futility.looks:
            if not 2 <= look < len(design.seeds):
                raise ConfigurationError(
                    f"futility.looks has {look}: look after 2 seeds or more, before the last of {len(design.seeds)}."
                )


def _cell(
    design: Design, arm: str, own: Mapping[str, Any], seed: int, shared: list[str], workspace: Path
) -> Cell:  # fmt: skip
    texts = [*shared, *_texts(own), f"{SEEDED[design.reseed]}={seed}"]
    python = "VIBETHINKER_WORKER_PYTHON"
    environ = {python: os.environ[python]} if os.environ.get(python) else {}
    try:
        config = configuration.load(design.profile, design.config, texts, environ=environ)
        if wanted := [name for name in ("signal", "promotion") if getattr(config.approvals, name)]:
            raise ConfigurationError(
                f"approvals.{wanted[0]} would have every run wait for somebody: leave it off in an experiment."
            )
        return Cell(arm, seed, build(config, workspace))
    except ConfigurationError as error:
        raise ConfigurationError(f"Arm {arm!r}: {error}") from None


def _texts(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`a.b=value` for each leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _texts(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"


def _check_runs(experiment: Experiment) -> None:
    """Refuse arms that are the same, comparisons of what isn't measured, and several runs at once on Ray."""
    if experiment.design.at_once > 1 and any(cell.config.scaling.runner == "ray" for cell in experiment.cells):
        raise ConfigurationError(
            f"at_once is {experiment.design.at_once} and scaling.runner is ray, whose cluster serves one run at a "
            "time: set at_once to 1, or scaling.runner to threads."
        )
    seen: dict[str, str] = {}
    for cell in experiment.of_seed(experiment.design.seeds[0]):
        made = json.dumps(cell.plan.fingerprints, sort_keys=True)
        if other := seen.get(made):
            raise ConfigurationError(
                f"The arms {other!r} and {cell.arm!r} compute the same: one of their settings isn't what you meant, or "
                "leave one out."
            )
        seen[made] = cell.arm
    by_arm = {cell.arm: cell for cell in experiment.cells}
    for comparison, control, arm in experiment.pairs():
        for name in (control, arm):
            cell = by_arm[name]
            step, evaluation = cell.evaluation(comparison.model), cell.config.evaluation
            measured = cell.plan.ids("evaluation")
            if step not in measured:
                models = ", ".join(one.removeprefix("evaluation-") for one in measured)
                raise ConfigurationError(
                    f"A comparison's model is {comparison.model!r}, which arm {name!r} doesn't measure: it has "
                    f"{models}."
                )
            if (comparison.k or 1) > evaluation.samples:
                raise ConfigurationError(
                    f"A comparison's metric is {comparison.metric}, and arm {name!r} draws {evaluation.samples} "
                    "samples: raise evaluation.samples, or lower K."
                )
            sets = _sets(cell, step)
            for wanted in comparison.sets or ():
                if wanted not in sets:
                    raise ConfigurationError(
                        f"A comparison's sets have {wanted!r}, on which arm {name!r} doesn't measure "
                        f"{comparison.model}: the sets are {', '.join(sets)}."
                    )


def _sets(cell: Cell, step: str) -> tuple[str, ...]:
    data, of_step = cell.config.data, cell.plan[step].settings["sets"]
    every = cell.config.domains if data.source == "procedural" else tuple(file.title for file in data.evaluation)
    return tuple(of_step) if of_step is not None else every
