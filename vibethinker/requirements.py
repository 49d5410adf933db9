"""What a configuration's steps need of their interpreter and of the GPU, checked before any time is spent.

Nothing heavy is imported: packages are looked up, the GPU is asked by nvidia-smi, and a worker's interpreter of its own
runs `vibethinker.interpreter` for a moment. What only the running step can know (does the model fit, does a kernel
compile) is left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vibethinker import hardware, interpreter, plugins
from vibethinker.config import Config
from vibethinker.errors import ConfigurationError

SECONDS = 30.0  # a cold start of an interpreter on a slow network disk
BFLOAT16, UNSLOTH, VLLM = (8, 0), (7, 0), (7, 5)  # least compute capability
TRAINERS = ("torch", "transformers", "peft", "datasets", "trl")


@dataclass(frozen=True)
class Interpreter:
    """The interpreter that steps run in.

    Attributes:
        name: as the configuration calls it.
        version: of Python.
        packages: name → version of those that are there; see `interpreter.PACKAGES`.
        plugins: distribution → version of those that bring plugins.
        cuda: version that torch is built for; None for a CPU build.
    """

    name: str
    version: str
    packages: Mapping[str, str]
    cuda: str | None
    plugins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU: its name and compute capability."""

    name: str
    capability: tuple[int, int]


def steps_interpreter(config: Config) -> Interpreter:
    """The interpreter that this configuration's steps run in.

    Raises:
        ConfigurationError: `worker.python` can't be started, or doesn't answer.
    """
    worker = config.worker
    if worker.python is None and not worker.env:
        return _own()
    # The same interpreter finds other packages by another PYTHONPATH.
    return _asked(worker.python or sys.executable, tuple(sorted(worker.env.items())))


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that this process may use, without those whose name or capability the driver doesn't tell."""
    known = _capabilities()
    found = []
    for device in hardware.devices():
        card, capability = hardware.card(device), known.get(hardware.gpu_index(device))
        if card and capability:
            found.append(Gpu(card.name, capability))
    return tuple(found)


def check_requirements(config: Config, *, trains: bool = True, samples: bool = True) -> None:
    """Refuse what the steps' interpreter or the GPU can't do; `trains` and `samples` say which steps are to run.

    Raises:
        ConfigurationError: one sentence with the cause and the mend.
    """
    for problem in missing(config, steps_interpreter(config), visible_gpus(), trains=trains, samples=samples):
        raise ConfigurationError(problem)


def missing(
    config: Config,
    has: Interpreter,
    gpus: tuple[Gpu, ...],
    *,
    trains: bool = True,
    samples: bool = True,
) -> Iterator[str]:
    """Sentences about what isn't there for this configuration, the most basic first."""
    device = hardware.device(config)
    lacking = [name for name in TRAINERS if name not in has.packages]
    if lacking and (trains or samples):
        yield (
            f"The training libraries ({', '.join(lacking)}) aren't installed in {has.name}: install vibethinker[train] "
            "there, or name an interpreter that has them by worker.python."
        )
        return
    yield from plugins.differences(config.plugin_versions(), has.plugins, has.name)
    if device == "cuda" and has.cuda is None:
        yield (
            f"The torch of {has.name} is a build for CPUs, and steps are to run on a GPU: install a CUDA build of "
            "torch, or set execution.device to cpu."
        )
    if trains:
        yield from _to_train(config, has, device, gpus)
    if samples and config.execution.engine == "vllm":
        yield from _vllm(has, device, gpus)


def _to_train(config: Config, has: Interpreter, device: str, gpus: tuple[Gpu, ...]) -> Iterator[str]:
    base = config.base_model
    if base.backend == "unsloth":
        if device == "cpu":
            yield (
                "base_model.backend unsloth needs an NVIDIA GPU, and steps run on the CPU here: set it to "
                "transformers, or run where there is a GPU."
            )
        elif "unsloth" not in has.packages:
            yield _not_installed("base_model.backend unsloth", "unsloth", "unsloth", has, "set it to transformers")
        else:
            yield from _too_old("base_model.backend unsloth", UNSLOTH, gpus, "set it to transformers")
    if base.quantization == "nf4" and "bitsandbytes" not in has.packages:
        yield _not_installed("base_model.quantization nf4", "bitsandbytes", "train", has, "set it to none")
    if base.precision == "bfloat16" and device == "cuda":
        what = "bfloat16, in which nf4 computes" if base.quantization == "nf4" else "base_model.precision bfloat16"
        yield from _too_old(what, BFLOAT16, gpus, "set base_model.precision to float32")
    for name, optimizer in _optimizers(config):
        if optimizer == "adamw_8bit" and "bitsandbytes" not in has.packages:
            yield _not_installed(f"{name} adamw_8bit", "bitsandbytes", "train", has, "set it to adamw")


