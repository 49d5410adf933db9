"""Which engine samples, and how it is opened: in one place for everything that generates.

`auto` is vLLM where it is installed and the step has a GPU, and else transformers. One engine serves all checkpoints
of one architecture, since its weights can be swapped in place in less than a second, while vLLM's start takes tens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vibethinker.generation import Engine
from vibethinker.generation.kinds import kind
from vibethinker.models.files import check_model_folder, is_adapter
from vibethinker.models.loading import load_model, load_tokenizer
from vibethinker.operations import Vllm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def engine_name(execution: Mapping[str, Any]) -> str:
    """`vllm` or `transformers`: what `execution.engine` comes to here."""
    chosen = execution.get("engine", "auto")
    if chosen != "auto":
        return chosen
    fast = execution["device"] == "cuda" and importlib.util.find_spec("vllm") is not None
    return "vllm" if fast else "transformers"


def open_engine(
    folder: Path,
    *,
    base: Path | None = None,
    execution: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
    share: bool = False,
    max_length: int | None = None,
    model: PreTrainedModel | None = None,
) -> Engine:
    """An engine with a model's weights; close it when it has served.

    Args:
        folder: a model folder, or an adapter folder, which is merged into `base`.
        execution: of a `StepContext`: engine, vllm, device, generation_batch, gpu_share.
        tokenizer: the folder's, where it is loaded already.
        share: whether a trainer computes on the same GPU, so that vLLM takes a smaller share of it and may sleep.
        max_length: the longest prompt and completion together, in tokens; vLLM has room for no more, so that its
            completions end there. None: the model's positions.
        model: the model in training, with which the transformers engine then decodes.

    Raises:
        ConfigurationError: a folder is incomplete, an adapter lacks its base, or vLLM can't run here.
    """
    if model is None:
        check_model_folder(folder)
    whole = base if is_adapter(folder) and base is not None else folder
    tokenizer = tokenizer or load_tokenizer(whole)
    batch = execution["generation_batch"]
    if engine_name(execution) == "transformers":
        from vibethinker.generation.transformers_engine import TransformersEngine

        if model is not None:
            return TransformersEngine(model, tokenizer, batch)
        return TransformersEngine(
            load_model(folder, base=base, device=execution["device"]), tokenizer, batch, owned=True
        )
    from vibethinker.generation.vllm_engine import VllmEngine

    settings = Vllm.model_validate(execution.get("vllm", {}))
    return VllmEngine(
        folder,
        base=base,
        tokenizer=tokenizer,
        batch=batch,
        memory=settings.shared_memory if share else settings.memory,
        sleeps=share and settings.sleep,
        eager=settings.eager,
        max_length=max_length,
        neighbours=execution.get("gpu_share", 1.0) < 1,
    )


class Engines:
    """One engine at a time, for one checkpoint after the other; a context manager that closes it.

    Args:
        execution: see `open_engine`.
        max_length: the longest prompt and completion together by this tokenizer, in tokens.
    """

    def __init__(
        self, execution: Mapping[str, Any], max_length: Callable[[PreTrainedTokenizerBase], int | None]
    ) -> None:
        self._execution, self._max_length = execution, max_length
        self._engine: Engine | None = None
        self._kind: Any = None

    def at(self, folder: Path, base: Path | None = None) -> Engine:
        """The engine with this folder's weights. Checkpoints of one architecture and tokenizer share it; at another
        it is opened anew.

        Raises:
            ConfigurationError: see `open_engine`.
        """
        check_model_folder(folder)
        whole = base if is_adapter(folder) and base is not None else folder
        found = kind(whole)
        if self._engine is not None and found == self._kind:
            self._engine.load(folder, base)
            return self._engine
        self.close()
        tokenizer = load_tokenizer(whole)
        self._engine = open_engine(
            folder,
            base=base,
            execution=self._execution,
            tokenizer=tokenizer,
            max_length=self._max_length(tokenizer),
        )
        self._kind = found
        return self._engine

    def close(self) -> None:
        """Close the engine if there is one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
