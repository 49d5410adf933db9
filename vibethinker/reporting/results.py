"""What the models' outcomes say: means over the mathematical domains, Pass@K curves, paired comparisons,
warnings.

A *scope* is what a number is averaged over: one domain, `math`, `code`, `all`, or one benchmark, a set that isn't the
domain of its name (as those of generated problems are). `math` is every problem that isn't code, in a domain that is
trained or not, as AIME's. A mean over several domains is the mean over their problems; where all domains have equally
many, as generated ones do, that is the mean of the domains too. Every difference is paired by problem
(vibethinker.evaluation.comparison).

Left out: a correction for the number of comparisons; of dozens some are significant by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from vibethinker.evaluation.comparison import Difference, compare
from vibethinker.evaluation.estimators import bootstrap, pass_at_k
from vibethinker.reporting.highlights import interval, points
from vibethinker.settings import CODE_DOMAIN

TRUNCATION_LIMIT = 0.2  # share of completions cut off above which scores say more about the limit than the model

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """One measured model: its rows of outcomes.jsonl, each with its problem's `domain`, and its
    scores.json."""

    id: str
    rows: Sequence[Row]
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Completions drawn a problem, n."""
        return max((len(row["verdicts"]) for row in self.rows), default=0)


class Scope(NamedTuple):
    """The problems whose `column` is one of `members`."""

    column: Literal["domain", "set"]
    members: Sequence[str]


class Results:
    """All measured models of a run, in the order of the recipe.

    Args:
        models: in the order of the recipe.
        domains, math_domains: as in the step's settings.
        k: the K of pass@k in comparisons.
    """

    def __init__(self, models: Sequence[Model], domains: Sequence[str], math_domains: Sequence[str], k: int) -> None:
        self.models = {model.id: model for model in models}
        self.k = k
        of_sets: dict[str, set[str]] = {}
        for model in models:
            for row in model.rows:
                of_sets.setdefault(row["set"], set()).add(row["domain"])
        measured = {domain for some in of_sets.values() for domain in some}
        others = sorted(measured - {*math_domains, CODE_DOMAIN})  # which aren't trained
        groups = {
            "math": [d for d in math_domains if d in measured] + others,
            "code": [d for d in (CODE_DOMAIN,) if d in measured],
        }
        groups["all"] = groups["math"] + groups["code"]
        self.domains = [d for d in domains if d in measured]
        self.groups = {name: members for name, members in groups.items() if members}
        alone = {domain: Scope("domain", [domain]) for domain in self.domains}
        self.scopes = alone | {name: Scope("domain", members) for name, members in self.groups.items()}
        sets = [
            name
            for name, found in of_sets.items()
            if found != {name} or self.scopes.get(name) != Scope("domain", [name])
        ]
        called = {name if name not in self.scopes else f"set {name}": name for name in sets}
        self.benchmarks = list(called)
        self.scopes |= {title: Scope("set", [name]) for title, name in called.items()}

    @property
    def fused(self) -> str | None:
        """The model that the signal stages start from."""
        return "fusion" if "fusion" in self.models else None

    @property
    def stages(self) -> list[str]:
        """The models of the signal stages, in order, and the one that was distilled from them."""
        return [id for id in self.models if id.startswith("signal-") or id == "distilled"]

    @property
    def final(self) -> str | None:
        """The last model of the recipe that was measured."""
        return next(reversed([id for id in self.models if not id.startswith("specialist-")]), None)

    def means(self, model: str) -> dict[str, dict[str, dict[str, float]]]:
        """scope → metric → value with interval, for each scope of which the model was measured on all
        domains."""
        found, known = {}, dict[tuple[int, ...], dict[str, dict[str, float]]]()
        for scope in self.scopes:
            if rows := self._rows(model, scope):
                n, same = self.models[model].samples, _identity(rows)
                if same not in known:
                    known[same] = {f"avg@{n}": _mean(rows, None), f"pass@{self.k}": _mean(rows, self.k)}
                found[scope] = known[same]
        return found

    def curves(self, model: str) -> dict[str, dict[str, float]]:
        """scope → K → mean Pass@K, for K = 1, 2, 4… up to the number of samples."""
        ks = [1 << i for i in range(self.models[model].samples.bit_length())]
        curves = {}
        for scope in self.scopes:
            if rows := self._rows(model, scope):
                values = {k: [pass_at_k(r["samples"], r["correct"], k) for r in rows if r["samples"] >= k] for k in ks}
                curves[scope] = {str(k): sum(v) / len(v) for k, v in values.items() if v}
        return curves

    def comparisons(self) -> list[dict[str, Any]]:
        """Every comparison that the recipe asks for, each as avg@n and as pass@k; see `_pairs` for which."""
        found, known = [], dict[tuple[tuple[int, ...], tuple[int, ...], int | None], Difference]()
        for kind, baseline, candidate, scope in self._pairs():
            first, second = self._rows(baseline, scope), self._rows(candidate, scope)
            if not first or not second:
                continue
            for k in (None, self.k):
                same = _identity(first), _identity(second), k
                if same not in known:
                    known[same] = compare(first, second, k)
                d = known[same]
                metric = f"avg@{self.models[candidate].samples}" if k is None else f"pass@{k}"
                found.append(
                    {
                        "kind": kind,
                        "baseline": baseline,
                        "candidate": candidate,
                        "scope": scope,
                        "metric": metric,
                        "difference": d.difference,
                        "low": d.low,
                        "high": d.high,
                        "problems": d.problems,
                        "p": d.p,
                        "significant": d.significant,
                    }
                )
        return found

    def _pairs(self) -> Iterator[tuple[str, str, str, str]]:
        """(kind, baseline, candidate, scope)."""
        specialists = [id for id in self.models if id.startswith("specialist-")]
        base = "base" if "base" in self.models else None
        if base:
            home = {f"specialist-{d}": d for d in self.domains}
            yield from (("specialist", base, s, home[s]) for s in specialists if s in home)
        if self.fused:
            if base:
                yield from (("fusion", base, self.fused, scope) for scope in self.scopes)
            for domain in self.domains:
                for specialist in specialists:
                    yield "fusion-specialist", specialist, self.fused, domain
            for stage in self.stages:
                yield from (("stage", self.fused, stage, scope) for scope in self.scopes)
        final = self.final
        if base and final and final not in (base, self.fused):
            yield from (("final", base, final, scope) for scope in self.scopes)

    def _rows(self, model: str, scope: str) -> list[Row]:
        """The model's graded rows of this scope; none unless it was measured on all its domains, or its set."""
        column, members = self.scopes[scope]
        rows = [r for r in self.models[model].rows if r[column] in members and r["samples"]]
        return rows if {r[column] for r in rows} == set(members) else []


