"""Starting vLLM so that the next start is quick, whatever the weights are.

vLLM keeps what it compiles on disk under a hash that covers the model's path and its longest sequence
(`ModelConfig.compute_hash`), so a step for each model would compile again. Here it is started on a *skeleton*: a folder
with the configuration alone, named by what is in it, beside vLLM's caches; and the longest sequence is rounded up to a
power of two. Weights are loaded afterwards, in place. That asks for layers which keep weights as checkpoints have them:
quantised ones and mixtures of experts are repacked once loaded, so they are refused.

vLLM finds the room for its cache by what is free on its GPU before and after a trial pass. What a neighbour allocates
meanwhile it takes for its own, and where one frees memory it gives up. So the engines of one GPU start one after the
other; and beside steps that train, which can't be made to wait, the cache's size is calculated instead. Engines of
several GPUs start side by side, once one has filled the cache on disk: two that compile the same would take no less
time, and write the same files.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, GenerationConfig

from vibethinker import footprint, locks, telemetry
from vibethinker.errors import ConfigurationError, OutOfMemoryError
from vibethinker.footprint import Shape
from vibethinker.generation.kinds import stored
from vibethinker.models.files import CONFIG, GENERATION_CONFIG
from vibethinker.worker.exhaustion import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from vllm import LLM

# Read when vllm is imported or its engine is built: one process that calls nobody, not even to learn its own address,
# and leaves the standard output to the command.
_ENVIRONMENT = telemetry.OFF | {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}

# What an engine is given and what it compiles doesn't depend on.
_UNCOMPILED = ("gpu_memory_utilization", "kv_cache_memory_bytes", "distributed_executor_backend")

# Its cache of keys and values would not fit.
_TOO_SMALL = (
    "No available memory for the cache blocks",
    "larger than the available KV cache memory",
    "KV cache is needed",
)


def start(
    folder: Path, *, batch: int, memory: float, sleeps: bool, eager: bool, max_length: int | None, neighbours: bool
) -> tuple[LLM, int]:
    """vLLM with the architecture of a model folder and random weights, and the longest sequence that it takes.

    Raises:
        ConfigurationError: vLLM isn't installed, finds no GPU, or can't run this model here.
    """
    LLM = _import()
    import torch
    import vllm.envs

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    given: dict[str, Any] = {
        "model": str(skeleton(folder, Path(vllm.envs.VLLM_CACHE_ROOT) / "skeletons")),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_num_seqs": batch,
        "max_model_len": -1 if max_length is None else min(positions, 1 << (max_length - 1).bit_length()),
        "gpu_memory_utilization": memory,
        "enable_sleep_mode": sleeps,
        "enforce_eager": eager,
        "logprobs_mode": "processed_logprobs",
    }
    if config.dtype is not None:  # by itself vLLM would cut float32 to half
        given["dtype"] = str(config.dtype).removeprefix("torch.")
    if neighbours and (room := cache_bytes(config, memory, batch)):
        given["kv_cache_memory_bytes"] = room
    if not eager:
        given["compilation_config"] = {"cudagraph_capture_sizes": capture_sizes(batch)}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # in the trainer's group, each process with a model of its own
        given["distributed_executor_backend"] = "external_launcher"
    try:
        with _turn(Path(vllm.envs.VLLM_CACHE_ROOT), str(torch.cuda.get_device_properties(0).uuid), given):
            llm = LLM(**given)
    except ValueError as error:
        if is_out_of_memory(error) or any(text in str(error) for text in _TOO_SMALL):
            raise OutOfMemoryError(
                f"The GPU's memory did not suffice for vLLM ({' '.join(str(error).split())[:300]}): free some, or "
                "change execution.vllm."
            ) from error
        raise ConfigurationError(
            f"vLLM can't run the model in {folder} with {memory:.0%} of the GPU's memory (execution.vllm): "
            f"{' '.join(str(error).split())}"
        ) from error
    _check_layers(llm, folder)
    return llm, min(positions, llm.model_config.max_model_len, max_length or sys.maxsize)


@contextmanager
def _turn(folder: Path, gpu: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Hold this GPU's lock among the machine's processes, and all GPUs' too until an engine that compiles alike has
    started once; the kernel frees them when their holder dies. The ranks of one step come together and start together,
    so the first alone holds the common one."""
    compiled = json.dumps({name: value for name, value in given.items() if name not in _UNCOMPILED}, sort_keys=True)
    known = folder / "skeletons" / f"compiled-{hashlib.sha256(compiled.encode()).hexdigest()[:16]}"
    first = int(os.environ.get("RANK", "0")) == 0  # not LOCAL_RANK, which is 0 where each process sees one GPU
    with ExitStack() as common, ExitStack() as own:
        if first and not known.exists():
            common.enter_context(locks.alone(folder / "vibethinker-starting"))
            if known.exists():  # by whoever was waited for
                common.close()
        own.enter_context(locks.alone(folder / f"vibethinker-starting-{gpu}"))
        yield
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()


