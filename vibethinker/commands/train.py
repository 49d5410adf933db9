"""`vibethinker train-specialist` and `vibethinker signal`: one training step on its own, from files to a folder.

The step runs in a worker's child as in a pipeline, in a workspace that lasts as long as the command, and its output is
moved into place whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vibethinker import config as configuration
from vibethinker import hardware, plugins, preflight, validation
from vibethinker.artifacts import EVIDENCE
from vibethinker.commands.options import configuration_options
from vibethinker.config import Config
from vibethinker.errors import ConfigurationError, DataError, VibeThinkerError
from vibethinker.requirements import check_requirements
from vibethinker.settings import CODE_DOMAIN, BaseModelSettings

if TYPE_CHECKING:
    from vibethinker.data.schema import Trace
    from vibethinker.plan import Step

FINGERPRINT = "alone"

_metrics_option = click.option(
    "--metrics",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON lines of each step's measurements: loss, seconds, tokens a second and memory by phase.",
)


@click.command("train-specialist")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--domain", required=True, help="Name of the domain the traces are of.")
@click.option(
    "--train-data",
    required=True,
    type=click.Path(path_type=Path),
    help="JSONL file of traces (as the data step writes), or of problems with column `solution`.",
)
@click.option("--output", type=click.Path(path_type=Path), help="A new folder [specialist-DOMAIN].")
@click.option("--max-seq-length", type=int, help="Longest trace in tokens.")
@click.option("--max-steps", type=int, help="Optimizer steps.")
@_metrics_option
@configuration_options
def train_specialist(
    model: Path, domain: str, train_data: Path, output: Path | None, max_seq_length: int | None, max_steps: int | None,
    metrics: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Train a specialist of one domain from MODEL and keep its checkpoints for `probe` to choose from.

    Example: vibethinker train-specialist base --domain algebra --train-data algebra.jsonl --max-steps 100
    --output algebra
    """
    from vibethinker.data.schema import Trace, write_records

    overrides = _given(("spectrum.sft.max_length", max_seq_length), ("spectrum.sft.steps", max_steps))
    output = output or Path(f"specialist-{domain}")
    _check(model, output)
    config = _load(model, options, overrides)
    check_requirements(config, samples=False)
    traces = _read_traces(train_data, domain)
    settings = {
        "seed": config.seed,
        "prompts": config.prompts.semantic(),
        "base_model": config.base_model.semantic(),
        "deterministic": config.deterministic,
        "domains": [domain],
        "sft": config.spectrum.sft.semantic(),
    }
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        (data / "sft").mkdir(parents=True)
        write_records(data / "sft" / f"{domain}.parquet", Trace, traces)
        _run_alone(
            "specialist", f"specialist-{domain}", settings, {"base": model, "data": data}, {}, config, output, metrics
        )


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--train-data", type=click.Path(path_type=Path), help="JSONL file of problems [the configuration's own data]."
)
@click.option(
    "--val-data", type=click.Path(path_type=Path), help="JSONL file of problems that the result is measured on."
)
@click.option("--output", type=click.Path(path_type=Path), help="A new folder for the model [signal].")
@click.option("--max-seq-length", default=4096, show_default=True, help="Prompt and completion together, in tokens.")
@click.option("--max-steps", type=int, help="Updates.")
@click.option("--reward", default="math", show_default=True, metavar="NAME", help="math, code, or a plugin's.")
@_metrics_option
@configuration_options
def signal(
    model: Path, train_data: Path | None, val_data: Path | None, output: Path | None, max_seq_length: int,
    max_steps: int | None, reward: str, metrics: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Train MODEL by one signal stage (MGPO).

    Example: vibethinker signal fused --train-data problems.jsonl --max-seq-length 4096 --max-steps 100 --output rl
    """
    from vibethinker.data.sources import read_stage_file
    from vibethinker.plan import build, decided_by

    plugins.find(plugins.REWARDS, reward)
    output = output or Path("signal")
    _check(model, output)
    config = _load(model, options, ["signal.stages=[]", f"spectrum.sft.max_length={max_seq_length}"])
    said = {name: str(path.absolute()) for name, path in (("train", train_data), ("val", val_data)) if path}
    for path in said.values():
        read_stage_file(Path(path), reward)
    stage: dict[str, Any] = {
        "name": "alone",
        "context": max_seq_length,
        "reward": reward,
        "train_data": said.get("train"),
        "validation_data": said.get("val"),
    }
    if max_steps is not None:
        stage["steps"] = max_steps
    # The configuration checks what a stage of these settings has to agree with.
    values = config.model_dump(mode="json", by_alias=True)
    values["signal"]["stages"] = [stage]
    if train_data is None:
        values["domains"] = [d for d in config.domains if (d == CODE_DOMAIN) == (reward == "code")]
        values["spectrum"]["fusion"] = {}  # which speaks of all domains
        if not values["domains"]:
            raise ConfigurationError(
                f"The configuration has no domain whose problems the reward {reward} judges: give --train-data."
            )
    config = configuration.validate(values)
    check_requirements(config)
    made = config.signal.stages[0]
    if reward == "code":
        click.echo(f"Programs run in the sandbox tier {preflight.try_sandbox(config)}.", err=True)
    settings = {
        "seed": config.seed,
        "prompts": config.prompts.semantic(),
        "base_model": config.base_model.semantic(),
        "deterministic": config.deterministic,
        "verification": config.verifier(),
        "stage": {k: v for k, v in made.semantic().items() if k not in ("overrides", "domains")},
        "objective": config.objective(made).semantic(),
        "domains": list(config.stage_domains(made)),
        **config.signal.measurement(),
        **decided_by([(plugins.REWARDS, reward)]),
    }
    paths = {path: path for path in said.values()}
    data = None
    if train_data is None:  # the data need no model, and a plan would read all of it
        data = build(config.model_copy(update={"base_model": BaseModelSettings()}), Path("."))["data"]
    _run_alone("signal", "signal-1", settings, {"model": model}, paths, config, output, metrics, data)


def _run_alone(
    kind: str, step: str, settings: Mapping[str, Any], inputs: Mapping[str, Path], paths: Mapping[str, str],
    config: Config, output: Path, measured: Path | None, data: Step | None = None,
) -> None:  # fmt: skip
    """Run one step of a worker in a workspace of its own and move what it made to `output`; what a failed step
    printed is kept in `output`.log. Measurements go to the file `measured`, if given. With `data`, this step runs first
    and is the other's input `data`."""
    from vibethinker.artifacts import Store
    from vibethinker.commands.measuring import shown_progress
    from vibethinker.execution import execution_settings
    from vibethinker.memory import Memory, run_within
    from vibethinker.needs import memory_need, place_of
    from vibethinker.worker.host import Event, Host

    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    if measured:
        measured.write_text("")
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".vibethinker-") as folder:
        workspace = Path(folder)
        store = Store(workspace)
        for role, source in inputs.items():
            staging = store.staging(role, FINGERPRINT)
            shutil.copytree(source, staging, dirs_exist_ok=True)
            (staging / "manifest.json").unlink(missing_ok=True)
            store.publish(staging, role, FINGERPRINT, inputs={}, record={"metrics": {}, "seconds": 0.0})
        gpu = hardware.first_gpus(config.execution.processes) if hardware.device(config) == "cuda" else None
        common = {
            "workspace": str(workspace),
            "fingerprint": FINGERPRINT,
            "log": str(workspace / "step.log"),
            "stall_seconds": config.execution.stall_seconds,
            "stop_seconds": config.execution.stop_seconds,
            "gpu": gpu,
        }
        requests: list[dict[str, Any]] = [
            {
                "step": step,
                "kind": kind,
                "settings": dict(settings),
                "inputs": {role: [role, FINGERPRINT] for role in (*inputs, *(["data"] if data else []))},
                "execution": execution_settings(config, hardware.cores(), paths, configuration.workspace()),
            }
        ]
        if data:
            execution = execution_settings(config, hardware.cores(), data.outside, configuration.workspace())
            before = {"step": "data", "kind": "data", "settings": data.settings, "inputs": {}, "execution": execution}
            requests.insert(0, before)
        with shown_progress() as show:

            def warn(text: str) -> None:
                click.echo(f"Warning: {text}", err=True)

            def hear(event: Event) -> None:
                if event["event"] == "progress":
                    show(event["done"], event["total"], event["text"])
                elif event["event"] == "warning":
                    warn(event["text"])
                elif event["event"] == "metrics" and measured:
                    row = {"step": event["step"], "time": event["time"], **event["values"]}
                    with measured.open("a") as file:
                        file.write(json.dumps(row) + "\n")

            memory = Memory(configuration.workspace(), warn)

            worker = config.worker
            with Host(workspace / "worker.log", python=worker.python, env=worker.env, fork=False) as host:
                try:
                    for request in requests:

                        def attempt(execution: dict[str, Any], request: dict[str, Any] = request) -> dict[str, Any]:
                            return host.run({**common, **request, "execution": execution}, hear)

                        execution = request["execution"]
                        need = memory_need(config, request["settings"], config.architecture(), place_of(gpu))
                        result = run_within(attempt, need, execution, memory, warn)
                except VibeThinkerError as error:
                    error = _with_evidence(error, store.checkpoints(step, FINGERPRINT), output)
                    if not (workspace / "step.log").exists():
                        raise error from None
                    kept = output.with_name(f"{output.name}.log")
                    with kept.open("a") as file:
                        file.write((workspace / "step.log").read_text(errors="replace"))
                    raise type(error)(f"{error} What it printed is in {kept}.") from error
        os.rename(result["folder"], output)
    for name, value in sorted(result["metrics"].items()):
        click.echo(f"{name}: {value}")
    click.echo(f"Written to {output}")


