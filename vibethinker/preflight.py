"""What can be known to be wrong before anything starts: files, model folders, extras.

A run that fails here has written nothing.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

from vibethinker import validation
from vibethinker.config import Config
from vibethinker.data import sources
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.execution import check_trainable
from vibethinker.plan import Plan, role_of
from vibethinker.settings import CODE_DOMAIN

MODEL_ROLES = ("base", "specialist", "fusion", "signal")


def check(plan: Plan) -> None:
    """Refuse a run that can't succeed.

    Raises:
        ConfigurationError, DataError: one sentence with the cause and the mend.
    """
    config = plan.config
    if config.worker.python is None and importlib.util.find_spec("trl") is None:
        raise ConfigurationError(
            "The training libraries aren't installed here: install vibethinker[train], or name an interpreter that "
            "has them by worker.python."
        )
    if plan.ids("specialist", "signal"):
        check_trainable(config.base_model.backend, config.base_model.quantization)
    runs_code = CODE_DOMAIN in config.domains or any(s.reward == "code" for s in config.signal.stages)
    runs_code = runs_code or any(f.columns.tests for f in (*config.data.train, *config.data.evaluation))
    if runs_code and not config.verification.allow_unsafe_code:
        raise ConfigurationError(
            "The run would execute programs that a model wrote, under resource limits but in no sandbox: set "
            "verification.allow_unsafe_code=true on a machine where that is acceptable, or leave out the domain code "
            "and the stages that reward it."
        )
    for step in plan.steps:
        source = step.outside.get("source") or step.outside.get("local")
        if not source or not Path(source).is_dir() or role_of(step) not in MODEL_ROLES:
            continue
        if reason := validation.check(Path(source), "exists"):
            raise ConfigurationError(f"{source} can't be {step.id}: {reason}.")
    if config.data.source == "files":
        _check_files(config)
    for step in plan.steps:
        for said in ("train_data", "validation_data") if step.kind == "signal" else ():
            if path := step.settings["stage"][said]:
                sources.read_stage_file(Path(step.outside[path]), step.settings["stage"]["reward"])


def _check_files(config: Config) -> None:
    """Read every row once, so that a malformed one is told with its file and line before hours of work."""
    data, found = config.data, Counter[str]()
    for file in data.train:
        candidates, _ = sources.read_candidates(file, sources.resolve(file.path, data.directory), config.domains)
        found.update(c.problem.domain for c in candidates)
    for file in data.evaluation:
        path = sources.resolve(file.path, data.directory)
        candidates, _ = sources.read_candidates(file, path, None)
        if not candidates:
            raise DataError(f"The evaluation file {path} has no problem with a gold answer: correct its columns.")
    for domain in config.domains:
        if found[domain] <= data.probe + data.validation:
            raise DataError(
                f"The domain {domain!r} has {found[domain]} problems in {', '.join(f.path for f in data.train)}, but "
                f"probing and validation take {data.probe + data.validation} and training needs some: add problems, "
                "lower data.probe and data.validation, or leave the domain out of domains."
            )
