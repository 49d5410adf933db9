"""`vibethinker export`: a model as others load it, with its card."""

from __future__ import annotations

import re
from pathlib import Path

import click

from vibethinker import config as configuration
from vibethinker.commands.measuring import before_imports
from vibethinker.commands.options import workspace_option
from vibethinker.errors import ConfigurationError

SHARD = "5GB"  # what transformers and the hub take by default
_SIZE = re.compile(r"[1-9]\d*(?:KB|MB|GB|KiB|MiB|GiB)")


@click.command(epilog="Example: vibethinker export signal-2 --format gguf --output my-model")
@click.argument("model")
@click.option("--format", "form", required=True, type=click.Choice(["hf", "gguf"]),
              help="A folder that transformers and vLLM load, or a file that llama.cpp loads.")  # fmt: skip
@click.option("--output", required=True, metavar="PATH", type=click.Path(path_type=Path),
              help="A new folder, or with gguf also a new .gguf file.")  # fmt: skip
@click.option("--base", metavar="DIR", type=click.Path(path_type=Path),
              help="The model that an adapter was trained on [the published one].")  # fmt: skip
@click.option("--shard-size", default=SHARD, show_default=True, help="Largest weights file of hf, such as 500MB.")
@click.option("--licence", "--license", metavar="ID", help="The weights' licence in the card, such as apache-2.0.")
@click.option("--push", metavar="REPO", help="Upload it to this repository of the Hugging Face hub too.")
@click.option("--public", is_flag=True, help="Make the repository public, if it is made now.")
@click.option("--run", "run_id", help="The run whose steps MODEL names [the latest].")
@workspace_option
def export(
    model: str, form: str, output: Path, base: Path | None, shard_size: str, licence: str | None, push: str | None,
    public: bool, run_id: str | None, workspace: str | None,
) -> None:  # fmt: skip
    """Write MODEL, a folder or a step of a run such as signal-2, in a form that others load, with a model card.

    Adapters are merged into their base. What is written is loaded again and has to hold every weight and give the same
    greedy answers before it appears at --output.
    """
    before_imports()
    from vibethinker.exporting import hub, placing
    from vibethinker.exporting.convertible import check_convertible
    from vibethinker.exporting.finding import find
    from vibethinker.models.files import CONFIG, read_json

    placing.check_place(output)
    if output.suffix == ".gguf" and (form == "hf" or push):
        raise ConfigurationError(f"--output {output} names a file, but {'--push' if push else '--format hf'} takes a "
                                 "folder: name one.")  # fmt: skip
    if not _SIZE.fullmatch(shard_size):
        raise ConfigurationError(f"--shard-size takes a size such as 500MB or 5GB, not {shard_size!r}.")
    found = find(model, configuration.workspace(workspace), run_id, base)
    config = read_json(found.base or found.folder, CONFIG, "copy the folder again")
    if form == "gguf":
        check_convertible(config)
    if push:
        hub.check_push(push)
    click.echo(f"Loading {found.folder}", err=True)

    from vibethinker.exporting.writing import write

    with placing.placed(output) as staging:
        name = output.name if output.suffix == ".gguf" else f"{found.name}.gguf"
        write(found, staging, gguf=name if form == "gguf" else None, shard_size=shard_size, licence=licence)
        names = sorted(path.name for path in staging.iterdir())
    click.echo(f"Exported {found.id} to {output} ({', '.join(names)}), loaded again and compared.")
    if push:
        address = hub.push(output, push, private=not public, message=f"{found.name}, {form}")
        click.echo(f"Pushed to {address}")
