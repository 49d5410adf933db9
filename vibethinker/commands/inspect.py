"""Commands that look and change nothing: plan, status, logs, report, validate."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from vibethinker import config as configuration
from vibethinker import runs, validation
from vibethinker.artifacts import Store
from vibethinker.commands.options import plan_options, planned, workspace_option
from vibethinker.errors import ConfigurationError
from vibethinker.experiments import planning
from vibethinker.messages import did_you_mean
from vibethinker.needs import slow_to_save, together
from vibethinker.plan import plugin_notes, reuse_warnings, states


@click.command()
@plan_options
@click.option("--json", "as_json", is_flag=True, help="Print plan.json instead of a table.")
def plan(as_json: bool, **options: Any) -> None:
    """Show the steps of a run: what is cached, what is to run, and what it will cost.

    Executes nothing and needs neither a GPU nor torch.

    Example: vibethinker plan --profile vibethinker-1.5b --set execution.gpu=H100
    """
    asked = planned(**options)
    show_plan(asked, as_json=as_json)


def show_plan(asked: Any, *, as_json: bool = False) -> None:
    """Print a plan with its states and estimates."""
    found = states(asked.plan, Store(asked.plan.workspace), asked.refresh)
    document = runs.plan_document(asked.plan, found)
    if as_json:
        click.echo(json.dumps(document, indent=1, sort_keys=True))
        return
    table = Table("step", "fingerprint", "state", "tokens", "time", "from", box=None)
    gpu = any(s["estimate"]["gpu_memory_bytes"] for s in document["steps"])
    price = any(s["estimate"]["usd"] for s in document["steps"])
    for title in [*(["GPU memory"] if gpu else []), *(["USD"] if price else [])]:
        table.add_column(title)
    for step in document["steps"]:
        e = step["estimate"]
        tokens = e["trained_tokens"] + e["generated_tokens"]
        state = step["state"].replace("_", " ")
        if step["resumes_after"] is not None:
            state = f"resumable at update {step['resumes_after']}"
        row = [step["id"], step["fingerprint"][:12], state, _count(tokens)]
        told = e["source"] if tokens or e["source"] == "measured" else None
        row += [_time(e["seconds"]) if told or tokens else "", told or ""]
        if gpu:
            row.append(f"{e['gpu_memory_bytes'] / 1e9:.1f} GB" if tokens and e["gpu_memory_bytes"] else "")
        if price:
            row.append(_money(e["usd"]) if e["usd"] else "")
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    waiting = [s for s in document["steps"] if s["state"] != "cached"]
    click.echo(f"{len(document['steps'])} steps, {len(waiting)} to run{_together(document['estimate'])}.")
    notes = plugin_notes(asked.plan) + [f"{s['id']}: {s['reason']}." for s in waiting if s["reason"]]
    notes += reuse_warnings(found)
    for step in waiting:
        if start := step["estimate"]["memory"]["start"]:
            notes.append(f"{step['id']} starts with {start}, since more has run out of memory before.")
    for note in notes:
        click.echo(f"Note: {note}")
    slow = {step["id"]: slow_to_save(asked.config, asked.plan[step["id"]]) for step in waiting}
    for warning in together({step["id"]: step["estimate"]["memory"]["warning"] for step in waiting}) + together(slow):
        click.echo(f"Warning: {warning}")


def show_experiment(document: dict[str, Any], *, as_json: bool = False) -> None:
    """Print what an experiment's arms share, what is there, and what the rest will cost."""
    if as_json:
        click.echo(json.dumps(document, indent=1, sort_keys=True))
        return
    table = Table("step", "arms", "outputs", "cached", "for runs", "tokens", "time", box=None)
    arms = len(document["arms"])
    for row in planning.groups(document["outputs"]):
        who = "all" if len(row["arms"]) == arms else ", ".join(row["arms"][:3])
        who += f" and {len(row['arms']) - 3} more" if who != "all" and len(row["arms"]) > 3 else ""
        resumable = f" ({row['resumable']} resumable)" if row["resumable"] else ""
        numbers = [str(row["outputs"]), f"{row['cached']}{resumable}", str(row["runs"])]
        left = row["cached"] < row["outputs"] and row["tokens"]
        estimated = [_count(row["tokens"]), _time(row["seconds"])] if left else ["", ""]
        table.add_row(row["step"], who, *numbers, *estimated)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    outputs = document["outputs"]
    waiting = [one for one in outputs if one["state"] != "cached"]
    seconds, usd = planning.total(waiting, "seconds"), planning.total(waiting, "usd")
    known = "time unknown" if seconds is None else f"about {_time(seconds)} one after the other"
    used = sum(one["runs"] for one in outputs)
    click.echo(
        f"{document['id']}: {document['runs']} runs of {arms} arms over {len(document['seeds'])} seeds need {used} "
        f"outputs, {len(outputs)} of them different; {len(waiting)} are to be made, {known} (estimated)"
        + (f", {usd:.2f} USD." if waiting and usd else ".")
    )
    click.echo(f"Control: {document['control']}; {document['family']} comparisons, corrected together.")


