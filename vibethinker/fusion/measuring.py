"""How good a model is over all domains, for choices that fusion makes: Pass@K on a split, one engine for all models.

A split's score is the mean over its domains, so that a domain with more problems counts no more. Every model draws with
the same seeds, and models are compared on the same problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vibethinker.evaluation.estimators import CONFIDENCE, RESAMPLES, pass_at_k

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vibethinker.data.schema import Problem
    from vibethinker.generation.opening import Engines
    from vibethinker.settings import Fusion, Probing, Prompts
    from vibethinker.steps import StepContext
    from vibethinker.verification import Verifier

Scores = Mapping[str, Sequence[float]]  # domain → Pass@K of each problem, NaN where the verifier left too few samples
Told = Callable[[str], None]


class Bench:
    """Problems by split and domain, and what measures a model on them.

    Args:
        measurements: by split, how many are to come, for the progress.
        progress: called with done and all samples of them, and what is done.
        warn: told what a reader should know of a measurement.
    """

    def __init__(
        self,
        engines: Engines,
        verifier: Verifier,
        splits: Mapping[str, Mapping[str, Sequence[Problem]]],
        probing: Probing,
        prompts: Prompts,
        seed: int,
        measurements: Mapping[str, int],
        progress: Callable[[int, int, str], None],
        warn: Told,
    ) -> None:
        self._engines, self._verifier, self._splits = engines, verifier, splits
        self._probing, self._prompts, self._seed = probing, prompts, seed
        self._progress, self._warn = progress, warn
        self.k = probing.k
        self._done, self._total = 0, sum(self._size(split) * count for split, count in measurements.items())

    @classmethod
    @contextmanager
    def of_step(cls, context: StepContext, verifier: Verifier) -> Iterator[Bench]:
        """The probe and validation splits of a step's data."""
        from vibethinker.probing import check_k, read_split
        from vibethinker.settings import Fusion, Probing, Prompts

        probing = Probing.model_validate(context.settings["probing"])
        search = context.settings["fusion"].get("search") or {}
        if search.get("samples"):
            probing = probing.model_copy(update={"samples": search["samples"]})
        check_k(probing)
        domains, data = context.settings["domains"], context.inputs["data"]
        splits = {s: {d: read_split(data, s, d) for d in domains} for s in ("probe", "validation")}
        prompts = Prompts.model_validate(context.settings["prompts"])
        opened = engines(context.execution, splits, prompts, probing)
        with opened as found:
            yield cls(
                found, verifier, splits, probing, prompts, context.settings["seed"],
                measurements(Fusion.model_validate(context.settings["fusion"]), len(domains)), context.emit.progress,
                context.emit.warning,
            )  # fmt: skip

    def scores(self, folder: Path, split: str, title: str) -> Scores:
        """Each problem's Pass@K by the whole model of a folder; `title` is how progress calls it."""
        from vibethinker.evaluation.measuring import derived_seed, faults, measure

        engine = self._engines.at(folder)
        found: dict[str, list[float]] = {}
        for domain, problems in self._splits[split].items():

            def report(done: int, _: int, doing: str, domain: str = domain) -> None:
                self._progress(self._done + done, self._total, f"{title}, {domain}: {doing}")

            outcomes = measure(
                engine, engine.tokenizer, self._verifier, problems, self._probing, self._prompts,
                derived_seed(self._seed, "fusion", split, domain), report,
            )  # fmt: skip
            self._done += len(problems) * self._probing.samples
            for fault in faults(outcomes):
                self._warn(f"{title}: {fault}")
            found[domain] = [
                pass_at_k(o.samples, o.correct, self.k) if o.samples >= self.k else float("nan") for o in outcomes
            ]
        engine.meter.take()
        return found

    def _size(self, split: str) -> int:
        return sum(map(len, self._splits[split].values())) * self._probing.samples


def measurements(settings: Fusion, models: int) -> dict[str, int]:
    """How many models a search and a comparison measure at most, by split."""
    probe = (settings.search.trials if settings.search else 0) + (models if settings.fallback != "none" else 0)
    return {"probe": probe, "validation": 2 * (settings.search is not None) + 2 * (settings.fallback != "none")}


def engines(execution: Mapping[str, Any], splits: Mapping[str, Mapping[str, Sequence[Problem]]], prompts: Prompts,
            probing: Probing) -> Engines:  # fmt: skip
    """Engines with room for all problems of these splits."""
    from vibethinker.evaluation.measuring import longest_sequence
    from vibethinker.generation.opening import Engines

    problems = [problem for split in splits.values() for some in split.values() for problem in some]
    return Engines(execution, lambda tokenizer: longest_sequence(tokenizer, problems, prompts, probing.max_tokens))


def mean(scores: Scores) -> float:
    """The mean over domains of their means over problems; 0 for a domain without any measured problem."""
    return float(np.mean([_mean(np.asarray(values)) for values in scores.values()]))


def interval(scores: Scores, minus: Scores | None = None) -> dict[str, float]:
    """`mean` of scores, or of their difference to another model's on the same problems, with its 95 % bootstrap
    interval: problems are drawn with replacement within each domain."""
    generator = np.random.default_rng(0)
    means = []
    value = []
    for domain, values in scores.items():
        found = np.asarray(values) - (0 if minus is None else np.asarray(minus[domain]))
        found = found[~np.isnan(found)]
        value.append(_mean(found))
        drawn = found[generator.integers(0, max(1, found.size), (RESAMPLES, found.size))] if found.size else None
        means.append(np.zeros(RESAMPLES) if drawn is None else drawn.mean(axis=1))
    low, high = np.quantile(np.mean(means, axis=0), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"value": float(np.mean(value)), "low": float(low), "high": float(high)}


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else 0.0
