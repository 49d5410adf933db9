"""`vibethinker fuse`: the weighted mean of several models."""

from __future__ import annotations

from pathlib import Path

import click

from vibethinker.commands.measuring import before_imports, print_table, shown_progress
from vibethinker.errors import ConfigurationError


@click.command(epilog="Example: vibethinker fuse specialist-a specialist-b --output fused --weights 1,2")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", required=True, metavar="DIR", type=click.Path(path_type=Path), help="A new or empty folder.")
@click.option("--method", default="linear", show_default=True, type=click.Choice(["linear"]), help="How to merge.")
@click.option("--weights", metavar="A,B,...", help="A weight for each model, normalised to sum 1 [uniform].")
@click.option("--base", metavar="DIR", type=click.Path(path_type=Path),
              help="The model that adapters belong to; gives type and tokenizer [the first MODEL].")  # fmt: skip
def fuse(models: tuple[Path, ...], output: Path, method: str, weights: str | None, base: Path | None) -> None:
    """Write the weighted mean of the MODELs, folders of one architecture or adapters of one base."""
    before_imports()
    shares = _numbers(weights) if weights is not None else [1.0] * len(models)

    from vibethinker import fusion, validation

    for folder in (*models, *([base] if base else [])):
        validation.refuse_damaged(folder)
    with shown_progress() as progress:
        fusion.fuse(models, output, shares, base, lambda done, total: progress(done, total, "tensors"))
    normalised = fusion.normalised(shares)
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