def stop(llm: LLM) -> None:
    """Free what a started vLLM holds, and end its process group, unless that is the trainer's."""
    import torch

    client = llm.llm_engine.engine_core
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        client.engine_core.model_executor.shutdown()
        client.engine_core.scheduler.shutdown()
        gc.unfreeze()
    else:
        client.shutdown()


def configured_stops(folder: Path) -> int | list[int] | None:
    """The end-of-sequence tokens of a folder's generation config, as a loaded model has it."""
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except OSError:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return GenerationConfig.from_model_config(config).eos_token_id


def cache_bytes(config: PreTrainedConfig, memory: float, batch: int) -> int | None:
    """The size of the cache in this share of the GPU, by `footprint.vllm_cache`; None for a model of another kind than
    it knows, or where there is none left, of which vLLM then tells."""
    import torch

    total = torch.cuda.mem_get_info()[1]
    precision = "float32" if config.dtype is torch.float32 else "bfloat16"
    try:
        shape = Shape.of(config.get_text_config().to_dict())
    except KeyError:
        return None
    return max(0, footprint.vllm_cache(shape, int(memory * total), batch, precision)) or None


def capture_sizes(batch: int) -> list[int]:
    """The numbers of sequences that CUDA graphs are captured for, up to the batch: four to each doubling.

    vLLM's own steps of 8 and 16 take several times as many captures; decoding is bound by memory, so that the rows
    which a graph computes in vain cost little.
    """
    sizes = {1, 2, 4, batch}
    step = 8
    while step <= batch:
        sizes.update(range(step, min(2 * step, batch + 1), max(8, step // 4)))
        step *= 2
    return sorted(size for size in sizes if size <= batch)


def _import() -> type[LLM]:
    os.environ.update(_ENVIRONMENT)
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ConfigurationError(
            f"vLLM can't be imported ({error}): install vibethinker[train,vllm] in an environment of its own and name "
            "its interpreter by worker.python."
        ) from error
    if not current_platform.device_type:
        raise ConfigurationError("vLLM finds no GPU here: run where there is one, or generate with transformers.")
    return LLM


def skeleton(folder: Path, places: Path) -> Path:
    """A folder in `places` with the configuration of this one, whose name depends on nothing else."""
    contents = {name: json.dumps(stored(folder, name), sort_keys=True) for name in (CONFIG, GENERATION_CONFIG)}
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]
    place = places / digest
    if place.is_dir():
        return place
    places.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=places))
    for name, text in contents.items():
        if text != "{}":
            (made / name).write_text(text)
    try:
        made.rename(place)
    except OSError:  # another process was first
        shutil.rmtree(made)
        if not place.is_dir():
            raise
    return place


def _check_layers(llm: LLM, folder: Path) -> None:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    plain = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod, type(None))

    def foreign(model: Any) -> set[str]:
        methods = {getattr(module, "quant_method", None) for module in model.modules()}
        return {type(method).__name__ for method in methods if not isinstance(method, plain)}

    [found] = llm.apply_model(foreign)
    if found:
        stop(llm)
        raise ConfigurationError(
            f"The model in {folder} has layers whose weights can't be swapped in vLLM ({', '.join(sorted(found))}): "
            "set execution.engine to transformers."
        )
