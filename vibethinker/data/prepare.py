"""The data step: from generated problems or files to disjoint splits of problems and verified traces.

Order of work, each removal counted in card.json:
1. gather: generate each domain's problems, or read `data.train`; read `data.evaluation`; rows of one problem
   become one;
2. decontaminate what will be trained or probed on against everything that is evaluated on;
3. split by problem, in seeded order: probe, validation, and the rest, train; no problem is in two of them,
   whatever its domain;
4. take the verified solutions of the training problems as traces, or ask a teacher where there are none.

Output: sft/<domain>.jsonl (traces), rl, probe, validation (problems), evaluation/<set>.jsonl, card.json. The
same settings and files give the same bytes.

Left out: difficulty (each signal stage measures it with its own starting model), near-duplicates within
training data, and labels by majority vote; problems without gold are counted and not used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vibethinker.data.decontamination import Decontaminator, find_templates
from vibethinker.data.gathering import Gathered, gather
from vibethinker.data.schema import write_jsonl
from vibethinker.data.sources import Candidate
from vibethinker.data.splits import hold_out, seeded_order, signature
from vibethinker.data.traces import make_traces
from vibethinker.errors import DataError
from vibethinker.settings import DataSettings
from vibethinker.steps import Metrics, StepContext

CARD_SCHEMA = 1
_EXAMPLES = 20
_EXCERPT = 300  # characters


def run(context: StepContext) -> Metrics:
    """Prepare the data of a run into `context.output`.

    Settings: seed, domains, math_domains, data. Execution: `paths`, from each file as the settings name it to
    where it is, and what the verifier and the teacher need.

    Returns:
        Problems of each split and traces, summed and by domain.

    Raises:
        DataError: a file that is missing or malformed, or a domain without enough problems.
        ConfigurationError: two evaluation sets of one name.
    """
    settings = context.settings
    data = DataSettings.model_validate(settings["data"])
    seed: int = settings["seed"]
    total = 4
    context.emit.progress(0, total, "gathering problems")
    gathered = gather(data, tuple(settings["domains"]), seed, context.execution["paths"])
    context.emit.progress(1, total, "comparing them with the evaluation sets")
    decontamination = _decontaminate(gathered, data)
    context.emit.progress(2, total, "splitting")
    splits = _split(gathered, data, seed)
    context.emit.progress(3, total, "verifying traces")
    traces = make_traces({d: splits[d]["train"] for d in gathered.domains}, data, context, gathered.counts)
    for domain in gathered.domains:
        if not traces[domain]:
            context.emit.warning(
                f"The domain {domain} has no verified trace, so no specialist can be trained on it: name a "
                "column with worked solutions (columns.solution) or a teacher (data.teacher.model)."
            )
    if not gathered.evaluation:
        context.emit.warning("No evaluation set is configured, so no model will be measured: set data.evaluation.")

    for domain in gathered.domains:
        for name, folder in (("train", "rl"), ("probe", "probe"), ("validation", "validation")):
            _write(context.output / folder / f"{domain}.jsonl", (c.problem for c in splits[domain][name]))
            gathered.counts[domain][name] = len(splits[domain][name])
        _write(context.output / "sft" / f"{domain}.jsonl", traces[domain])
    (context.output / "evaluation").mkdir()
    for name, candidates in gathered.evaluation.items():
        _write(context.output / "evaluation" / f"{name}.jsonl", (c.problem for c in candidates))
    card = {
        "schema": CARD_SCHEMA,
        "source": data.source,
        "seed": seed,
        "sources": gathered.sources,
        "domains": {domain: dict(gathered.counts[domain]) for domain in gathered.domains},
        "evaluation": {name: len(candidates) for name, candidates in gathered.evaluation.items()},
        "decontamination": decontamination,
    }
    text = json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False)
    (context.output / "card.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    context.emit.progress(total, total, "done")
    return _metrics(gathered)


def _metrics(gathered: Gathered) -> Metrics:
    metrics: Metrics = {"evaluation": sum(len(c) for c in gathered.evaluation.values())}
    for name in ("train", "probe", "validation", "traces", "contaminated"):
        by_domain = {domain: gathered.counts[domain][name] for domain in gathered.domains}
        metrics[name] = sum(by_domain.values())
        metrics.update({f"{name}.{domain}": count for domain, count in by_domain.items()})
    return metrics


def _write(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_jsonl(path, rows)


def _decontaminate(gathered: Gathered, data: DataSettings) -> dict[str, Any]:
    """Remove contaminated problems from the pool; returns what card.json says about it."""
    settings = data.decontamination
    names = [name for name, texts in gathered.protected.items() for _ in texts]
    protected = [text for texts in gathered.protected.values() for text in texts]
    report: dict[str, Any] = {
        "enabled": settings.enabled,
        "ngram": settings.ngram,
        "against": list(gathered.protected),
    }
    if not settings.enabled:
        return report
    templates = find_templates(gathered.files)
    index = Decontaminator(protected, n=settings.ngram, templates=templates)
    examples: list[dict[str, Any]] = []
    for domain, candidates in gathered.pool.items():
        kept = []
        for candidate in candidates:
            overlap = index.overlap(candidate.text)
            if overlap is None:
                kept.append(candidate)
                continue
            gathered.counts[domain]["contaminated"] += 1
            examples.append(
                {
                    "id": candidate.problem.id,
                    "origin": candidate.origin,
                    "problem": candidate.text[:_EXCERPT],
                    "shared": overlap.shared,
                    "shared_ngrams": overlap.count,
                    "ngrams": overlap.total,
                    "evaluation_set": names[overlap.evaluation],
                    "evaluation_problem": protected[overlap.evaluation][:_EXCERPT],
                }
            )
        gathered.pool[domain] = kept
    report["removed"] = len(examples)
    examples.sort(key=lambda e: (-e["shared_ngrams"] / e["ngrams"], e["id"]))
    report["examples"] = examples[:_EXAMPLES]
    report["templates"] = {"opening": sorted(templates.opening), "closing": sorted(templates.closing)}
    return report


def _split(gathered: Gathered, data: DataSettings, seed: int) -> dict[str, dict[str, list[Candidate]]]:
    """domain → probe, validation and train problems. No signature of one is in another, in no domain."""
    held = {signature(text) for texts in gathered.protected.values() for text in texts}
    splits: dict[str, dict[str, list[Candidate]]] = {}
    for domain in gathered.domains:
        clean = [c for c in gathered.pool[domain] if signature(c.text) not in held]
        gathered.counts[domain]["same_words"] = len(gathered.pool[domain]) - len(clean)
        probe, rest = hold_out(seeded_order(clean, seed), data.probe, held)
        validation, rest = hold_out(rest, data.validation, held)
        splits[domain] = {"probe": probe, "validation": validation, "train": rest}
    for domain, parts in splits.items():
        train = [c for c in parts["train"] if signature(c.text) not in held]
        gathered.counts[domain]["same_words"] += len(parts["train"]) - len(train)
        parts["train"] = train[: data.max_problems]
        gathered.counts[domain]["over_max_problems"] = len(train) - len(parts["train"])
        if not train or len(parts["probe"]) < data.probe or len(parts["validation"]) < data.validation:
            raise DataError(_too_few(domain, gathered, data))
    return splits


def _too_few(domain: str, gathered: Gathered, data: DataSettings) -> str:
    counts = ", ".join(f"{name} {n}" for name, n in gathered.counts[domain].items() if n) or "no row"
    if data.source == "procedural":
        where, mend = "data.procedural", "raise data.procedural.problems"
    else:
        where = ", ".join(s["name"] for s in gathered.sources if s["role"] == "train")
        mend = "add rows of that domain, correct the files' `domain` or `columns.domain`, remove it from domains"
    return (
        f"The domain {domain} has too few problems in {where} ({counts}) for {data.probe} probe, "
        f"{data.validation} validation and at least one training problem: {mend}, or lower data.probe and "
        "data.validation."
    )