def _optimizers(config: Config) -> Iterator[tuple[str, str]]:
    yield "spectrum.sft.optimizer", config.spectrum.sft.optimizer
    for i, stage in enumerate(config.signal.stages):
        yield f"optimizer of signal.stages.{i}", config.objective(stage).optimizer


def _vllm(has: Interpreter, device: str, gpus: tuple[Gpu, ...]) -> Iterator[str]:
    mend = "set it to auto or transformers"
    if device == "cpu":
        yield f"execution.engine vllm needs an NVIDIA GPU, and steps run on the CPU here: {mend}."
    elif "vllm" not in has.packages:
        yield _not_installed("execution.engine vllm", "vllm", "vllm", has, mend)
    else:
        yield from _too_old("execution.engine vllm", VLLM, gpus, mend)


def _not_installed(what: str, package: str, extra: str, has: Interpreter, mend: str) -> str:
    return f"{what} needs the package {package}, which {has.name} lacks: install vibethinker[{extra}] there, or {mend}."


def _too_old(what: str, least: tuple[int, int], gpus: tuple[Gpu, ...], mend: str) -> Iterator[str]:
    for gpu in gpus:
        if gpu.capability < least:
            yield (
                f"{what} needs a GPU of compute capability {least[0]}.{least[1]}, and {gpu.name} has "
                f"{gpu.capability[0]}.{gpu.capability[1]}: {mend}, or choose another GPU by CUDA_VISIBLE_DEVICES."
            )
            return


def _interpreter(name: str, found: Mapping[str, Any]) -> Interpreter:
    return Interpreter(name, found["python"], found["packages"], found["cuda"], found["plugins"])


@cache
def _own() -> Interpreter:
    return _interpreter("this interpreter", interpreter.look())


@cache
def _capabilities() -> dict[str, tuple[int, int]]:
    """Index of a GPU → its compute capability, as the driver tells them."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", "--query-gpu=index,compute_cap", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    rows = re.findall(r"^(\d+), (\d+)\.(\d+)$", told.stdout, re.MULTILINE)
    return {index: (int(major), int(minor)) for index, major, minor in rows}


@cache
def _asked(python: str, env: tuple[tuple[str, str], ...]) -> Interpreter:
    script = Path(interpreter.__file__).read_text()
    mend = "name an interpreter that has vibethinker and its train extra"
    try:
        asked = subprocess.run(
            [python, "-c", script], env={**os.environ, **dict(env)}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except OSError as error:
        raise ConfigurationError(f"worker.python {python!r} can't be started ({error.strerror}): {mend}.") from None
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"worker.python {python!r} didn't answer within {SECONDS:g} s: {mend}.") from None
    lines = asked.stdout.strip().splitlines()
    try:
        return _interpreter(f"worker.python {python}", json.loads(lines[-1] if lines else ""))
    except (ValueError, KeyError):
        reason = (asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"])[-1]
        raise ConfigurationError(f"worker.python {python!r} is no Python that works ({reason}): {mend}.") from None


def samples_by_vllm(config: Config, on_gpu: bool) -> bool:
    """Whether vLLM will sample completions; a plan for another machine, whose interpreter isn't here, assumes it."""
    engine = config.execution.engine
    if engine != "auto" or not on_gpu:
        return engine == "vllm"
    if not hardware.gpus():
        return True
    try:
        return "vllm" in steps_interpreter(config).packages
    except ConfigurationError:
        return True


def sampled_at_once(config: Config, on_gpu: bool) -> int:
    """Completions that are decoded at once."""
    return config.execution.generation_batch or (1024 if samples_by_vllm(config, on_gpu) else 256)
