"""What an experiment's runs have shown so far, read from their published outputs: result.json's numbers.

Nothing here decides what is compared: that stands in the design, and result.json has had it as `registered` since
before the first run. Holm's procedure corrects over all pairs of the design. No claim is made, in either direction (p
counts as 1), of an arm that was given up, since it was so for seeming bad, nor where runs have diverged, since those
that are left are the ones that went well.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from vibethinker.artifacts import Artifact, Store
from vibethinker.evaluation.estimators import pass_at_k
from vibethinker.experiments.design import Cell, Comparison, Experiment, Futility
from vibethinker.experiments.statistics import Problem, holm, hopeless, paired, standardised
from vibethinker.steps import measured

LEVEL = 0.95


class Results:
    """The outputs of an experiment's runs; what isn't published yet counts as not there.

    Args:
        gone: arm → after how many seeds it was given up.
    """

    def __init__(self, experiment: Experiment, gone: Mapping[str, int] | None = None) -> None:
        self.experiment, self.gone = experiment, dict(gone or {})
        self._store = Store(experiment.workspace)
        self._cells = {(cell.arm, cell.seed): cell for cell in experiment.cells}
        self._rows: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def values(self, cell: Cell, comparison: Comparison) -> dict[Problem, float] | None:
        """The metric of each problem; None before it is measured."""
        step = cell.plan[cell.evaluation(comparison.model)]
        rows = self._outcomes(step.id, step.fingerprint)
        if rows is None:
            return None
        k, sets = comparison.k, comparison.sets
        return {
            (row["set"], row["id"]): pass_at_k(row["samples"], row["correct"], k or 1)
            for row in rows
            if row["samples"] >= (k or 1) and (sets is None or row["set"] in sets)
        }

    def differences(
        self, comparison: Comparison, control: str, arm: str, first: int | None = None
    ) -> dict[int, dict[Problem, float]]:
        """Seed → problem → the arm's metric minus the control's, for the seeds of which both are measured; of the first
        so many alone, if given, since another experiment may have measured later ones."""
        found = {}
        for seed in self.experiment.design.seeds[:first]:
            before, after = (self.values(self._cells[name, seed], comparison) for name in (control, arm))
            if before is not None and after is not None:
                found[seed] = {problem: after[problem] - before[problem] for problem in sorted(before.keys() & after)}
        return found

    def comparisons(self, diverged: Mapping[str, int], *, final: bool) -> list[dict[str, Any]]:
        """Every pair of the design, in its order.

        Args:
            diverged: arm → how many of its runs have.
            final: whether all runs are made; before that nothing is significant, however often one looks.
        """
        found = [self._compared(*pair) for pair in self.experiment.pairs()]
        for row in found:
            row["diverged"] = diverged.get(row["arm"], 0) + diverged.get(row["control"], 0)
        claims = [row["p"] is not None and not row["given_up"] and not row["diverged"] for row in found]
        adjusted = holm([row["p"] if claim else 1.0 for row, claim in zip(found, claims, strict=True)])
        for row, p in zip(found, adjusted, strict=True):
            row["p_holm"] = p
            row["significant"] = final and p < self.experiment.design.alpha
        return found

    def _compared(self, comparison: Comparison, control: str, arm: str) -> dict[str, Any]:
        differences = self.differences(comparison, control, arm, self.gone.get(arm))
        family = len(list(self.experiment.pairs()))
        row: dict[str, Any] = {
            **comparison.model_dump(mode="json", exclude={"control", "arms"}),
            "control": control,
            "arm": arm,
            "given_up": self.gone.get(arm),
            "p": None,
        }
        if not differences:
            return row
        found = paired(differences)
        means = {seed: sum(of_seed.values()) / len(of_seed) for seed, of_seed in differences.items()}
        every = [value for of_seed in differences.values() for value in of_seed.values()]
        low, high = found.interval(LEVEL)
        wide = found.interval(1 - self.experiment.design.alpha / family)
        return row | {
            "difference": found.difference,
            "low": low,
            "high": high,
            "simultaneous": list(wide),
            "p": found.p,
            "errors": [{"error": error, "df": df} for error, df in found.errors],
            "over": found.method,
            "seeds": found.seeds if found.method != "problems" else len(differences),
            "problems": found.problems,
            "standardised": standardised(list(means.values())),
            "better": sum(value > 0 for value in every) / len(every),
            "worse": sum(value < 0 for value in every) / len(every),
            "by_seed": {str(seed): mean for seed, mean in means.items()},
        }

    def means(self) -> list[dict[str, Any]]:
        """Each arm's metrics as they are, for each metric that some comparison asks for: mean and by seed."""
        asked = list(dict.fromkeys((c.metric, c.sets, c.model) for c in self.experiment.design.comparisons))
        found = []
        for arm in self.experiment.arms:
            for metric, sets, model in asked:
                comparison = Comparison(metric=metric, sets=sets, model=model)
                if all(cell.arm != arm or not _measures(cell, model) for cell in self.experiment.cells):
                    continue
                values = {s: self.values(self._cells[arm, s], comparison) for s in self.experiment.design.seeds}
                by_seed = {str(s): sum(v.values()) / len(v) for s, v in values.items() if v}
                mean = sum(by_seed.values()) / len(by_seed) if by_seed else None
                what = comparison.model_dump(mode="json", exclude={"control", "arms"})
                found.append({"arm": arm, **what, "mean": mean, "by_seed": by_seed})
        return found

    def look(self, rule: Futility, after: int) -> list[dict[str, Any]]:
        """Which arms have no hope after so many seeds: for each that still goes on, the upper bounds of its
        differences, and whether all of them lie below the gain worth having. The looks share the risk evenly."""
        pairs, found = list(self.experiment.pairs()), []
        controls = {control for _, control, _ in pairs}  # others are compared with them, so they go on
        for arm in dict.fromkeys(arm for _, _, arm in pairs if arm not in self.gone and arm not in controls):
            differences = [self.differences(*pair, after) for pair in pairs if pair[2] == arm]
            bounds, stop = hopeless(
                [paired(one) if one else None for one in differences], rule.gain, rule.risk / len(rule.looks)
            )
            found.append({"arm": arm, "upper": bounds, "futile": stop})
        return found

    def curves(self, measure: str = "reward") -> dict[str, dict[str, dict[str, list[float]]]]:
        """Signal step → arm → `step`, mean, least and greatest of a training measure over the seeds."""
        found: dict[str, dict[str, dict[str, list[float]]]] = {}
        for arm in self.experiment.arms:
            by_step: dict[str, list[dict[int, float]]] = {}
            for cell in (cell for cell in self.experiment.cells if cell.arm == arm):
                for id in cell.plan.ids("signal"):
                    artifact = self._store.read(id, cell.plan[id].fingerprint)
                    file = artifact.folder / "metrics.jsonl" if artifact else None
                    if file and file.exists():
                        rows = {at: row[measure] for at, row in measured(file) if measure in row}
                        by_step.setdefault(id, []).append(rows)
            for id, some in by_step.items():
                if at := sorted(set.intersection(*map(set, some))):
                    columns = [[rows[step] for rows in some] for step in at]
                    found.setdefault(id, {})[arm] = {
                        "step": list(at),
                        "mean": [sum(column) / len(column) for column in columns],
                        "low": [min(column) for column in columns],
                        "high": [max(column) for column in columns],
                    }
        return found

    def cost(self) -> dict[str, Any]:
        """Seconds, tokens and money of all that the runs are made of, each output counted once, and what the runs would
        have taken had none shared any. `usd` is None without `execution.price`."""
        cells = [(step.id, step.fingerprint, cell) for cell in self.experiment.cells for step in cell.plan.steps]
        used = Counter((id, fingerprint) for id, fingerprint, _ in cells)
        prices = {(id, fingerprint): cell.config.execution.price for id, fingerprint, cell in cells}
        each: dict[tuple[str, str], dict[str, Any]] = {}
        for key in used:
            if artifact := self._store.read(*key):
                each[key] = _cost(artifact, prices[key])
        apart = sum(used[key] * one["seconds"] for key, one in each.items())
        priced = [one["usd"] for one in each.values() if one["usd"] is not None]
        total = {name: sum(one[name] for one in each.values()) for name in ("seconds", "trained", "generated")}
        return {
            "outputs": len(each),
            "seconds": total["seconds"],
            "seconds_unshared": apart,
            "trained_tokens": round(total["trained"]),
            "generated_tokens": round(total["generated"]),
            "usd": sum(priced) if priced else None,
        }

    def _outcomes(self, step: str, fingerprint: str) -> list[dict[str, Any]] | None:
        if (step, fingerprint) not in self._rows:
            artifact = self._store.read(step, fingerprint)
            if artifact is None:
                return None
            self._rows[step, fingerprint] = list(_rows(artifact))
        return self._rows[step, fingerprint]


def _measures(cell: Cell, model: str) -> bool:
    return cell.evaluation(model) in cell.plan.ids("evaluation")


def _rows(artifact: Artifact) -> Iterable[dict[str, Any]]:
    with (artifact.folder / "outcomes.jsonl").open() as file:
        yield from map(json.loads, file)


def _cost(artifact: Artifact, price: float | None) -> dict[str, Any]:
    """Of one output; tokens as its step measured them, 0 where it has none."""
    made, seconds = artifact.metrics, artifact.manifest["seconds"]
    generated = made.get("generated_tokens_per_second", 0.0) * made.get("seconds_generation", 0.0)
    if (artifact.folder / "outcomes.jsonl").exists():
        generated += sum(sum(row["tokens"]) for row in _rows(artifact))
    return {
        "seconds": seconds,
        "trained": made.get("trained_tokens_per_second", 0.0) * made.get("seconds_training", 0.0),
        "generated": generated,
        "usd": None if price is None else seconds / 3600 * price,
    }
