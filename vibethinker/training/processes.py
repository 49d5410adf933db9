"""One training step over several processes: how accelerate divides a model, and how its weights become whole again.

`vibethinker.worker.ranks` starts the processes; accelerate finds them through the environment and wraps the model, by
DDP (each holds all of it) or FSDP2 (each holds a part). Whatever their number, an update sees the same sequences, and
divides their loss by the same global count. Sums of floats come out in another order, so results agree up to rounding,
not bit for bit.

Left out: tensor, pipeline and context parallelism, offloading to the CPU.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from vibethinker.models import save_model

T = TypeVar("T")
# Of one wait for the others, whose rollouts may be longer by hours. One that died is noticed by the first's watcher.
TIMEOUT = timedelta(hours=6)


def count() -> int:
    """Processes of this step."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number; 0 is the one that writes and speaks."""
    return int(os.environ.get("RANK", 0))


def join(device: str) -> None:
    """Meet the step's other processes; call it before anything else here.

    The first of them has the store by which all find each other. Left to itself it listens on every address of the
    machine, and anyone may write to it.
    """
    if count() == 1 or distributed.is_initialized():
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listening: dict[str, int] = {}
    if rank() == 0:
        with socket.create_server((host, port), backlog=count()) as mine:
            listening["master_listen_fd"] = mine.detach()
    store = distributed.TCPStore(host, port, count(), rank() == 0, TIMEOUT, **listening)
    backend = "gloo" if device == "cpu" else "nccl"
    distributed.init_process_group(backend, store=store, rank=rank(), world_size=count(), timeout=TIMEOUT)


def seed_apart(seed: int) -> None:
    """Give each process random numbers of its own, once all have begun with the same weights."""
    if count() > 1:
        torch.manual_seed(seed + rank())


def arguments(processes: int, sharding: str) -> dict[str, Any]:
    """What a trainer's arguments have beside those of one process."""
    if processes == 1:
        return {}
    found: dict[str, Any] = {
        "ddp_find_unused_parameters": False,  # every weight has a part in every loss
        "accelerator_config": {"dispatch_batches": False, "split_batches": False},  # each reads its own rows
    }
    if sharding == "fsdp":
        found |= {"fsdp": True, "fsdp_config": {"version": 2}}
    return found


class Shardable(Trainer):
    """A Trainer whose model may be sharded, on a GPU or a CPU, gradients being summed in float32."""

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, then say what the library's own arguments can't."""
        super().create_accelerator_and_postprocess()
        if self.args.device.type == "cpu":
            self.args._setup_devices = torch.device("cpu")  # accelerate's cpu:0 is none that torch.load restores to
        if not self.args.fsdp:
            return
        state = self.accelerator.state
        if state.distributed_type == DistributedType.MULTI_CPU:
            # accelerate drops the plugin where there is no GPU, though torch shards over gloo just as well.
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True
        half = torch.bfloat16 if self.args.bf16 else None
        state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)


def share(values: Sequence[T]) -> tuple[int, Sequence[T]]:
    """This process's part of a list that all have, consecutive, and the index of its first element."""
    start, end = (len(values) * r // count() for r in (rank(), rank() + 1))
    return start, values[start:end]


def gathered(values: Sequence[T]) -> list[T]:
    """The elements of all processes' lists, in the processes' order; on every process."""
    lists: list[list[T]] = [list(values)] * count()
    if count() > 1:
        distributed.all_gather_object(lists, list(values))
    return [value for one in lists for value in one]


@contextmanager
def uneven(accelerator: Accelerator) -> Iterator[None]:
    """Within the block `accelerator.gather` takes vectors of floats of another length in each process, and gives NaN
    for what the shorter ones lack. Otherwise NCCL waits for the rest for ever, and gloo ends the process."""
    if count() == 1:
        yield
        return
    gather = accelerator.gather
    accelerator.gather = lambda values: gather(accelerator.pad_across_processes(values, pad_index=math.nan))
    try:
        yield
    finally:
        del accelerator.gather


def barrier() -> None:
    """Wait for the step's other processes."""
    if count() > 1:
        distributed.barrier()


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds only parts of the model's weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """`save_model` by the first process, with whole weights; all have to call it, and find the folder afterwards."""
    state = None
    if is_sharded(model):
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank() == 0:
        if state is not None and not hasattr(model, "peft_config"):
            model, state = _assembled(model, state), None
        save_model(model, tokenizer, folder, dtype, state)
    barrier()


def _assembled(model: PreTrainedModel, state: dict[str, Tensor]) -> PreTrainedModel:
    """A model of the sharded one's architecture that has these weights and is only good for saving."""
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole
