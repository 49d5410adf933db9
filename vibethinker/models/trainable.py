"""Models ready to be trained: whole, or frozen under low-rank adapters, as transformers or Unsloth builds them.

Trained in full, the weights are float32 on any device, since an update of 1e-6 vanishes in bfloat16; computation in
`dtype` is autocast's. Under adapters the base is frozen in `dtype`, or its projections in 4 bits (NF4, the constants
quantised too, computing in `dtype`; embeddings and lm_head keep `dtype`), and the adapters are float32.

Left out: adapters on anything but the seven projections, 8-bit weights, and sharding, which is the trainer's.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vibethinker.errors import ConfigurationError
from vibethinker.models.files import CONFIG, GENERATION_CONFIG, check_model_folder, is_adapter, positions, read_json
from vibethinker.models.loading import attention, from_folder
from vibethinker.models.tokenizers import read_tokenizer
from vibethinker.settings import Lora

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def lora_config(settings: Lora) -> LoraConfig:
    """Adapters on all seven projections of every block."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(PROJECTIONS),
        task_type="CAUSAL_LM",
    )


def load_trainable(
    folder: Path,
    *,
    method: Literal["full", "lora"],
    quantization: Literal["none", "nf4"] = "none",
    backend: Literal["transformers", "unsloth"] = "transformers",
    device: str,
    dtype: torch.dtype,
    lora: Lora,
    gradient_checkpointing: bool = False,
    max_length: int,
) -> PreTrainedModel | PeftModel:
    """A model in training mode whose trainable weights are float32; see the module.

    Adapters start from torch's random numbers, so seed them first. Gradient checkpointing is on when this returns:
    a trainer's own option must stay off, or it would replace Unsloth's.

    Args:
        folder: a whole model, unquantised; an adapter is merged into its base before.
        dtype: type of computation, and of frozen weights.
        lora: adapter settings, for `method` lora.
        max_length: the longest sequence in training, in tokens.

    Raises:
        ConfigurationError: the folder is incomplete or an adapter's, `max_length` exceeds the model's positions,
            quantised weights were to be trained, or a package is missing.
    """
    check_model_folder(folder)
    if is_adapter(folder):
        raise ConfigurationError(f"{folder} holds an adapter: merge it into its base, then train that.")
    if quantization != "none" and method != "lora":
        raise ConfigurationError("Quantised weights can't be trained: set the method to lora, or quantization to none.")
    longest = positions(folder)
    if longest is not None and max_length > longest:  # Unsloth would stretch RoPE without a word
        raise ConfigurationError(
            f"The model in {folder} has {longest} positions and {max_length} are asked for: lower the length, or "
            f"extend the base model by base_model.rope_scaling."
        )
    if backend == "unsloth":
        return _by_unsloth(folder, method, quantization, dtype, lora, gradient_checkpointing, max_length)
    import torch
    from peft import get_peft_model

    options: dict[str, Any] = {"dtype": torch.float32 if method == "full" else dtype}
    if quantization == "nf4":
        # Quantised where they land; a GPU by its number, else the Trainer takes it for another one than its own.
        place = torch.cuda.current_device() if device == "cuda" else device
        options |= {"quantization_config": _nf4(dtype), "device_map": {"": place}}
    model = from_folder(folder, attn_implementation=attention(device, dtype), **options)
    if quantization == "none":
        model = model.to(device)
    elif device == "cpu":
        _keep_layout(model)
    if method == "lora":
        model = _in_float32(get_peft_model(model, lora_config(lora)))
    if gradient_checkpointing:
        # The reentrant kind needs inputs with gradients, which frozen embeddings don't give; this one doesn't.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.config.use_cache = False
    return model.train()


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            "base_model.quantization nf4 needs the package bitsandbytes: install vibethinker[train]."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _keep_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first inference on a CPU, for a kernel that computes in
    bfloat16: the policy that samples would be another one than is trained, and its weights unreadable."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _in_float32(model: PeftModel) -> PeftModel:
    """The adapters of a model in float32, whatever type the library gave them."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    return model


def _by_unsloth(
    folder: Path,
    method: str,
    quantization: str,
    dtype: torch.dtype,
    lora: Lora,
    gradient_checkpointing: bool,
    max_length: int,
) -> PreTrainedModel | PeftModel:
    """By Unsloth, on the GPU that it chooses: this process's own under accelerate, else the first one."""
    import torch

    unsloth = import_unsloth()
    seed = torch.initial_seed() % 2**32  # it seeds everything anew
    checkpointing = "unsloth" if gradient_checkpointing else False
    with tempfile.TemporaryDirectory() as place:
        _harmless_tokenizer(folder, Path(place))
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            model_name=str(folder),
            tokenizer_name=place,
            max_seq_length=max_length,
            dtype=dtype,
            load_in_4bit=quantization == "nf4",
            full_finetuning=method == "full",
            float32_mixed_precision=True,
            use_gradient_checkpointing=checkpointing,
            offload_embedding=False,
            use_exact_model_name=True,
            local_files_only=True,
            random_state=seed,
        )
    # It has written the stand-in's into both.
    for config, name in ((model.config, CONFIG), (model.generation_config, GENERATION_CONFIG)):
        stored = read_json(folder, name, "copy the model's there") if (folder / name).is_file() else {}
        config.pad_token_id = stored.get("pad_token_id")
    if method == "full":
        return model.train()
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(PROJECTIONS),
        use_gradient_checkpointing=checkpointing,
        random_state=seed,
    )
    return _in_float32(model).train()


def _harmless_tokenizer(folder: Path, place: Path) -> None:
    """Write a tokenizer in which Unsloth finds nothing to mend.

    It insists on one, and where the pad token is EOS, as in many models' files, it adds a token and resizes the
    embeddings, or gives up. Training needs only token ids, which come from the model's own tokenizer.
    """
    tokenizer = read_tokenizer(folder)
    tokenizer.chat_template = None
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = min((t for t in vocabulary if t != tokenizer.eos_token), key=vocabulary.__getitem__)
    tokenizer.save_pretrained(place)


def import_unsloth() -> Any:
    """The package `unsloth`, which patches transformers and trl and so must come before them.

    Raises:
        ConfigurationError: it isn't installed, or refuses this machine.
    """
    try:
        import unsloth
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"base_model.backend unsloth needs the package {error.name}: install vibethinker[unsloth], or set the "
            "backend to transformers."
        ) from None
    except (ImportError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigurationError(
            f"Unsloth can't be used here ({reason}): set base_model.backend to transformers, or mend that."
        ) from error
    return unsloth
