"""What can be known to be wrong before anything starts: files, model folders, extras.

A run that fails here has written nothing.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

from vibethinker import validation, verifiers
from vibethinker.config import Config
from vibethinker.data import sources
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.execution import check_trainable
from vibethinker.plan import Plan, role_of
from vibethinker.verification import Verifier

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


def try_sandbox(config: Config) -> str:
    """Run a program in the sandbox that is configured, and tell its tier.

    Raises:
        ConfigurationError: none works here, and running without isn't allowed.
    """
    with Verifier(code=verifiers.limits(config.sandbox)) as verifier:
        return verifier.try_sandbox()


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
