"""The step `fusion`: the checkpoints that probing chose, made one model, by given, measured or searched weights.

Its output is the model and `fusion.json`: method, weights, sources, and what a search and a comparison have found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vibethinker import verifiers
from vibethinker.artifacts import write_json
from vibethinker.fusion import merging
from vibethinker.fusion.fallback import better_alone
from vibethinker.fusion.measuring import Bench
from vibethinker.fusion.methods import Method, make, pass_at_k
from vibethinker.fusion.methods.linear import Linear
from vibethinker.fusion.search import look
from vibethinker.settings import Fusion
from vibethinker.steps import Metrics, StepContext


def run(context: StepContext) -> Metrics:
    """Fuse the checkpoints of `specialist-<domain>` that `probe-<domain>` names."""
    settings = Fusion.model_validate(context.settings["fusion"])
    domains, seed = context.settings["domains"], context.settings.get("seed", 0)
    probes = {domain: _probe(context.inputs[f"probe-{domain}"]) for domain in domains}
    selected = {domain: probe["selected"] for domain, probe in probes.items()}
    folders = [context.inputs[f"specialist-{domain}"] / "checkpoints" / selected[domain] for domain in domains]
    base = context.inputs["base"]
    execution = {"device": context.execution.get("device", "cpu"), "threads": context.execution.get("threads")}
    found: dict[str, Any] = {"method": settings.method, "sources": selected}
    found |= {name: context.settings["fusion"][name] for name in ("scale", "t") if name in context.settings["fusion"]}
    if settings.method in ("ties", "dare"):
        found["density"] = settings.kept

    weights, typed = _weights(context, settings, list(probes.values())), merging.type_of(folders, base)
    with ExitStack() as stack:
        ready, bench = stack.enter_context(merging.whole(folders, base, context.output)), None

        def merge(method: Method, output: Path) -> None:
            progress = context.emit.progress if not settings.generates else lambda done, of: None
            merging.merge(ready, output, method, base, progress, typed=typed, **execution)

        def fuse(weights: Sequence[float], output: Path) -> None:
            merge(make(settings, weights, domains, seed), output)

        if settings.generates:
            from vibethinker.models import set_threads

            set_threads(context.execution["threads"])
            bench = stack.enter_context(Bench.of_step(context, stack.enter_context(verifiers.of_step(context))))
        if bench and settings.search:
            weights, found["search"] = look(settings, bench, fuse, len(domains), seed, context.output)
        fuse(weights, context.output)
        if bench and settings.fallback != "none":
            alone = better_alone(bench, context.output, ready, domains)
            found["fallback"] = alone
            if alone["taken"] is not None:
                weights = [float(domain == alone["taken"]) for domain in domains]
                for file in context.output.glob("*.safetensors*"):
                    file.unlink()
                merge(Linear(weights), context.output)
                context.emit.warning(_fell_back(alone, bench.k))
    write_json(context.output / "fusion.json", found | {"weights": dict(zip(domains, weights, strict=True))})
    metrics: Metrics = {"models": len(folders)}
    if "search" in found:
        metrics |= {f"search_pass@{bench.k}": found["search"]["held_out"]["found"]["value"]} if bench else {}
    if "fallback" in found:
        metrics["fell_back"] = int(found["fallback"]["taken"] is not None)
    return metrics


def _weights(context: StepContext, settings: Fusion, probes: Sequence[dict[str, Any]]) -> list[float]:
    domains = context.settings["domains"]
    if settings.method == "slerp":
        return [1 - settings.t, settings.t]
    if settings.method == "pass_at_k":
        if found := pass_at_k.weights(probes):
            return found
        context.emit.warning("No specialist has solved a validation problem, so all count the same in fusion.")
    given = settings.weights or dict.fromkeys(domains, 1.0)
    return merging.normalised([given[domain] for domain in domains])


def _fell_back(alone: dict[str, Any], k: int) -> str:
    worse, low, high = (alone["difference"][name] * 100 for name in ("value", "low", "high"))
    return (
        f"The fused model differs by {worse:.1f} points of Pass@{k} (95 % from {low:+.1f} to {high:+.1f}) from the "
        f"specialist {alone['taken']} on the validation splits of all domains, so that specialist goes on, as "
        "spectrum.fusion.fallback says."
    )


def _probe(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "probe.json").read_text())