def warnings(results: Results, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about what got worse and what makes a number doubtful."""
    return [
        *_worse_than_specialists(results, comparisons),
        *_worse_at_the_end(results, comparisons),
        *_truncated(results),
    ]


def _worse_than_specialists(results: Results, comparisons: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The fused model against the best specialist of each domain, by the metric that probing maximises."""
    worse = []
    for domain in results.domains:
        rivals = [
            c
            for c in comparisons
            if c["kind"] == "fusion-specialist" and c["scope"] == domain and c["metric"] == f"pass@{results.k}"
        ]
        best = min(rivals, key=lambda c: c["difference"], default=None)
        if best and best["difference"] < 0:
            other = best["baseline"].removeprefix("specialist-")
            whose = "" if other == domain else f"specialist {other}: "
            worse.append(f"{domain} ({whose}{_points(best)})")
    if worse:
        yield f"The fused model's pass@{results.k} is below the best specialist's on {', '.join(worse)}."


def _worse_at_the_end(results: Results, comparisons: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for kind, what in (("final", "base"), ("stage", "fused")):
        worse = [
            f"{c['metric']} on {c['scope']} ({_points(c)})"
            for c in comparisons
            if c["kind"] == kind and c["candidate"] == results.final and c["significant"] and c["difference"] < 0
        ]
        if worse:
            yield f"The final model is worse than the {what} model: {'; '.join(worse)}."


def _truncated(results: Results) -> Iterator[str]:
    over = []
    for model in results.models.values():
        cut = [metrics["truncated"]["value"] for metrics in model.scores.values() if "truncated" in metrics]
        if cut and max(cut) > TRUNCATION_LIMIT:
            over.append(f"{model.id} up to {max(cut):.0%}")
    if over:
        yield (
            f"Many completions of a set were cut off at the length limit: {', '.join(over)}; raise "
            "evaluation.max_tokens, or read the scores as scores within it."
        )


def _points(comparison: Mapping[str, Any]) -> str:
    unsure = "" if comparison["significant"] else ", not significant"
    return f"{points(comparison['difference'])} points {interval(comparison)}{unsure}"


def _identity(rows: Sequence[Row]) -> tuple[int, ...]:
    """Which rows these are, as a key: scopes often have the same ones (a domain and its only set), and an interval
    takes ten thousand resamples."""
    return tuple(id(row) for row in rows)


def _mean(rows: Sequence[Row], k: int | None) -> dict[str, float]:
    values = [
        r["correct"] / r["samples"] if k is None else pass_at_k(r["samples"], r["correct"], k)
        for r in rows
        if r["samples"] >= (k or 1)
    ]
    mean, low, high = bootstrap(values)
    return {"value": mean, "low": low, "high": high, "problems": len(values)}
