"""Where the recipe's models come from: the step `base`, and `import`, which puts a user's model in a step's
place.

A model from outside ends as an ordinary model folder: weights and config.json as they are (a GGUF file
de-quantised), the tokenizer with a pad token, a chat template (ChatML where it has none) and, as EOS, the
token with which that template ends the assistant's turn, and a generation config that stops there. RoPE
scaling is written into config.json once, so that every later step sees it.

Left out: weights that are not safetensors or GGUF, since loading those means unpickling.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.models.files import CONFIG, INDEX, ModelWeights, check_model_folder, is_adapter
from vibethinker.settings import BaseModelSettings, RopeScaling
from vibethinker.steps import Emitter, Metrics, StepContext

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_CONFIG = "generation_config.json"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
MODEL_ROLES = ("base", "specialist", "fusion", "signal")

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def run_base(context: StepContext) -> Metrics:
    """The step `base`: the embedded model trained, or a folder, a GGUF file or a hub model taken over.

    Raises:
        ConfigurationError: there is no such model, or its folder is incomplete.
        InfrastructureError: the hub can't be reached.
    """
    settings = BaseModelSettings.model_validate(context.settings["base_model"])
    if settings.source == "embedded":
        from vibethinker.embedded.base import train

        return train(context, settings)
    source = Path(context.execution.get("paths", {}).get(settings.source, settings.source)).expanduser()
    if source.is_file() and source.suffix == ".gguf":
        _from_gguf(source, context.output, context.emit)
    elif source.is_dir():
        _from_folder(source, context.output, context.emit)
    elif HUB_ID.fullmatch(settings.source):
        _from_folder(_download(settings.source, settings.revision), context.output, context.emit)
    else:
        raise ConfigurationError(
            f"base_model.source {settings.source!r} is neither a folder, nor a .gguf file, nor a hub id "
            "such as Qwen/Qwen3-0.6B: check the path."
        )
    if settings.rope_scaling is not None:
        _scale_rope(context.output, settings.rope_scaling)
    check_model_folder(context.output)
    return _measures(context.output)


def run_import(context: StepContext) -> Metrics:
    """The step `import`: the user's folder in the place of a step's output, a model as that step would have
    left it."""
    source, role = Path(context.execution["source"]), context.settings["role"]
    if role not in MODEL_ROLES:
        shutil.copytree(source, context.output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        return {}
    output = context.output / "checkpoints" / "imported" if role == "specialist" else context.output
    check_model_folder(source)
    if is_adapter(source):
        if role != "specialist":
            raise ConfigurationError(f"{source} holds an adapter, not a whole {role} model: merge it into its base.")
        shutil.copytree(source, output)
        return {}
    output.mkdir(parents=True, exist_ok=True)
    _from_folder(source, output, context.emit)
    return _measures(output)


def _from_folder(source: Path, output: Path, emit: Emitter) -> None:
    from transformers import AutoTokenizer

    check_model_folder(source)
    names = [CONFIG, INDEX, GENERATION_CONFIG, *(file.name for file in sorted(source.glob("*.safetensors")))]
    present = [name for name in names if (source / name).is_file()]
    for done, name in enumerate(present):
        emit.progress(done, len(present), f"copying {name}")
        shutil.copyfile(source / name, output / name)
    _finish(AutoTokenizer.from_pretrained(source, local_files_only=True), output, emit)


def _from_gguf(file: Path, output: Path, emit: Emitter) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    emit.progress(0, 2, f"de-quantising {file.name}")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    except ImportError:
        raise ConfigurationError("Reading a .gguf file needs the package gguf: pip install gguf.") from None
    # transformers loads the weights de-quantised but refuses to save that model, so a fresh one takes them.
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    emit.progress(1, 2, "saving")
    model.save_pretrained(output)
    _finish(AutoTokenizer.from_pretrained(**where), output, emit)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES)))
    except RevisionNotFoundError:
        raise ConfigurationError(
            f"The hub model {name} has no revision {revision!r}: check base_model.revision."
        ) from None
    except LocalEntryNotFoundError as error:
        raise InfrastructureError(
            f"The hub can't be reached for {name} and it isn't in the local cache: download it where there is "
            f"a network (hf download {name} --local-dir DIR) and set base_model.source to that folder."
        ) from error
    except RepositoryNotFoundError:
        raise ConfigurationError(
            f"The hub has no model {name} that this account may read: check base_model.source, or log in "
            "with hf auth login."
        ) from None


def _finish(tokenizer: PreTrainedTokenizerBase, output: Path, emit: Emitter) -> None:
    mend_tokenizer(tokenizer, emit)
    tokenizer.save_pretrained(output)
    path = output / GENERATION_CONFIG
    config = json.loads(path.read_text()) if path.is_file() else {}
    stops = config.get("eos_token_id")
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    config["eos_token_id"] = list(dict.fromkeys([tokenizer.eos_token_id, *stops]))
    config["pad_token_id"] = tokenizer.pad_token_id
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def mend_tokenizer(tokenizer: PreTrainedTokenizerBase, emit: Emitter) -> None:
    """Give a tokenizer what training and generation need, with a warning for each thing that it lacked.

    A chat template (ChatML); as EOS the token that ends the assistant's turn in its template; a pad token, by
    preference one that is not EOS.
    """
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
        emit.warning("The tokenizer has no chat template: ChatML is used.")
    end = _end_of_turn(tokenizer)
    if end is not None and end != tokenizer.eos_token:
        emit.warning(
            f"The chat template ends a turn with {end}, not with the EOS {tokenizer.eos_token}: {end} is used."
        )
        spare, tokenizer.eos_token = tokenizer.eos_token, end
    else:
        spare = None
    if tokenizer.eos_token is None:
        raise ConfigurationError("Neither tokenizer nor chat template has an EOS token: set the tokenizer's.")
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        candidates = ("<|pad|>", "<pad>", "[PAD]", "<|endoftext|>", spare)
        tokenizer.pad_token = next(
            (token for token in candidates if token in vocabulary and token != tokenizer.eos_token), tokenizer.eos_token
        )
        emit.warning(f"The tokenizer has no pad token: {tokenizer.pad_token} is used.")


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that follows the assistant's text in the chat template; None where there is none."""
    marker = "vibethinker"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}], tokenize=False
    )
    ids = tokenizer(text.rpartition(marker)[2], add_special_tokens=False)["input_ids"]
    special = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((tokenizer.convert_ids_to_tokens(i) for i in ids if i in special), None)


def _scale_rope(folder: Path, scaling: RopeScaling) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    positions = config.max_position_embeddings
    config.rope_parameters = {
        **config.rope_parameters,
        "rope_type": scaling.type,
        "factor": scaling.factor,
        "original_max_position_embeddings": positions,
    }
    config.max_position_embeddings = int(positions * scaling.factor)
    config.save_pretrained(folder)


def _measures(folder: Path) -> Metrics:
    return {"parameters": ModelWeights(folder).parameters()}
