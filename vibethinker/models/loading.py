"""Models and tokenizers between disk and memory, and the process-wide settings that training depends on."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vibethinker.errors import ConfigurationError
from vibethinker.models.files import ADAPTER_CONFIG, CONFIG, check_model_folder, is_adapter
from vibethinker.models.tokenizers import check_vocabulary, read_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, padding on the left as generation needs it.

    Raises:
        ConfigurationError: it can't be read, belongs to another model, or lacks a pad token or a chat template,
            which `run_base` ensures.
    """
    tokenizer = read_tokenizer(folder, padding_side="left")
    if tokenizer.pad_token is None:
        raise ConfigurationError(f"The tokenizer in {folder} has no pad token: set one and save it again.")
    if tokenizer.chat_template is None:
        raise ConfigurationError(f"The tokenizer in {folder} has no chat template: set one and save it again.")
    if (folder / CONFIG).is_file():  # an adapter's folder has none
        check_vocabulary(tokenizer, folder)
    return tokenizer


def load_model(
    folder: Path, *, base: Path | None = None, device: str = "cpu", dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """A causal language model in evaluation mode, ready for inference or training.

    Args:
        folder: a model folder, or an adapter folder, which is merged into its base.
        base: the model folder that an adapter belongs to.
        device: where the weights go.
        dtype: type of the weights; None keeps the stored one.

    Raises:
        ConfigurationError: the folder is incomplete, its architecture is unknown, or an adapter lacks its
            base.
    """
    import torch

    check_model_folder(folder)
    if is_adapter(folder):
        if base is None:
            raise ConfigurationError(f"{folder} holds an adapter: name the base model that it was trained on.")
        from peft import PeftModel

        whole = load_model(base, device=device, dtype=torch.float32)
        merged = PeftModel.from_pretrained(whole, folder).merge_and_unload(safe_merge=True)
        return merged.to(dtype or _stored_dtype(base)).eval()
    return from_folder(folder, dtype=dtype or "auto").to(device).eval()


def from_folder(folder: Path, **options: Any) -> PreTrainedModel:
    """The model of a whole model's folder, loaded by transformers with these options of its own.

    Raises:
        ConfigurationError: it can't be loaded.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The model in {folder} can't be loaded ({_first_line(error)}).") from None


def attention(device: str, dtype: torch.dtype) -> str:
    """The attention implementation for training that computes in `dtype`: flash-attn where it is installed and can,
    else PyTorch's own. Inference stays on the latter, which the transformers engine decodes fastest with."""
    from transformers.utils import is_flash_attn_2_available

    flash = device.startswith("cuda") and dtype.itemsize == 2 and is_flash_attn_2_available()
    return "flash_attention_2" if flash else "sdpa"


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a model folder, or an adapter folder for a PEFT model; equal models give equal bytes.

    `dtype` is the type that the weights are stored in, None their own. An adapter keeps its own type; its
    folder gets the tokenizer too, and no trace of where its base was. `state` has the weights of a model that holds
    only parts of them, None means its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if dtype is not None and dtype != model.dtype and not hasattr(model, "peft_config"):
        model = copy.deepcopy(model).to(dtype)
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    # PEFT writes the base's path, a set in hash order, and a model card full of placeholders.
    if (folder / ADAPTER_CONFIG).is_file():
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        config["base_model_name_or_path"] = None
        config["target_modules"] = sorted(config["target_modules"])
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (folder / "README.md").unlink(missing_ok=True)


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed python, numpy and torch; `deterministic` also asks torch for kernels that repeat on one machine.

    Operations without such a kernel warn instead of failing, since some GPU sampling operations have none.
    """
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs time


def set_threads(threads: int) -> None:
    """Limit the CPU threads of this process's tensor operations."""
    import torch

    torch.set_num_threads(threads)


def _stored_dtype(folder: Path) -> torch.dtype:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True).dtype


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
