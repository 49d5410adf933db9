"""The execution settings that a step gets beside its semantic ones: how it computes, never what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vibethinker import hardware, verifiers
from vibethinker.config import Config
from vibethinker.requirements import sampled_at_once

COMPLETIONS = "generations"  # folder of a workspace, see vibethinker.generation.kept


def server_execution(config: Config) -> dict[str, Any]:
    """How a teacher's server is asked, without its key; empty where there is none."""
    server = config.data.teacher.server
    if server is None:
        return {}
    values, asked = server.model_dump(mode="json"), server.semantic()
    return {name: value for name, value in values.items() if name not in asked}


def generation_settings(config: Config) -> dict[str, Any]:
    """What says which engine samples completions, and how."""
    device = hardware.device(config)
    return {
        "device": device,
        "generation_batch": sampled_at_once(config, device == "cuda"),
        "engine": config.execution.engine,
        "vllm": config.execution.vllm.model_dump(),
    }


def execution_settings(config: Config, threads: int, paths: Mapping[str, str], workspace: Path) -> dict[str, Any]:
    """What `StepContext.execution` holds.

    Args:
        threads: CPU threads of the step.
        paths: paths as the configuration states them → where they are; `source` is an import's folder.
        workspace: where a teacher's replies and completions that were measured are kept, so that no run asks for
            them twice.
    """
    verification = config.verification
    return {
        **generation_settings(config),
        "threads": threads,
        "sft_micro_tokens": config.spectrum.sft.micro_tokens,
        "signal_micro_tokens": config.signal.micro_tokens,
        "gradient_checkpointing": config.execution.gradient_checkpointing,
        "checkpoints": config.execution.checkpoints.model_dump(),
        "divergence": config.execution.divergence.model_dump(),
        "processes": config.execution.processes,
        "nodes": config.execution.nodes,
        "main_address": config.execution.main_address,
        "sharding": config.execution.sharding,
        "sandbox": verifiers.execution(config.sandbox),
        "verifier_workers": min(verification.workers, threads),
        "backend": config.base_model.backend,
        "paths": dict(paths),
        "replies": str(workspace / "teacher" / "replies.sqlite"),
        "generations": str(workspace / COMPLETIONS),
        "server": server_execution(config),
        "source": paths.get("source"),
    }