def _with_evidence(error: VibeThinkerError, state: Path, output: Path) -> VibeThinkerError:
    """The error, with the evidence of a divergence moved to where it outlives the command, as it then says."""
    if not (state / EVIDENCE).is_dir():
        return error
    kept = output.with_name(f"{output.name}.evidence")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.move(state / EVIDENCE, kept)
    return type(error)(str(error).replace(str(state / EVIDENCE), str(kept)))


def _read_traces(path: Path, domain: str) -> list[Trace]:
    """Traces as the data step writes them, or rows with the columns `problem` and `solution`.

    Raises:
        DataError: with file and line.
    """
    from vibethinker.data.readers import Bad, read_rows
    from vibethinker.data.schema import Trace

    traces = []
    for number, row in read_rows(path):
        try:
            if isinstance(row, Bad):
                raise DataError(row.reason)
            if "solution" in row:
                problem, text = str(row["problem"]), str(row["solution"])
                traces.append(Trace(f"{path.stem}-{number}", domain, problem, text, teacher=path.stem))
            else:
                traces.append(Trace.from_row(row))
        except KeyError:
            raise DataError(f"{path}:{number}: a row with `solution` needs `problem` too.") from None
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}; or give the columns `problem` and `solution`.") from None
    if not traces:
        raise DataError(f"{path} has no trace: give one a row.")
    return traces


def _given(*pairs: tuple[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in pairs if value is not None]


def _load(model: Path, options: Mapping[str, Any], more: list[str]) -> Config:
    """The configuration asked for, else the settings' own defaults: every profile is made for one model.

    Raises:
        ConfigurationError: it spreads trainings over machines, which look for them in a workspace that outlasts them.
    """
    overrides = [*options["overrides"], f"base_model.source={model}", *more]
    if options["profile"] or options["file"]:
        config = configuration.load(options["profile"], options["file"], overrides)
    else:
        config = configuration.load_defaults(overrides)
    if config.execution.nodes > 1:
        raise ConfigurationError(
            f"execution.nodes is {config.execution.nodes}, but only `vibethinker run` spreads trainings over machines: "
            "leave it at 1 here."
        )
    check_requirements(config)
    hardware.check_processes(config)
    return config


def _check(model: Path, output: Path) -> None:
    from vibethinker.models.files import check_model_folder

    check_model_folder(model)
    validation.refuse_damaged(model)
    if output.exists():
        raise ConfigurationError(f"--output {output} exists already: name a new folder.")
    parent = next(p for p in output.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigurationError(f"--output {output} can't be written: name a folder below one of yours.")
