"""From a configuration to the steps of its run, with their fingerprints: which there are, what each reads, and which of
its settings name its output. Nothing is executed, and no output is looked at (`vibethinker.plan.reuse`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vibethinker import plugins
from vibethinker.artifacts import file_digest, folder_digest
from vibethinker.config import Config
from vibethinker.data.sources import resolve
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.messages import did_you_mean
from vibethinker.models.sources import HUB_ID
from vibethinker.plan.steps import Plan, Step, role_of
from vibethinker.settings import CODE_DOMAIN, Distillation, Evaluation, Hard, Stage

# Raise a number when the code of that kind computes something else from the same settings.
VERSIONS = {
    "data": 2,
    "base": 6,
    "import": 1,
    "specialist": 2,
    "solutions": 1,
    "probe": 1,
    "fusion": 2,
    "signal": 2,
    "selection": 1,
    "distilled": 1,
    "evaluation": 2,
    "report": 2,
}
MIXTURE = "mixture"


def build(config: Config, workspace: Path, replaced: Mapping[str, str] | None = None) -> Plan:
    """The plan of a configuration.

    Args:
        replaced: step id → a folder of the user's that takes the place of this step's output (`--from`).

    Raises:
        ConfigurationError, DataError: an outside file is missing, or a replaced step isn't in the plan.
    """
    return _Builder(config, workspace, dict(replaced or {})).build()


class _Builder:
    def __init__(self, config: Config, workspace: Path, replaced: dict[str, str]) -> None:
        self.config, self.workspace, self.replaced = config, workspace, replaced
        self.steps: dict[str, Step] = {}
        c = config
        self.common = {"seed": c.seed, "prompts": c.prompts.semantic(), "verification": c.verifier()}
        self.spectrum_seed = _first(c.spectrum.seed, c.seed)
        self.signal_seed = _first(c.signal.seed, self.spectrum_seed)
        self.training = {
            "seed": c.seed,
            "prompts": c.prompts.semantic(),
            "base_model": c.base_model.semantic(),
            "deterministic": c.deterministic,
        }

    def build(self) -> Plan:
        self._data()
        self._base()
        self._spectrum()
        models = self._signal()
        if self.config.distillation:
            models.append(self._distilled(models[1:], self.config.distillation))
        self._evaluations(models)
        self._drop_unneeded(models[-1])
        self._report()
        if unused := set(self.replaced) - set(self.steps):
            first = min(unused)
            raise ConfigurationError(
                f"--from {first}: there is no such step to replace; {did_you_mean(first, list(self.steps))}."
            )
        return Plan(self.config, tuple(self.steps.values()), self.workspace)

    def _add(
        self, id: str, kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None,
        outside: Mapping[str, Path] | None = None, named: Mapping[str, Any] | None = None,
        domain: str | None = None, stage: str | None = None,
    ) -> str:  # fmt: skip
        inputs, outside = dict(inputs or {}), dict(outside or {})
        named = settings if named is None else named  # what the fingerprint covers
        if id in self.replaced:
            source = Path(self.replaced[id]).expanduser().absolute()
            if not source.is_dir():
                raise ConfigurationError(f"--from {id}={self.replaced[id]}: there is no such folder: name one that is.")
            settings, kind, inputs, outside = {"role": kind}, "import", {}, {"source": source}
            named = settings
        content = {
            "kind": kind,
            "version": VERSIONS[kind],
            "settings": named,
            "inputs": {role: self.steps[i].fingerprint for role, i in sorted(inputs.items())},
            "outside": {said: _digest_outside(path) for said, path in sorted(outside.items())},
        }
        fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.steps[id] = Step(
            id, kind, settings, inputs, fingerprint, {k: str(v) for k, v in outside.items()}, domain, stage
        )
        return id

    def _data(self) -> None:
        data = self.config.data
        said = [f.path for f in (*data.train, *data.evaluation) if f.path] if data.source == "files" else []
        if data.decontamination.enabled:
            said += data.decontamination.against
        outside = {path: resolve(path, data.directory) for path in said}
        teacher = data.teacher.model if data.teacher.engine != "server" else None
        if teacher and (place := _local_model("data.teacher.model", teacher)):
            outside[teacher] = place
        for setting, model in (("diversity.embedding", data.diversity.embedding), ("tokenizer", data.tokenizer)):
            if model is not None:
                folder = Path(model).expanduser().absolute()
                if not folder.is_dir():
                    raise ConfigurationError(
                        f"data.{setting} {model!r} is no folder here: name a model's folder on this machine."
                    )
                outside[model] = folder
        math = [d for d in self.config.domains if d != CODE_DOMAIN]
        settings = {
            "seed": self.config.seed,
            "domains": list(self.config.domains),
            "math_domains": math,
            "data": data.semantic(),
        }
        if data.teacher.model:  # only a teacher's traces depend on how prompts are written
            settings["prompts"] = self.config.prompts.semantic()
        settings["verification"] = self.config.verifier()
        if data.source == "procedural":
            settings |= decided_by((plugins.DOMAINS, domain) for domain in self.config.domains)
        self._add("data", "data", settings, outside=outside, named=_without_limits(settings))

    def _base(self) -> None:
        base = self.config.base_model
        settings = {
            "seed": self.config.seed,
            "base_model": base.semantic(),
            "deterministic": self.config.deterministic,
        }
        if base.source == "embedded":
            settings["prompts"] = self.config.prompts.semantic()
            self._add("base", "base", settings, {"data": "data"})
            return
        local = _local_model("base_model.source", base.source)
        # A local model is named by its content, so that moving it changes nothing.
        settings["base_model"] = {**base.semantic(), "source": "local"} if local else base.semantic()
        self._add("base", "base", settings, outside={"local": local} if local else None)

    def _spectrum(self) -> None:
        spectrum, domains = self.config.spectrum, self.config.domains
        trained = {d: f"specialist-{d}" for d in domains}
        if spectrum.mode == "trajectory":
            trained = dict.fromkeys(domains, f"specialist-{MIXTURE}")
        for id in dict.fromkeys(trained.values()):
            on = [d for d in domains if trained[d] == id]
            settings = {
                **self.training,
                "seed": self.spectrum_seed,
                "domains": on,
                "sft": spectrum.sft.semantic(),
            }
            self._add(
                id, "specialist", settings, {"base": "base", "data": "data"}, domain=id.removeprefix("specialist-")
            )
            if spectrum.hard:
                trained = {
                    d: self._hard(id, settings, spectrum.hard) if trained[d] == id else trained[d] for d in domains
                }
        for d in domains:
            self._add(
                f"probe-{d}",
                "probe",
                {**self.common, "seed": self.spectrum_seed, "domain": d, "probing": spectrum.probing.semantic()},
                {"base": "base", "data": "data", "specialist": trained[d]},
                domain=d,
            )
        sources = {f"specialist-{d}": trained[d] for d in domains} | {f"probe-{d}": f"probe-{d}" for d in domains}
        settings = {"fusion": spectrum.fusion.semantic(), "domains": list(domains)}
        if spectrum.fusion.method == "dare" or spectrum.fusion.is_plugin:
            settings["seed"] = self.spectrum_seed
        settings |= decided_by([(plugins.FUSION, spectrum.fusion.method)])
        if spectrum.fusion.generates:
            settings |= {**self.common, "seed": self.spectrum_seed, "probing": spectrum.probing.semantic()}
            sources["data"] = "data"
        self._add("fusion", "fusion", settings, {"base": "base", **sources})
        self.specialists = trained

    def _hard(self, first: str, settings: Mapping[str, Any], hard: Hard) -> str:
        """The second stage of a specialist, and what it needs to know of the first one's model."""
        domain = first.removeprefix("specialist-")
        solved = self._solutions(domain, first, settings["domains"], hard, domain=domain)
        inputs = {"base": "base", "data": "data", "specialist": first, "solutions": solved}
        chosen = {"accuracy": hard.accuracy, "epochs": hard.epochs}
        return self._add(f"hard-{domain}", "specialist", {**settings, "hard": chosen}, inputs, domain=domain)

    def _solutions(
        self, name: str, model: str, domains: Sequence[str], sampling: Hard | Distillation, *,
        domain: str | None = None, stage: str | None = None,
    ) -> str:  # fmt: skip
        """A model's own solutions of the training problems."""
        asked = sampling.model_dump(include={"samples", "temperature", "top_p", "max_tokens"})
        settings = {
            **self.common,
            "seed": self._seed_of(model),
            "domains": list(domains),
            "model": model,
            "evaluation": Evaluation(k=(1,), **asked).semantic(),
        }
        inputs = {"model": model, "data": "data"}
        return self._add(f"solutions-{name}", "solutions", settings, inputs, domain=domain, stage=stage)

    def _signal(self) -> list[str]:
        models = ["fusion"]
        for number, stage in enumerate(self.config.signal.stages, start=1):
            outside = {
                said: resolve(said, self.config.data.directory)
                for said in (stage.train_data, stage.validation_data)
                if said
            }
            settings = {
                **self.training,
                "seed": self.signal_seed,
                "verification": self.config.verifier(),
                "stage": {k: v for k, v in stage.semantic().items() if k not in ("overrides", "domains")},
                "objective": self.config.objective(stage).semantic(),
                "domains": list(self.config.stage_domains(stage)),
                **self.config.signal.measurement(),
                **decided_by([(plugins.REWARDS, stage.reward)]),
            }
            inputs = {"model": models[-1], "data": "data"}
            models.append(self._add(f"signal-{number}", "signal", settings, inputs, outside=outside, stage=stage.name))
        return models

    def _distilled(self, models: list[str], distillation: Distillation) -> str:
        """The student, what it learns from, and the stages' solutions that this is chosen from."""
        student, domains = distillation.student, list(self.config.domains)
        solved = [
            self._solutions(model, model, self._solvable(stage), distillation, stage=stage.name)
            for model, stage in zip(models, self.config.signal.stages, strict=True)
        ]
        chosen = {"prompts": self.config.prompts.semantic(), "domains": domains}
        chosen["selection"] = distillation.selection.semantic()
        self._add("selection", "selection", chosen, {"student": student, **{id: id for id in solved}})
        settings = {
            **self.training,
            "seed": self.signal_seed,
            "sft": self.config.spectrum.sft.semantic(),
            "epochs": distillation.epochs,
        }
        return self._add("distilled", "distilled", settings, {"student": student, "traces": "selection"})

    def _seed_of(self, model: str) -> int:
        """The seed that what this model samples is drawn by: that by which the model was."""
        role = role_of(self.steps[model])
        if role in ("signal", "distilled"):
            return self.signal_seed
        return self.spectrum_seed if role in ("specialist", "fusion") else self.config.seed

    def _solvable(self, stage: Stage) -> tuple[str, ...]:
        """The domains of the data step that a stage's model is asked about."""
        asked = stage.model_copy(update={"domains": None}) if stage.train_data else stage
        return self.config.stage_domains(asked)

    def _evaluations(self, models: list[str]) -> None:
        def evaluate(name: str, model: str, sets: list[str] | None = None, **more: str) -> None:
            evaluation = self.config.evaluation.semantic()
            settings = {**self.common, "seed": self._seed_of(model), "evaluation": evaluation, "sets": sets}
            domain = name.removeprefix("specialist-") if more else None
            stage = self.steps[model].stage
            inputs = {"model": model, "data": "data", **more}
            self._add(f"evaluation-{name}", "evaluation", settings, inputs, domain=domain, stage=stage)

        evaluate("base", "base")
        for d, specialist in self.specialists.items():
            # Generated problems have one set a domain, and a specialist is measured at home.
            sets = [d] if self.config.data.source == "procedural" else None
            evaluate(f"specialist-{d}", specialist, sets, base="base", probe=f"probe-{d}")
        for model in models:
            evaluate(model, model)

    def _drop_unneeded(self, final: str) -> None:
        """Leave out what the final model doesn't come from: a replaced step needs nothing that led to it."""
        needed = {final, "data"}
        for id in reversed(list(self.steps)):
            if id in needed:
                needed.update(self.steps[id].inputs.values())
        measured = {
            id for id, s in self.steps.items() if role_of(s) == "evaluation" and set(s.inputs.values()) <= needed
        }
        self.steps = {id: s for id, s in self.steps.items() if id in needed | measured}

    def _report(self) -> None:
        kinds = ("data", "base", "specialist", "probe", "fusion", "signal", "distilled", "evaluation")
        inputs = {id: id for id, step in self.steps.items() if role_of(step) in kinds}
        models = [
            {"id": id.removeprefix("evaluation-"), "evaluation": id, "model": step.inputs["model"]}
            for id, step in self.steps.items()
            if role_of(step) == "evaluation"
        ]
        settings = {
            "profile": self.config.profile,
            "domains": list(self.config.domains),
            "math_domains": [d for d in self.config.domains if d != CODE_DOMAIN],
            "models": models,
        }
        self._add("report", "report", settings, inputs)


