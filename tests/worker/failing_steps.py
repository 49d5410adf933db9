"""Steps that end in every way a step can; run by the worker's tests through `module:function` kinds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.waiting import until
from vibethinker import preemption
from vibethinker.errors import (
    ConfigurationError,
    DataError,
    DivergedError,
    InfrastructureError,
    PreemptedError,
    RolledBackError,
)
from vibethinker.steps import Metrics, StepContext

ERRORS = {
    "configuration": ConfigurationError,
    "data": DataError,
    "diverged": DivergedError,
    "infrastructure": InfrastructureError,
    "preempted": PreemptedError,
    "out_of_memory": MemoryError,
    "failure": ZeroDivisionError,
}


def succeed(context: StepContext) -> Metrics:
    """Write one file and report some progress."""
    context.emit.progress(1, 2, "half")
    context.emit.metrics(1, {"loss": 0.5})
    print("a library's noise")
    (context.output / "value.txt").write_text(context.settings["value"])
    return {"length": len(context.settings["value"])}


def fail(context: StepContext) -> Metrics:
    """Raise the error that the settings name."""
    raise ERRORS[context.settings["error"]]("this is why")


def roll_back(context: StepContext) -> Metrics:
    """Go back twice before the end, each time in another process."""
    pids = [*context.checkpoints.glob("*.pid"), context.checkpoints / f"{os.getpid()}.pid"]
    pids[-1].touch()
    if len(pids) < 3:
        raise RolledBackError("this is why")
    (context.output / "value.txt").write_text("abc")
    return {"processes": len(pids)}


def wait(context: StepContext) -> Metrics:
    """Tell the process ids of this step and of a grandchild, then say nothing more."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    context.emit.metrics(0, {"child": os.getpid(), "grandchild": grandchild.pid})
    time.sleep(600)
    return {}


def save_when_asked(context: StepContext) -> Metrics:
    """Wait to be asked to stop, and take a second and a half to save then."""
    with preemption.held():
        context.emit.metrics(0, {})
        while not preemption.asked():
            time.sleep(0.02)
        time.sleep(1.5)
        (context.checkpoints / "saved").touch()
    preemption.check()
    return {}


def note_when_asked(context: StepContext) -> Metrics:
    """Note that this rank was asked to stop, which the first tells to do once all are here."""
    with preemption.held():
        (context.checkpoints / f"here-{os.environ['RANK']}").touch()
        while len(list(context.checkpoints.glob("here-*"))) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.02)
        context.emit.metrics(0, {})
        while not preemption.asked():
            time.sleep(0.02)
        (context.checkpoints / f"asked-{os.environ['RANK']}").touch()
        time.sleep(1.5)
    preemption.check()
    return {}


def reword(context: StepContext) -> Metrics:
    """Be asked to stop within a library that tells any failure in its own words."""
    try:
        context.emit.metrics(0, {})
        time.sleep(600)
    except Exception as error:
        raise ConfigurationError("the file can't be read") from error
    return {}


def read_slowly(context: StepContext) -> Metrics:
    """Read an input some time after its beginning."""
    context.emit.metrics(0, {})
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        (context.inputs["data"] / "value.txt").read_text()
        time.sleep(0.02)
    return {}


def stopped_while_published(context: StepContext) -> Metrics:
    """Have the first file that is hashed ask this process to stop."""
    import hashlib

    digest = hashlib.file_digest

    def asked(*words: Any) -> Any:
        hashlib.file_digest = digest
        os.kill(os.getpid(), signal.SIGTERM)
        return digest(*words)

    hashlib.file_digest = asked
    for name in "abc":
        (context.output / name).write_text(name)
    return {"files": 3}


def die(context: StepContext) -> Metrics:
    """End without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def add_up(context: StepContext) -> Metrics:
    """Sum over the ranks what each holds, and tell how each was started."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    total = torch.tensor([float(2**rank)])
    distributed.all_reduce(total)
    context.emit.metrics(1, {"rank": rank})
    (context.output / f"{rank}.txt").write_text(str(rank))
    return {"total": total.item(), "threads": context.execution["threads"], "ranks": distributed.get_world_size()}


def fail_on_a_rank(context: StepContext) -> Metrics:
    """Fail, or be killed, on the rank that the settings name, while the others wait for it."""
    from torch import distributed

    distributed.init_process_group("gloo")
    if distributed.get_rank() == context.settings["rank"]:
        time.sleep(0.5)
        if context.settings["error"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ERRORS[context.settings["error"]]("this is why")
    distributed.barrier()
    return {}


def hang_on_a_rank(context: StepContext) -> Metrics:
    """Tell all ranks' process ids; then rank 0 waits for another, which sleeps, where no signal handler runs."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    pids = [torch.zeros(1) for _ in range(distributed.get_world_size())]
    distributed.all_gather(pids, torch.tensor([float(os.getpid())]))
    context.emit.metrics(0, {str(rank): pid.item() for rank, pid in enumerate(pids)})
    if distributed.get_rank():
        time.sleep(600)
    distributed.barrier()
    return {}


def need_memory(context: StepContext) -> Metrics:
    """Run out of memory above the settings' `bound`: an execution setting → the most that fits, or what it has to
    be."""
    tried = {name: context.execution[name] for name in ("signal_micro_tokens", "sft_micro_tokens", "generation_batch")}
    tried |= {"gradient_checkpointing": context.execution["gradient_checkpointing"], **context.execution["vllm"]}
    context.emit.metrics(0, {name: value for name, value in tried.items() if value is not None})
    for name, most in context.settings["bound"].items():
        if (tried[name] is not most) if isinstance(most, bool) else tried[name] > most:
            raise MemoryError(f"{name} is {tried[name]}")
    (context.output / "tried.json").write_text("{}")
    return {name: value for name, value in tried.items() if value is not None}


def compute(context: StepContext) -> Metrics:
    """Say on what, and from when to when, this step computed: for some seconds, or until a file is there."""
    began, long = time.time(), context.settings["seconds"]
    context.emit.progress(0, 1, "computing")
    if isinstance(long, str):
        until(Path(long).exists, 240)
    else:
        time.sleep(long)
    (context.output / "done.txt").write_text("")
    return {
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "device": context.execution["device"],
        "threads": context.execution["threads"],
        "vllm_memory": context.execution["vllm"]["memory"],
        "vllm_shared_memory": context.execution["vllm"]["shared_memory"],
        "gpu_share": context.execution["gpu_share"],
        "began": began,
        "ended": time.time(),
    }


def train_a_specialist(context: StepContext) -> Metrics:
    """Train as the recipe does, on a device that holds VIBETHINKER_TEST_TOKENS of a micro-batch and no more."""
    import torch

    from vibethinker.training import sft

    tokens = context.execution["sft_micro_tokens"]
    if tokens > int(os.environ["VIBETHINKER_TEST_TOKENS"]):
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tokens} MiB.")
    return sft.run(context)


def warn_of_keys(context: StepContext) -> Metrics:
    """Warn and fail with keys: one of the environment, and one that came with the request."""
    keys = f"{os.environ['SOME_API_KEY']} and {context.execution['secrets']['block']}"
    context.emit.warning(f"refused: {keys}")
    raise DataError(f"refused: {keys}")
