"""What can be known to be wrong before anything starts: files, model folders, extras.

A run that fails here has written nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vibethinker import hardware, validation, verifiers
from vibethinker.config import Config
from vibethinker.data import sources
from vibethinker.data.filters import ProblemFilter
from vibethinker.data.prepare import SPLITS
from vibethinker.data.readers import Bad
from vibethinker.data.settings import AUTO
from vibethinker.data.sources import Read
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.plan import Plan, role_of
from vibethinker.requirements import check_requirements
from vibethinker.verification import Verifier

MODEL_ROLES = ("base", "specialist", "fusion", "signal", "distilled")
LOOKED_AT = 100  # rows
SUSPECTED = 2000  # rows of a source among whose first hundred too many are bad


def check(plan: Plan) -> None:
    """Refuse a run that can't succeed.

    Raises:
        ConfigurationError, DataError: one sentence with the cause and the mend.
    """
    config = plan.config
    trains = bool(plan.ids("specialist", "signal", "distilled"))
    check_requirements(config, trains=trains)
    if trains:
        hardware.check_processes(config)
    for step in plan.steps:
        source = step.outside.get("source") or step.outside.get("local")
        if not source or not Path(source).is_dir() or role_of(step) not in MODEL_ROLES:
            continue
        if reason := validation.check(Path(source), "exists"):
            raise ConfigurationError(f"{source} can't be {step.id}: {reason}.")
    ProblemFilter(config.data.filters)  # refuses a language that nothing recognises
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
    """Read the start of every local file, so that wrong columns are told with file and line before hours of work.

    What the data step would accept isn't refused: it judges a file as a whole, and evaluation sets as published.
    """
    data, found, whole = config.data, Counter[str](), True
    for file, is_trained in (*((f, True) for f in data.train), *((f, False) for f in data.evaluation)):
        if file.path is None:
            whole &= not is_trained
            continue
        place = sources.resolve(file.path, data.directory)
        domains, bad, ended = _look_at(sources.read(file, [place], as_published=not is_trained), data.bad_rows)
        rows = len(domains) + len(bad)
        if bad and (ended or not domains) and len(bad) > data.bad_rows * rows:
            first = bad[0].found
            assert isinstance(first, Bad)
            where = (place if place.is_dir() else place.parent) / bad[0].origin
            raise DataError(
                f"{len(bad)} of the {'' if ended else 'first '}{rows} rows of {place} can't be used, more than "
                f"data.bad_rows {data.bad_rows:.2%}: mend them or the source's columns, or raise data.bad_rows; the "
                f"first, {where}: {first.reason}."
            )
        if is_trained:
            found.update(domains)
            whole &= ended and AUTO not in domains
        elif not domains:
            raise DataError(f"The data file {place} has no row: fill it, or take it out of the configuration.")
    for domain in config.domains if whole else ():
        if found[domain] < len(SPLITS):
            raise DataError(
                f"The domain {domain!r} has {found[domain]} problems in {', '.join(f.title for f in data.train)}, and "
                f"each of {', '.join(SPLITS)} needs one: add problems, or leave the domain out of domains."
            )


def _look_at(rows: Iterator[Read], share: float) -> tuple[list[str], list[Read], bool]:
    """The domains of a source's first good rows, its bad ones, and whether there are no more: a hundred rows where no
    more than this share of them is bad, else as many as the data step takes before it gives a source up."""
    domains: list[str] = []
    bad: list[Read] = []
    for one in rows:
        seen = len(domains) + len(bad)
        if seen >= SUSPECTED or (seen >= LOOKED_AT and len(bad) <= share * seen):
            return domains, bad, False
        if isinstance(one.found, Bad):
            bad.append(one)
        else:
            domains.append(one.found.problem.domain)
    return domains, bad, True