def decided_by(used: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """What a step's settings, and so its fingerprint, say of the plugins among these names of groups: nothing where it
    uses none."""
    versions = plugins.versions(used)
    return {"plugins": versions} if versions else {}


def plugin_notes(plan: Plan) -> list[str]:
    """A sentence for each version of plugins that decides what steps compute."""
    steps: dict[str, list[str]] = {}
    for step in plan.steps:
        for name, version in step.settings.get("plugins", {}).items():
            steps.setdefault(f"{name} {version}", []).append(step.id)
    return [
        f"{', '.join(ids)}: decided by plugins of {version}, which the fingerprint names."
        for version, ids in sorted(steps.items())
    ]


def _first(seed: int | None, otherwise: int) -> int:
    return otherwise if seed is None else seed


def _local_model(setting: str, name: str) -> Path | None:
    """Where a model on this machine is; None for one of the hub.

    Raises:
        ConfigurationError: the name is a path where nothing is, or no hub id.
    """
    path = Path(name).expanduser().absolute()
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise ConfigurationError(f"{setting} {name!r}: there is no such file or folder, so correct the path.")
    if not HUB_ID.fullmatch(name):
        raise ConfigurationError(
            f"{setting} {name!r} is neither a folder, nor a .gguf file, nor a hub id such as Qwen/Qwen3-0.6B: correct "
            "it."
        )
    return None


def _without_limits(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The data step's settings without those from which it stops: whoever raises one goes on from where it stopped,
    and comes to the same output."""
    data, teacher = dict(settings["data"]), dict(settings["data"]["teacher"])
    del data["bad_rows"]
    if teacher["budget"]["then"] == "stop":
        del teacher["budget"]
    return {**settings, "data": {**data, "teacher": teacher}}


def _digest_outside(path: Path) -> str:
    if path.is_dir():
        return folder_digest(path)
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(
            f"The file {path} can't be read ({error.strerror}): check the path in the configuration."
        ) from None
