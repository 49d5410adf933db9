"""`vibethinker fuse`: one model of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from vibethinker import plugins
from vibethinker.commands.measuring import MAX_TOKENS, before_imports, print_table, shown_progress
from vibethinker.commands.options import configuration_options
from vibethinker.errors import ConfigurationError
from vibethinker.messages import explain
from vibethinker.settings import READ_BY, Fusion, Search


@click.command(
    epilog="Example: vibethinker fuse specialist-a specialist-b --output fused --method ties --base base --weights 1,2"
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", required=True, metavar="DIR", type=click.Path(path_type=Path), help="A new or empty folder.")
@click.option("--method", default="linear", show_default=True, metavar="NAME",
              help=f"How to merge: {', '.join(plugins.names(plugins.FUSION))}.")  # fmt: skip
@click.option("--weights", metavar="A,B,...", help="A weight for each model, normalised to sum 1 [uniform].")
@click.option("--base", metavar="DIR", type=click.Path(path_type=Path),
              help="The model that adapters belong to and that task_arithmetic, ties and dare measure changes from; "
              "gives tokenizer and generation config [the first MODEL].")  # fmt: skip
@click.option("--scale", metavar="X", type=float, help="What the merged change is multiplied by [1].")
@click.option("--density", metavar="X", type=float, help="Share of each change that stays [ties 0.2, dare 0.1].")
@click.option("--t", metavar="X", type=float, help="slerp's place between the first MODEL and the second [0.5].")
@click.option("--seed", default=0, show_default=True, help="Seed of what dare drops, and of a search.")
@click.option("--probes", metavar="A,B,...", help="pass_at_k: each MODEL's probe.json.")
@click.option("--as-adapter", is_flag=True, help="Fuse adapters to an adapter, without their base; by linear, "
              "pass_at_k or task_arithmetic.")  # fmt: skip
@click.option("--shard-gib", default=5.0, show_default=True, type=click.FloatRange(min=0, min_open=True),
              help="Most of a file's weights.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Where to merge.")
@click.option("--search", is_flag=True, help="Look for the weights with the highest Pass@K on --data.")
@click.option("--trials", metavar="N", type=click.IntRange(min=2), help="Weightings that a search tries [16].")
@click.option("--data", metavar="FILE", type=click.Path(path_type=Path), help="JSONL problems that a search uses.")
@click.option("--held-out", metavar="FILE", type=click.Path(path_type=Path),
              help="JSONL problems on which the found weights are measured.")  # fmt: skip
@click.option("--report", metavar="FILE", type=click.Path(path_type=Path), help="JSON file for a search's result.")
@click.option("--samples", metavar="N", type=click.IntRange(min=1), help="Completions a problem [the configuration's].")
@click.option("--k", metavar="K", type=click.IntRange(min=1), help="K of the Pass@K [the configuration's].")
@click.option("--max-tokens", metavar="N", type=click.IntRange(min=1),
              help=f"Longest completion [{MAX_TOKENS}, or the configuration's].")  # fmt: skip
@click.option("--allow-unsafe-code", is_flag=True,
              help="Run the programs of code problems under resource limits alone, which is no sandbox.")  # fmt: skip
@configuration_options
def fuse(
    models: tuple[Path, ...], output: Path, method: str, weights: str | None, base: Path | None, scale: float | None,
    density: float | None, t: float | None, seed: int, probes: str | None, as_adapter: bool, shard_gib: float,
    device: str, search: bool, **searched: Any,
) -> None:  # fmt: skip
    """Fuse the MODELs, folders of one architecture or adapters of one base; docs/fusion.md has the methods."""
    before_imports()
    looks = {"trials": searched["trials"] or Search.model_fields["trials"].default} if search else None
    given = {"scale": scale, "density": density, "t": t, "search": looks}
    try:
        settings = Fusion(method=method, **{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError(explain(error, Fusion)) from None
    for name, methods in READ_BY.items():
        if given[name] is not None and method not in methods:
            raise ConfigurationError(f"--{name} belongs to the methods {', '.join(methods)}: leave it out.")
    if (probes is None) != (method != "pass_at_k") or (probes and weights):
        raise ConfigurationError("The method pass_at_k takes its weights from --probes, and only that method does.")
    if weights is not None and (search or method == "slerp"):
        raise ConfigurationError("--weights go with neither --search nor slerp, which has --t: leave them out.")
    shares = _of_probes(probes) if probes else _numbers(weights) if weights is not None else None

    from vibethinker import fusion, validation
    from vibethinker.fusion.adapters import fuse_adapters

    for folder in (*models, *([base] if base else [])):
        validation.refuse_damaged(folder)
    if search:
        if as_adapter:
            raise ConfigurationError("A search measures whole models: leave --as-adapter or --search out.")
        from vibethinker.commands.fuse_search import searched_weights

        shares = searched_weights(models, base, output, settings, seed, **searched)
    elif stray := next((name for name, value in searched.items() if value), None):
        raise ConfigurationError(f"--{stray.replace('_', '-')} belongs to a search: add --search, or leave it out.")
    with shown_progress() as progress:
        if as_adapter:
            fuse_adapters(models, output, shares, lambda done, of: progress(done, of, "modules"), settings=settings)
        else:
            fusion.fuse(
                models, output, shares, base, lambda done, total: progress(done, total, "tensors"), settings=settings,
                seed=seed, device=device, shard_bytes=int(shard_gib * 2**30),
            )  # fmt: skip
    if method == "slerp" and shares is None:
        shares = [1 - settings.t, settings.t]
    normalised = fusion.normalised(shares or [1.0] * len(models))
    print_table(
        "model",
        {f"{i}. {m}": {"weight": f"{w:.4f}"} for i, (m, w) in enumerate(zip(models, normalised, strict=True), 1)},
    )
    click.echo(f"Fused ({method}) into {output}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"--weights takes numbers with commas between them such as 1,2, not {text!r}."
        ) from None


def _of_probes(text: str) -> list[float]:
    from vibethinker.fusion.methods import pass_at_k

    try:
        found = pass_at_k.weights([json.loads(Path(name).read_text()) for name in text.split(",")])
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ConfigurationError(
            f"--probes takes files that `vibethinker probe` or a run wrote ({type(error).__name__}: {error})."
        ) from None
    if found is None:
        raise ConfigurationError("None of the --probes has solved a problem, so there is nothing to weight by.")
    return found
