"""Search for the weights by which a fused model solves most: Pass@K on the probe split, told on held-out problems.

The first weighting is the uniform one; then half of the others are drawn evenly from all weightings (Dirichlet, 1
each), and the rest close to the best so far (Dirichlet around it). The highest score wins, of equal ones the earlier.
The maximum of many scores flatters, so the winner and the uniform weighting are measured once more on problems that no
choice has seen, and compared there on the same ones.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vibethinker.fusion.measuring import Bench, interval, mean
from vibethinker.settings import Fusion

CLOSE = 30.0  # the sum of a Dirichlet's parameters close to the best: a weight of a half varies by 0.09

Fuse = Callable[[Sequence[float], Path], None]


def look(
    settings: Fusion, bench: Bench, fuse: Fuse, models: int, seed: int, beside: Path
) -> tuple[list[float], dict[str, Any]]:
    """The best weights found, and the search's record.

    Args:
        fuse: writes the model of these weights into a folder.
        models: how many there are to weight.
        beside: a folder in which one candidate at a time lies.

    Raises:
        ConfigurationError: a model can't be fused or measured.
    """
    assert settings.search is not None
    trials: list[dict[str, Any]] = []

    def measured(weights: Sequence[float], split: str, title: str) -> Any:
        folder = Path(tempfile.mkdtemp(prefix="candidate-", dir=beside))
        try:
            fuse(weights, folder)
            return bench.scores(folder, split, title)
        finally:
            shutil.rmtree(folder)

    for number, weights in enumerate(proposals(models, settings.search.trials, seed, trials), start=1):
        scores = measured(weights, "probe", f"weighting {number} of {settings.search.trials}")
        trials.append({"weights": weights, "pass_at_k": mean(scores)})
    best = max(trials, key=lambda trial: trial["pass_at_k"])["weights"]
    uniform = trials[0]["weights"]
    held = measured(best, "validation", "found weighting")
    plain = held if best == uniform else measured(uniform, "validation", "uniform weighting")
    return best, {
        "k": bench.k,
        "trials": trials,
        "weights": best,
        "held_out": {"found": interval(held), "uniform": interval(plain), "gain": interval(held, minus=plain)},
    }


def proposals(models: int, count: int, seed: int, trials: Sequence[dict[str, Any]]) -> Iterator[list[float]]:
    """Weightings to try; `trials` has grown by the last one's result when the next is asked for."""
    generator = np.random.default_rng(seed)
    yield [1 / models] * models
    for number in range(1, count):
        around = np.ones(models)
        if number > count // 2:
            around = CLOSE * np.asarray(max(trials, key=lambda trial: trial["pass_at_k"])["weights"]) + 0.1
        yield [float(weight) for weight in generator.dirichlet(around)]