@click.command()
@workspace_option
@click.option("--run", "run_id", help="A run's id [the latest].")
@click.option("--watch", "watched", is_flag=True, help="Go on showing it until the run ends; exit as the run does.")
def status(workspace: str | None, run_id: str | None, watched: bool) -> None:
    """Show how far a run is, step by step.

    Example: vibethinker status --watch
    """
    folder = _run_folder(workspace, run_id)
    if watched:
        from vibethinker.commands.watch import watch

        raise click.exceptions.Exit(watch(folder))
    summary = runs.read_summary(folder)
    click.echo(f"Run {summary['run_id']}: {summary['status']}")
    if summary.get("reason"):
        click.echo(summary["reason"])
    table = Table("step", "state", "seconds", box=None)
    for step in summary["steps"]:
        seconds = "" if step["seconds"] is None else f"{step['seconds']:.1f}"
        table.add_row(step["id"], step["state"], seconds)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for step in summary["steps"]:
        if step.get("error"):
            click.echo(f"{step['id']}: {step['error']}")
    for warning in summary["warnings"]:
        click.echo(f"Warning: {warning}")


@click.command()
@workspace_option
@click.option("--run", "run_id", help="A run's id [the latest].")
@click.option("--lines", default=50, show_default=True, help="Last lines of each log.")
@click.argument("step", required=False)
def logs(workspace: str | None, run_id: str | None, lines: int, step: str | None) -> None:
    """Print what a step's libraries wrote, or the last lines of every step's log.

    Example: vibethinker logs signal-1
    """
    folder = _run_folder(workspace, run_id) / "logs"
    paths = [folder / f"{step}.log"] if step else sorted(folder.glob("*.log"))
    for path in paths:
        if not path.is_file():
            names = [p.stem for p in sorted(folder.glob("*.log"))]
            mend = did_you_mean(step or "", names) if names else "no step has begun yet"
            raise ConfigurationError(f"There is no log of {step!r} in this run; {mend}.")
        text = path.read_text(errors="replace").splitlines()[-lines:]
        if not step:
            click.echo(f"==> {path.stem} <==")
        click.echo("\n".join(text))


@click.command()
@workspace_option
@click.option("--run", "run_id", help="A run's id [the latest].")
def report(workspace: str | None, run_id: str | None) -> None:
    """Print what a run achieved and where its report is.

    Example: vibethinker report --workspace workspace
    """
    from vibethinker.reporting import text

    folder = _run_folder(workspace, run_id)
    click.echo(text.summarise(runs.read_summary(folder), configuration.workspace(workspace)))


@click.command()
@click.argument("path")
@click.option("--level", help=f"One of {', '.join(validation.LEVELS)} [digest; finite without a manifest].")
def validate(path: str, level: str | None) -> None:
    """Check a published output or a model folder; exit 1 with the reason if it is not whole.

    Example: vibethinker validate workspace/artifacts/fusion/<fingerprint> --level generates
    """
    if not Path(path).is_dir():
        raise ConfigurationError(f"There is no folder {path}: name a published output or a model folder.")
    level = level or ("digest" if (Path(path) / validation.MANIFEST).exists() else "finite")
    if reason := validation.check(Path(path), level):
        click.echo(f"Invalid at level {level}: {reason}.")
        raise click.exceptions.Exit(1)
    click.echo(f"Valid at level {level}: {path}")


def _run_folder(workspace: str | None, run_id: str | None) -> Path:
    folder = configuration.workspace(workspace)
    if run_id is None:
        return runs.latest(folder)
    if not (folder / "runs" / run_id / "summary.json").is_file():
        raise ConfigurationError(f"The workspace {folder} has no run {run_id!r}: `ls {folder / 'runs'}` lists them.")
    return folder / "runs" / run_id


def _together(of: Mapping[str, Any]) -> str:
    """How long all steps take, what they cost, and where that is from."""
    if not of["steps"]:
        return ""
    if of["seconds"] is None:
        return ", time unknown"
    usd = "" if of["usd"] is None else f" and {_money(of['usd'])} USD"
    at_once = f", {of['slots']} at once" if of["slots"] > 1 else ""
    measured, table = "as measured here before", "by the table of usual speeds"
    sources = {of["steps"]: measured, 0: table}
    source = sources.get(of["measured"], f"{of['measured']} of them {measured}, others {table}")
    told = f"estimated{at_once}; {_time(of['work_seconds'])} of work, {source}"
    return f", about {_time(of['elapsed_seconds'])}{usd} ({told})"


def _money(usd: float) -> str:
    return f"{usd:.2f}" if usd >= 0.1 else f"{usd:.2g}"


def _count(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number) if number else ""


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
