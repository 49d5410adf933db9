"""How a model came about, in words: the steps of its run on which it depends, with the settings that matter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vibethinker.exporting.finding import Found


def made_by(found: Found) -> str:
    """What the model is and a line for each step on the way to it."""
    assert found.output is not None
    steps = "\n".join(f"{i}. {line}" for i, line in enumerate(_lines(found), 1))
    what = (
        "The [VibeThinker recipe](https://arxiv.org/abs/2511.06221), from a spectrum of solutions to a signal, made it"
    )
    return f"{what}:\n\n{steps}" if steps else "A step of the VibeThinker recipe made it."


def _lines(found: Found) -> Iterator[str]:
    for step_id in _ancestors(found):
        output = found.input(step_id)
        if step_id == found.id and output is None:
            output = found.output
        if output is None:
            continue
        try:
            said = _said(output.manifest, output.folder)
        except (KeyError, TypeError):
            said = "by settings of another version of vibethinker"
        if said:
            yield f"**{step_id}** (`{output.manifest['fingerprint'][:12]}`): {said}"


def _ancestors(found: Found) -> list[str]:
    """The steps that the model depends on and its own, in the order of the plan."""
    if not found.run or not (found.run / "plan.json").is_file():
        return [found.id]
    steps = {s["id"]: s["depends_on"] for s in json.loads((found.run / "plan.json").read_text())["steps"]}
    wanted, waiting = set(), [found.id]
    while waiting:
        step = waiting.pop()
        if step not in wanted:
            wanted.add(step)
            waiting += steps.get(step, ())
    return [step for step in steps if step in wanted] or [found.id]


def _said(manifest: Mapping[str, Any], folder: Path) -> str:
    settings, metrics, kind = manifest["settings"], manifest["metrics"], manifest["kind"]
    if kind == "import":
        return "a model of the user's"
    if kind == "data":
        return f"{metrics.get('train', 0)} training problems with {metrics.get('traces', 0)} verified traces"
    if kind == "base":
        return _base(settings["base_model"], metrics)
    if kind in ("specialist", "distilled"):
        sft, on = settings["sft"], "the domain's traces" if kind == "specialist" else "the selected traces"
        epochs = settings.get("epochs") or settings.get("hard", {}).get("epochs")
        updates = f"{epochs} epochs in updates" if epochs else f"{sft['steps']} updates"
        return (
            f"fine-tuned on {on}, {updates} of {sft['batch_size']} sequences, {_method(sft)}, learning rate "
            f"{sft['learning_rate']:g} with a cosine"
        )
    if kind == "selection":
        return f"chose {metrics['traces_kept']} of {metrics['traces']} verified traces of the stages' models"
    if kind == "probe":
        chosen = json.loads((folder / "probe.json").read_text()) if (folder / "probe.json").is_file() else {}
        return f"chose {chosen['selected']} by Pass@K" if "selected" in chosen else ""
    if kind == "fusion":
        return "the specialists' weights merged"
    if kind == "signal":
        objective, stage = settings["objective"], settings["stage"]
        return (
            f"MGPO on {stage['name']}, reward {stage['reward']}, {stage['steps']} updates of "
            f"{objective['batch_size']} rollouts in groups of {objective['group_size']}, {_method(objective)}, "
            f"learning rate {objective['learning_rate']:g}, context {stage['context']}, lambda {objective['lambda']:g}"
        )
    return ""


def _base(settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    size = f", {metrics['parameters']:,} weights" if "parameters" in metrics else ""
    source = settings["source"]
    if source == "embedded":
        shape = settings["embedded"]
        return f"a Qwen3 of {shape['layers']} layers and width {shape['hidden_size']}, trained from nothing{size}"
    if Path(source).is_absolute() or Path(source).exists():
        source = f"`{Path(source).name}`, a local model"  # whose path is nobody's business
    else:
        source = f"{source}, revision {settings.get('revision') or 'unstated'}"
    return f"{source}{size}"


def _method(settings: Mapping[str, Any]) -> str:
    if settings["method"] == "full":
        return "all weights"
    return f"LoRA of rank {settings['lora']['rank']}"
