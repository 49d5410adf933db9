"""A model as one GGUF file, which llama.cpp and what is built on it load.

The package gguf, llama.cpp's own, writes the file and knows its names of tensors and fields; here is what says how a
model of transformers is one of llama.cpp's: which fields, and the order of Llama's query and key rows, whose two halves
of each head llama.cpp wants interleaved. Matrices keep their stored type; vectors are float32, as llama.cpp computes
with them. The file is written tensor by tensor, so memory holds one.

After writing it is loaded by transformers, under the model's configuration (transformers reads neither head size nor
RoPE scaling from every GGUF), and has to give every weight back and the model's greedy answers.

Left out: mixtures of experts, sliding windows, biases other than query, key and value's, quantisation (llama.cpp's
`llama-quantize` makes any from the file).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vibethinker.errors import ConfigurationError, VibeThinkerError
from vibethinker.exporting.checking import agree, answers
from vibethinker.exporting.convertible import ARCHITECTURES
from vibethinker.exporting.vocabulary import add_vocabulary

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
ROPE_FACTORS = "rope_freqs.weight"


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path, name: str) -> None:
    """Write the file, load it again, and compare it with `model`: every weight, and greedy answers.

    Args:
        output: the file.
        name: what the model is called in it.

    Raises:
        ConfigurationError: llama.cpp has no such model or tokenizer.
        VibeThinkerError: what was written is not the model.
    """
    import gguf

    config = model.config
    architecture = ARCHITECTURES[type(model).__name__]
    writer = gguf.GGUFWriter(output, architecture)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_file_type(model.dtype)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config, architecture)
    add_vocabulary(writer, tokenizer, config.vocab_size, model.generation_config.eos_token_id)
    tensors = dict(_tensors(model, architecture))
    for key, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[TYPES[tensor.dtype]]
        writer.add_tensor_info(key, tuple(tensor.shape), _numpy("float32"), tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for key, tensor in tensors.items():
        writer.write_tensor_data(_bytes(_ordered(key, tensor, config, architecture)))
    writer.close()
    _check(model, tokenizer, output)


def _file_type(dtype: torch.dtype) -> str:
    return "ALL_F32" if dtype == torch.float32 else f"MOSTLY_{TYPES[dtype]}"


def _add_shape(writer: GGUFWriter, config: PreTrainedConfig, architecture: str) -> None:
    import gguf

    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[kind.upper()])
        writer.add_rope_scaling_factor(rope["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind not in ("default", "llama3"):
        raise ConfigurationError(f"RoPE scaling of type {kind} can't be exported as GGUF: use --format hf.")


def _tensors(model: PreTrainedModel, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    """llama.cpp's names → weights, in the type that they are to have; tied ones once."""
    import gguf

    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture),
        model.config.num_hidden_layers,
    )
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        key = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if key is None:
            raise ConfigurationError(f"llama.cpp has no weights like {name}: use --format hf.")
        yield key, tensor if tensor.ndim > 1 else tensor.float()
    if (factors := _rope_factors(model.config)) is not None:
        yield ROPE_FACTORS, factors


def _rope_factors(config: PreTrainedConfig) -> torch.Tensor | None:
    """By what Llama 3's scaling divides each frequency; None where it has none."""
    if config.rope_parameters.get("rope_type") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * scaled.numel()
    return 1 / (config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2).float() / size)) / scaled


def _ordered(key: str, tensor: torch.Tensor, config: PreTrainedConfig, architecture: str) -> torch.Tensor:
    """The rows as llama.cpp wants them; see the module."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(key.split(".")[-2])
    if architecture != "llama" or heads is None:
        return tensor
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def _numpy(name: str) -> np.dtype:
    import numpy as np

    return np.dtype(name)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's memory; numpy has no bfloat16."""
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, config=model.config, dtype=model.dtype, local_files_only=True
    ).eval()
    found = again.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in found or not torch.equal(found[name], tensor):
            raise VibeThinkerError(f"The weights {name} were not written as they are: export the model again.")
    again.generation_config = model.generation_config
    agree(answers(model, tokenizer), answers(again, tokenizer), "GGUF file")
