"""One typed, validated configuration, put together from a profile, a file, the environment and the command line.

Later sources win, key by key: profile < file < environment < command line. Anything unknown is refused with the
nearest valid name. The models of the single rooms are in `vibethinker.settings`. Nothing here loads torch or asks
the network: a model's shape comes from its folder's config.json or from the profile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from vibethinker import plugins
from vibethinker.agreement import disagreements
from vibethinker.data.settings import DataSettings
from vibethinker.errors import ConfigurationError
from vibethinker.fields import Settings, setting
from vibethinker.messages import did_you_mean, explain
from vibethinker.operations import Approvals, Budget, Execution, Notifications, Scaling, Storage, Tracking, Worker
from vibethinker.settings import (
    CODE_DOMAIN,
    MATH_DOMAINS,
    BaseModelSettings,
    Distillation,
    Evaluation,
    Objective,
    Prompts,
    Sandbox,
    Signal,
    Spectrum,
    Stage,
    Verification,
)

# The environment variables of the shell pipeline that this project replaces [seed], and the one of images that have the
# steps' interpreter beside the flow's.
ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "BASE_MODEL": ("base_model.source",),
    "DATA_DIR": ("data.directory",),
    "SPECTRUM_STEPS": ("spectrum.sft.steps",),
    "SIGNAL_STEPS": ("signal.stages.*.steps",),
    "DIVERSITY_K": ("spectrum.probing.k",),
    "NUM_GENERATIONS": ("signal.objective.group_size",),
    "MAX_SEQ_LENGTH_STAGE1": ("signal.stages.0.context",),
    "MAX_SEQ_LENGTH_STAGE2": ("signal.stages.1.context",),
    "MAX_SEQ_LENGTH_STAGE3": ("signal.stages.2.context",),
    "DATA_PREP_MAX_PROBLEMS": ("data.max_problems",),
    "DATA_PREP_N_SOLUTIONS": ("data.solutions",),
    "DATA_PREP_TEACHER_MODEL": ("data.teacher.model",),
    "DECONTAM_ENABLED": ("data.decontamination.enabled",),
    "DECONTAM_EVAL_DATASETS": ("data.decontamination.against",),
    "VIBETHINKER_WORKER_PYTHON": ("worker.python",),
}
WORKSPACE_VARIABLES = ("VIBETHINKER_WORKSPACE", "OUTPUT_ROOT")


class Config(Settings):
    """The whole configuration of a run."""

    profile: str = setting("tiny", "the profile it started from")
    seed: int = setting(1, "seed of everything random", ge=0)
    deterministic: bool = setting(True, "deterministic kernels: the same seed gives the same result on one machine")
    domains: tuple[str, ...] = setting((*MATH_DOMAINS, CODE_DOMAIN), "one specialist each", min_length=1)
    base_model: BaseModelSettings = setting(BaseModelSettings, "where the recipe starts")
    data: DataSettings = setting(DataSettings, "problems and traces (phase 0)")
    prompts: Prompts = setting(Prompts, "the one prompt format")
    spectrum: Spectrum = setting(Spectrum, "specialists, probing and fusion (phase 1)")
    signal: Signal = setting(Signal, "reinforcement learning (phase 2)")
    distillation: Distillation | None = setting(None, "self-distillation (phase 3); unset is none")
    evaluation: Evaluation = setting(Evaluation, "measurement")
    verification: Verification = setting(Verification, "limits of the verifiers")
    sandbox: Sandbox = setting(Sandbox, "where programs run")
    worker: Worker = setting(Worker, "the interpreter of the steps")
    execution: Execution = setting(Execution, "how steps run, never what they compute")
    tracking: Tracking = setting(Tracking, "MLflow")
    notifications: Notifications = setting(Notifications, "who hears of a run")
    approvals: Approvals = setting(Approvals, "where a run waits for somebody")
    budget: Budget = setting(Budget, "what a run may spend before it pauses")
    storage: Storage = setting(Storage, "where outputs are kept beside the workspace")
    scaling: Scaling = setting(Scaling, "what runs the steps")

    @model_validator(mode="after")
    def _agree(self) -> Config:
        for problem in disagreements(self):
            raise ValueError(problem)
        return self

    def objective(self, stage: Stage) -> Objective:
        """The objective of one stage: `signal.objective` with the stage's overrides."""
        return Objective.model_validate({**self.signal.objective.model_dump(by_alias=True), **stage.overrides})

    def stage_domains(self, stage: Stage) -> tuple[str, ...]:
        """The domains whose problems a stage trains on."""
        if stage.domains is not None:
            return stage.domains
        code = stage.reward == "code"
        return tuple(d for d in self.domains if (d == CODE_DOMAIN) == code)

    def verifier(self) -> dict[str, Any]:
        """What verdicts depend on."""
        return {**self.verification.semantic(), "sandbox": self.sandbox.semantic()}

    def plugin_versions(self) -> dict[str, str]:
        """Distribution → version of what others bring to the steps of this run."""
        domains = self.domains if self.data.source == "procedural" else ()
        used = [(plugins.DOMAINS, domain) for domain in domains]
        used += [(plugins.REWARDS, stage.reward) for stage in self.signal.stages]
        return plugins.versions([*used, (plugins.FUSION, self.spectrum.fusion.method)])

    def runs_code(self) -> bool:
        """Whether programs that a model wrote are run."""
        files = (*self.data.train, *self.data.evaluation)
        rewarded = any(stage.reward == "code" for stage in self.signal.stages)
        return CODE_DOMAIN in self.domains or rewarded or any(file.tests_programs for file in files)

    def model_positions(self) -> int | None:
        """Longest sequence the base model takes, RoPE scaling included; None where its config.json isn't at hand."""
        shape = self.architecture()
        positions = shape.get("max_position_embeddings") if shape else None
        if positions and self.base_model.rope_scaling:
            return int(positions * self.base_model.rope_scaling.factor)
        return positions

    def architecture(self) -> dict[str, Any] | None:
        """The base model's shape in the words of config.json, read without loading anything."""
        base = self.base_model
        if base.source == "embedded":
            e = base.embedded
            return {
                "model_type": "qwen3",
                "hidden_size": e.hidden_size,
                "num_hidden_layers": e.layers,
                "num_attention_heads": e.heads,
                "num_key_value_heads": e.kv_heads,
                "head_dim": e.hidden_size // e.heads,
                "intermediate_size": e.intermediate_size,
                "vocab_size": e.vocabulary,
                "max_position_embeddings": e.positions,
                "tie_word_embeddings": True,
            }
        folder = Path(base.source).expanduser()
        if (folder / "config.json").is_file():
            return json.loads((folder / "config.json").read_text())
        return base.architecture


