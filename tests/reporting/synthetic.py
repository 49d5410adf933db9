"""A small synthetic run: the published folders that a report reads, with outcomes drawn from known accuracies."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vibethinker.data.schema import Problem, write_records
from vibethinker.reporting import step
from vibethinker.steps import StepContext

DOMAINS = ["algebra", "geometry", "code"]
MATH = ["algebra", "geometry"]
HOSTILE = "<script>alert('x')</script> & \\boxed{1}"
# Mean accuracy of each model; a specialist's holds at home.
ACCURACY = {
    "base": 0.1, "specialist-algebra": 0.5, "specialist-geometry": 0.5, "specialist-code": 0.4, "fusion": 0.2,
    "signal-1": 0.35, "signal-2": 0.4,
}  # fmt: skip


class Quiet:
    """An emitter that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def progress(self, done: int, total: int, text: str = "") -> None:
        assert 0 <= done <= total

    def metrics(self, step: int, values: Any) -> None:
        pass

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@dataclass
class SyntheticRun:
    """Published folders under `root`; `context` is what the report step gets."""

    root: Path
    problems: int = 20
    samples: int = 8
    accuracy: dict[str, float] = field(default_factory=lambda: dict(ACCURACY))

    def build(self) -> SyntheticRun:
        self._data()
        for domain in DOMAINS:
            self._metrics(f"specialist-{domain}", 30, lambda i: {"loss": 2 - i / 20, "learning_rate": 1e-3})
            self._probe(domain)
        write(self.root / "fusion" / "fusion.json", {"method": "linear", "weights": dict.fromkeys(DOMAINS, 1 / 3)})
        for number in (1, 2):
            self._metrics(f"signal-{number}", 40, self._signal)
            write(
                self.root / f"signal-{number}" / "signal.json",
                {
                    "stage": ("math", "code")[number - 1],
                    "counts": {"problems": 2800, "kept_groups": 900},
                    "validation": {},
                },
            )
        for model in self.accuracy:
            self._evaluation(model)
        return self

    def context(self, output: Path) -> StepContext:
        inputs = {folder.name: folder for folder in sorted(self.root.iterdir())}
        models = [{"id": m, "evaluation": f"evaluation-{m}"} for m in self.accuracy]
        settings = {"profile": "tiny", "domains": DOMAINS, "math_domains": MATH, "models": models}
        output.mkdir(parents=True, exist_ok=True)
        return StepContext("report", settings, {}, inputs, output, output, Quiet())

    def report(self, output: Path) -> dict[str, Any]:
        step.run(self.context(output))
        return json.loads((output / "report.json").read_text())

    def _data(self) -> None:
        counts = {"rows": 3000, "contaminated": 3, "train": 2800, "probe": 48, "validation": 48, "traces": 5600}
        card = {
            "schema": 1,
            "source": "procedural",
            "sources": [{"name": "generated", "role": "train and evaluation", "licence": "MIT", "counts": {}}],
            "domains": dict.fromkeys(DOMAINS, counts),
            "decontamination": {"enabled": True, "ngram": 10, "removed": 9, "examples": [
                {"id": "a-1", "problem": HOSTILE, "shared": "ten words", "evaluation_set": "algebra",
                 "evaluation_problem": "What is it?"}]},
        }  # fmt: skip
        write(self.root / "data" / "card.json", card)
        folder = self.root / "data" / "evaluation"
        folder.mkdir(exist_ok=True)
        for domain in DOMAINS:
            rows = [
                Problem(f"{domain}-{i}", domain, f"Problem {i} {HOSTILE}", "generated", "MIT", answer="1", difficulty=1)
                for i in range(self.problems)
            ]  # fmt: skip
            write_records(folder / f"{domain}.parquet", Problem, rows)

    def _metrics(self, step: str, steps: int, values: Any) -> None:
        write_rows(self.root / step / "metrics.jsonl", [{"step": i, **values(i)} for i in range(1, steps + 1)])

    def _signal(self, i: int) -> dict[str, Any]:
        return {"reward": i / 80, "p_histogram": [40 - i, 3, 2, 1, 0, 1, 2, i], "entropy": 1 / i, "loss": 0.0}

    def _probe(self, domain: str) -> None:
        def score(value: float) -> dict[str, float]:
            return {"value": value, "low": value - 0.05, "high": value + 0.05}

        candidates = [
            {"checkpoint": f"step-{50 * i:06d}", "pass_at": {"1": score(0.1 * i), "16": score(0.7), "8": score(0.6)},
             "problems": 48, "samples": 16, "left_out": 0, "truncated": 0.0}
            for i in (1, 2, 3)
        ]  # fmt: skip
        probe = {"domain": domain, "k": 8, "selected": "step-000100", "candidates": candidates}
        write(self.root / f"probe-{domain}" / "probe.json", {**probe, "validation": candidates[1]})

    def _evaluation(self, model: str) -> None:
        sets = [model.removeprefix("specialist-")] if model.startswith("specialist-") else DOMAINS
        folder, outcomes, generations, scores = self.root / f"evaluation-{model}", [], [], {}
        for name in sets:
            for i in range(self.problems):
                dice = random.Random(f"{name} {i}")
                ease, n = dice.betavariate(1, 1), self.samples  # the problem's, shared by all models
                own = random.Random(f"{model} {name} {i}")
                verdicts = ["correct" if own.random() < ease * 2 * self.accuracy[model] else "wrong" for _ in range(n)]
                row = {"set": name, "id": f"{name}-{i}"}
                outcomes.append({**row, "correct": verdicts.count("correct"), "samples": n, "verdicts": verdicts})
                samples = [
                    {"text": HOSTILE, "extracted": "1", "verdict": v, "tokens": 30 + j, "truncated": i == 3}
                    for j, v in enumerate(verdicts)
                ]
                generations.append({**row, "problem": f"Problem {i} {HOSTILE}", "gold": "1", "samples": samples})
            mean = sum(o["correct"] for o in outcomes if o["set"] == name) / (self.problems * n)
            one = {"value": mean, "low": mean - 0.02, "high": mean + 0.02, "problems": self.problems, "samples": n}
            metrics = (f"avg@{n}", f"pass@{n}", f"cons@{n}", "mean_tokens")
            scores[name] = {
                **dict.fromkeys(metrics, one),
                "truncated": {**one, "value": 0.05, "low": 0.03, "high": 0.07},
            }
        write(folder / "scores.json", scores)
        write_rows(folder / "outcomes.jsonl", outcomes)
        write_rows(folder / "generations.jsonl", generations)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
