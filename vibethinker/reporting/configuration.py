"""What was run, in a few lines: the settings that people ask for first, out of the resolved configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def described(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and texts; a setting that isn't there is a part that isn't said."""
    return [(name, text) for name, text in _lines(config, summary) if text]


def _lines(c: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    base, data = c.get("base_model") or {}, c.get("data") or {}
    spectrum, signal, evaluation = (c.get(name) or {} for name in ("spectrum", "signal", "evaluation"))
    sft, probing, fusion = (spectrum.get(name) or {} for name in ("sft", "probing", "fusion"))
    objective = signal.get("objective") or {}
    yield "Base model", _base(base)
    yield "Domains", ", ".join(c.get("domains") or ())
    yield "Data", _data(data)
    if sft:
        method = "all weights" if sft.get("method") == "full" else str(sft.get("method"))
        yield (
            "Specialists",
            f"{sft['steps']} steps of {sft['batch_size']} traces up to {sft['max_length']} tokens, {method}, learning "
            f"rate {sft['learning_rate']:g}, {sft['checkpoints']} checkpoints kept",
        )
    if probing:
        yield "Probing", f"Pass@{probing['k']} of {probing['samples']} samples up to {probing['max_tokens']} tokens"
    if fusion:
        weights = "uniform weights" if not fusion.get("weights") else "given weights"
        yield "Fusion", f"{fusion.get('method')}, {weights}"
    for number, stage in enumerate(signal.get("stages") or (), start=1):
        yield f"Signal {number}", _stage(stage, {**objective, **(stage.get("overrides") or {})})
    if evaluation:
        at = f"temperature {evaluation['temperature']:g}, up to {evaluation['max_tokens']} tokens"
        yield "Evaluation", f"{evaluation['samples']} samples a problem, {at}"
    yield "Seed", f"{c['seed']}{', deterministic kernels' if c.get('deterministic') else ''}" if "seed" in c else ""
    made = summary.get("made_by") or {}
    yield "Machine", ", ".join(made.get("machines") or ())
    yield "Code", ", ".join(f"{text[:12]}{'+' if text.endswith('+') else ''}" for text in made.get("revisions") or ())
    yield (
        "Versions",
        " · ".join(
            f"{name} {' and '.join(versions)}" for name, versions in sorted((made.get("versions") or {}).items())
        ),
    )


def _base(base: Mapping[str, Any]) -> str:
    if base.get("source") != "embedded":
        revision = f" at {base['revision']}" if base.get("revision") else ""
        return f"{base.get('source', '')}{revision}"
    e = base.get("embedded") or {}
    shape = f"{e['layers']} layers of width {e['hidden_size']}, vocabulary {e['vocabulary']}" if e else ""
    return f"embedded, trained on the spot: {shape}, {e['steps']} steps of {e['batch_size']}" if e else "embedded"


def _data(data: Mapping[str, Any]) -> str:
    if data.get("source") == "procedural":
        problems = (data.get("procedural") or {}).get("problems")
        return f"generated problems{f', {problems} a domain' if problems else ''}"
    files = data.get("train") or ()
    names = [str(file.get("path") or (file.get("hub") or {}).get("id") or file.get("preset") or "") for file in files]
    return ", ".join(name for name in names if name)


def _stage(stage: Mapping[str, Any], objective: Mapping[str, Any]) -> str:
    said = [f"{stage['name']}"]
    if "steps" in stage:
        said.append(f"{stage['steps']} updates")
    if "batch_size" in objective:
        said.append(f"{objective['batch_size']} rollouts each, {objective.get('group_size')} a problem")
    said.append(f"context {stage['context']}")
    if "learning_rate" in objective:
        said.append(f"learning rate {objective['learning_rate']:g}")
    if "lambda" in objective:
        said.append(f"λ {objective['lambda']:g}")
    return ", ".join(said)