# ---- loading ----


def profiles() -> list[str]:
    """Names of the profiles that come with the package."""
    folder = resources.files("vibethinker") / "profiles"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


@cache
def _profile_text(name: str) -> str:
    if name not in profiles():
        raise ConfigurationError(f"There is no profile {name!r}; {did_you_mean(name, profiles())}.")
    return (resources.files("vibethinker") / "profiles" / f"{name}.yaml").read_text()


def load(
    profile: str | None = None,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    partial: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The configuration of a run.

    Args:
        profile: name of a profile; None takes the file's `profile`, else `tiny`.
        file: a YAML file laid over the profile.
        overrides: `a.b=value` texts of the command line; values are read as YAML.
        partial: a partial configuration laid over the file, as deployments pass it.
        environ: where the seed's environment variables are looked up; None is os.environ.

    Raises:
        ConfigurationError: in one sentence, what is wrong and how to mend it.
    """
    from_file = _read_file(Path(file)) if file is not None else {}
    name = profile or (partial or {}).get("profile") or from_file.get("profile") or "tiny"
    values: dict[str, Any] = yaml.safe_load(_profile_text(name)) or {}
    merge(values, from_file)
    merge(values, dict(partial or {}))
    values["profile"] = name
    for variable in ENVIRONMENT:
        if text := (os.environ if environ is None else environ).get(variable):
            for path in _paths(values, variable):
                _assign_environment(values, variable, path, text)
    _override(values, overrides)
    return validate(values)


def environment_settings(config: Config, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Setting → its value in `config`, for each setting that a variable of the environment names."""
    values, found = config.model_dump(mode="json", by_alias=True), {}
    for variable in ENVIRONMENT:
        if (os.environ if environ is None else environ).get(variable):
            for path in _paths(values, variable):
                node: Any = values
                for part in path.split("."):
                    node = node[int(part)] if isinstance(node, list) else node[part]
                found[path] = node
    return found


def load_defaults(overrides: Iterable[str]) -> Config:
    """The settings' own defaults with `a.b=value` texts laid over them, without any profile."""
    values: dict[str, Any] = {}
    _override(values, overrides)
    return validate(values)


def _override(values: dict[str, Any], overrides: Iterable[str]) -> None:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(f"--set takes KEY=VALUE such as spectrum.sft.steps=100, not {text!r}.")
        if key.strip() == "profile":
            raise ConfigurationError("--set profile only changes the name: use --profile to start from another one.")
        _assign(values, key.strip(), _yaml_value(value, f"--set {key}"), text)


def validate(values: Mapping[str, Any]) -> Config:
    """A Config from plain values; errors become one sentence."""
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigurationError(explain(error, Config)) from None


def workspace(given: str | Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """The folder that holds artifacts and runs: given, else the environment's, else `workspace` here."""
    environ = os.environ if environ is None else environ
    named = next((environ[v] for v in WORKSPACE_VARIABLES if environ.get(v)), "workspace")
    return Path(given or named).expanduser().absolute()


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Lay `over` on `base` in place: objects merge key by key, everything else is replaced."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def read_text(path: Path, what: str) -> str:
    """A text file that somebody wrote, in UTF-8.

    Args:
        what: it is, to begin a sentence with.

    Raises:
        ConfigurationError: it can't be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{what} can't be read ({error.strerror}): correct the path.") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{what} isn't UTF-8 (its byte {error.start + 1}): save it as UTF-8.") from None


def _read_file(path: Path) -> dict[str, Any]:
    text = read_text(path, f"The configuration file {path}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"The configuration file {path} isn't valid YAML, mend it: {reason}.") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigurationError(f"The configuration file {path} must hold keys and values, as the profiles do.")
    return values or {}


def _yaml_value(text: str, where: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigurationError(f"{where}: {text!r} isn't a YAML value; quote it.") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text, since it lacks a dot
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _paths(values: Mapping[str, Any], variable: str) -> list[str]:
    """The settings that a variable means here: `*` is every stage, and a stage that isn't there is none, since the
    seed always set three lengths."""
    stages = len((values.get("signal") or {}).get("stages") or [])
    paths = []
    for path in ENVIRONMENT[variable]:
        numbers = range(stages) if "*" in path else [0]
        paths += [path.replace("*", str(i)) for i in numbers]
    return [p for p in paths if not p.startswith("signal.stages.") or int(p.split(".")[2]) < stages]


def _assign_environment(values: dict[str, Any], variable: str, path: str, text: str) -> None:
    value: Any = _yaml_value(text, variable)
    if variable == "DECONTAM_EVAL_DATASETS":
        value = text.replace(",", " ").split()
    elif path in ("base_model.source", "data.directory", "data.teacher.model", "worker.python"):
        value = text
    _assign(values, path, value, variable)


def _assign(values: dict[str, Any], dotted: str, value: Any, said: str) -> None:
    node: Any = values
    *parents, last = dotted.split(".")
    for part in parents:
        if isinstance(node, list):
            node = _item(node, part, said)
        elif isinstance(node, dict):
            if not isinstance(node.get(part), (dict, list)):
                node[part] = {}
            node = node[part]
    if isinstance(node, list):
        _item(node, last, said)
        node[int(last)] = value
    else:
        node[last] = value


def _item(items: list[Any], part: str, said: str) -> Any:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigurationError(f"{said}: {part!r} isn't one of the list's {len(items)} positions, counted from 0.")
    return items[int(part)]
