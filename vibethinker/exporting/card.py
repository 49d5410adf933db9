"""The model card: README.md with the hub's metadata, from what the run and its manifests say.

It isn't part of a step's output: its scores are measured on that output, and under its digest, so they come later. It
is written into every export, and into the run's folder once the run has ended.

Left out: anything that nobody measured. What is unknown, of a model from elsewhere for instance, is said to be.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vibethinker import __version__
from vibethinker.artifacts import write_text
from vibethinker.exporting.finding import Found
from vibethinker.exporting.history import made_by
from vibethinker.models.sources import HUB_ID
from vibethinker.reporting.text import table
from vibethinker.runs import Run

CARD, RUN_CARD = "README.md", "model-card.md"
TEXT_GENERATION = "text-generation"
_TITLES = {"avg": "mean accuracy", "pass": "solved in k tries", "cons": "majority vote"}


def write_run_card(run: Run) -> Path | None:
    """Write the card of a run's final model into the run's folder, from the summary that is there; None where the model
    is gone."""
    final = run.plan[run.plan.final_model]
    output = run.store.read(final.id, final.fingerprint)
    if output is None:
        return None
    write_text(run.folder / RUN_CARD, render(Found(output.folder, None, final.id, output, run.folder)))
    return run.folder / RUN_CARD


def render(found: Found, *, licence: str | None = None, gguf: str | None = None) -> str:
    """The card's text: metadata as YAML between two lines of dashes, then Markdown.

    Args:
        licence: the hub's id of the weights' licence; None takes what is known.
        gguf: the name of the GGUF file that the card lies beside; None stands for a folder of transformers.
    """
    from huggingface_hub import ModelCard

    data = metadata(found, licence, gguf)
    parts = [f"# {found.name}", *_sections(found, gguf)]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    ModelCard(text)  # raises for metadata that the hub wouldn't read
    return text


def metadata(found: Found, licence: str | None = None, gguf: str | None = None) -> Any:
    """The card's metadata, huggingface_hub's ModelCardData."""
    from huggingface_hub import EvalResult, ModelCardData

    base = found.config.get("base_model", {}).get("source")
    on_hub = base if base and base != "embedded" and HUB_ID.fullmatch(base) and not Path(base).exists() else None
    results = [
        EvalResult(
            task_type=TEXT_GENERATION, dataset_name=name, dataset_type=name, metric_type=metric,
            metric_name=_title(metric), metric_value=round(score["value"], 4),
            metric_args={k: round(score[k], 4) for k in ("low", "high", "problems", "samples") if k in score},
        )
        for name, metric, score in _scores(found)
        if _is_rate(metric)
    ]  # fmt: skip
    return ModelCardData(
        base_model=on_hub,
        base_model_relation="finetune" if on_hub else None,
        datasets=_hub_data(found) or None,
        eval_results=results or None,
        language=list(found.config.get("data", {}).get("filters", {}).get("languages", ())) or None,
        library_name="gguf" if gguf else "transformers",
        license=licence or _licence(base),
        license_name=None if licence or base == "embedded" else "of-the-base-model" if on_hub else "unstated",
        license_link=f"https://huggingface.co/{on_hub}" if on_hub and not licence else None,
        model_name=found.name,
        pipeline_tag=TEXT_GENERATION,
        tags=["vibethinker", *(["mgpo"] if found.id.startswith("signal-") else []), *(["gguf"] if gguf else [])],
    )


def _licence(base: str | None) -> str:
    """The embedded model has learned from this repository's generated problems alone, under its licence."""
    return "mit" if base == "embedded" else "other"


def _sections(found: Found, gguf: str | None) -> Iterator[str]:
    if found.output is None:
        yield "Exported by vibethinker from a model of which it knows no run: how it was trained isn't known here."
    else:
        yield made_by(found)
    yield _use(gguf)
    yield from _measured(found)
    yield from _data(found)
    yield from _limits(found)
    yield from _provenance(found)


def _use(gguf: str | None) -> str:
    if gguf:
        return f"## Use\n\n    llama-cli -m {gguf} --jinja\n\nor whatever else loads GGUF files."
    return (
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_REPOSITORY")\n'
        'model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_REPOSITORY")\n```\n\n'
        "vLLM: `vllm serve FOLDER_OR_REPOSITORY`."
    )


def _scores(found: Found) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    scores: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for model in found.summary.get("models", ()):
        # One checkpoint may serve several domains.
        if _published_as(Path(model["path"])) == _published_as(found.folder):
            scores |= model["scores"]
    for name, metrics in scores.items():
        for metric, score in metrics.items():
            yield name, metric, score


def _published_as(folder: Path) -> tuple[str, ...]:
    """Step, fingerprint and place of a model in its output, wherever the workspace lies."""
    parts = folder.absolute().parts
    return parts[len(parts) - parts[::-1].index("artifacts") :] if "artifacts" in parts else parts


def _measured(found: Found) -> Iterator[str]:
    rows = []
    for name, metric, score in _scores(found):
        scale, unit = (100, " %") if _is_rate(metric) else (1, "")
        numbers = [f"{scale * score[key]:.1f}" for key in ("value", "low", "high")]
        counts = [str(score.get("problems", "")), str(score.get("samples", ""))]
        rows.append([_plain(name), metric, f"{numbers[0]}{unit}", f"{numbers[1]} to {numbers[2]}", *counts])
    if not rows:
        yield "## Scores\n\nNone are known."
        return
    header = ["set", "metric", "value", "95 % interval", "problems", "samples a problem"]
    settings = found.config.get("evaluation", {})
    asked = ", ".join(
        f"{title} {settings[key]}"
        for key, title in (("temperature", "temperature"), ("top_p", "top-p"), ("max_tokens", "longest answer"))
        if key in settings
    )
    unit = " tokens" if "max_tokens" in settings else ""
    said = f"Sampled at {asked}{unit}; intervals are bootstrapped over problems." if asked else ""
    yield f"## Scores\n\n{table(header, rows)}\n\n{said}".rstrip()


def _data(found: Found) -> Iterator[str]:
    data = found.input("data")
    if data is None or not (data.folder / "card.json").is_file():
        return
    card = json.loads((data.folder / "card.json").read_text())
    rows = [
        [_plain(source["name"]), _plain(source["role"]), str(source["rows"]), _plain(source["licence"])]
        for source in card["sources"]
    ]
    yield f"## Data\n\n{table(['source', 'used for', 'rows', 'licence'], rows)}"
    said = card["decontamination"]
    if said["enabled"]:
        against = ", ".join(_plain(name) for name in said["against"]) or "no set"
        embedded = found.config.get("base_model", {}).get("source") == "embedded"
        before = "The base model has seen nothing else." if embedded else "What the base model has seen isn't known."
        yield (
            f"Contamination: training problems were compared with those of {against} ({said['ngram']}-grams of words, "
            f"near copies), and {said['removed']} were removed. {before}"
        )
    else:
        yield "Contamination: training problems were not compared with evaluation problems."


def _limits(found: Found) -> Iterator[str]:
    lines = ["It was trained for problems whose answers can be verified, and measured on the sets above alone."]
    for comparison in found.summary.get("comparisons", ()):
        if comparison["candidate"] == found.id and comparison["significant"] and comparison["difference"] < 0:
            lines.append(
                f"It is worse than {comparison['baseline']} on {_plain(comparison['scope'])} ({comparison['metric']} "
                f"{100 * comparison['difference']:+.1f} points, 95 % interval {100 * comparison['low']:+.1f} to "
                f"{100 * comparison['high']:+.1f})."
            )
    if found.config.get("profile") in ("micro", "tiny"):
        lines.append("Its base is a tiny model made on the spot: it serves to try the recipe, nothing else.")
    lines += [_plain(text) for text in found.summary.get("warnings", ()) if found.id in text]
    yield "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _provenance(found: Found) -> Iterator[str]:
    if found.output is None:
        return
    manifest = found.output.manifest
    rows = [
        ["step", f"{found.id}, fingerprint `{manifest['fingerprint']}`"],
        ["files' digest", f"`{found.output.digest}`"],
        ["run", _plain(found.run.name if found.run else str(manifest.get("run_id")))],
    ]
    if found.run and (found.run / "config.yaml").is_file():
        digest = hashlib.sha256((found.run / "config.yaml").read_bytes()).hexdigest()
        rows.append(["configuration", f"profile {_plain(str(found.config.get('profile')))}, sha256 `{digest}`"])
    rows += [
        ["seed", f"{manifest.get('seed')}{', deterministic kernels' if manifest.get('deterministic') else ''}"],
        ["code", f"vibethinker {manifest.get('versions', {}).get('vibethinker', __version__)}, revision "
                 f"`{manifest.get('revision')}`"],
        ["libraries", ", ".join(f"{n} {v}" for n, v in sorted(manifest.get("versions", {}).items())
                                if n != "vibethinker")],
    ]  # fmt: skip
    yield f"## Provenance\n\n{table(['what', 'value'], rows)}"


def _hub_data(found: Found) -> list[str]:
    """The hub's ids of what was trained on."""
    sources = found.config.get("data", {}).get("train", ())
    return sorted({s["hub"]["id"] for s in sources if s.get("hub")})


def _is_rate(metric: str) -> bool:
    return metric.partition("@")[0] in (*_TITLES, "truncated")


def _title(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{_TITLES[name]} ({metric})" if name in _TITLES and k else metric


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]#|" else c for c in " ".join(str(text).split()))
    return html.escape(escaped, quote=False)
