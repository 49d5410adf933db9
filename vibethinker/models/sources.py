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

from vibethinker import validation
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.models.files import (
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    ModelWeights,
    check_model_folder,
    is_adapter,
    positions,
)
from vibethinker.models.tokenizers import check_vocabulary, mend_tokenizer, read_tokenizer
from vibethinker.settings import BaseModelSettings, RopeScaling
from vibethinker.steps import Emitter, Metrics, StepContext

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
MODEL_ROLES = ("base", "specialist", "fusion", "signal", "distilled")


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
        tokenizer = _from_gguf(source, context.output, context.emit)
    elif source.is_dir():
        validation.refuse_damaged(source)
        tokenizer = _from_folder(source, context.output, context.emit)
    elif HUB_ID.fullmatch(settings.source):
        tokenizer = _from_folder(_download(settings.source, settings.revision), context.output, context.emit)
    else:
        raise ConfigurationError(
            f"base_model.source {settings.source!r} is neither a folder, nor a .gguf file, nor a hub id "
            "such as Qwen/Qwen3-0.6B: check the path."
        )
    if settings.rope_scaling is not None:
        _scale_rope(context.output, settings.rope_scaling)
    _finish(tokenizer, context.output, context.emit)
    check_model_folder(context.output)
    return _measures(context.output)


def run_import(context: StepContext) -> Metrics:
    """The step `import`: the user's folder in the place of a step's output, a model as that step would have
    left it."""
    source, role = Path(context.execution["source"]), context.settings["role"]
    validation.refuse_damaged(source)
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
    _finish(_from_folder(source, output, context.emit), output, context.emit)
    return _measures(output)


def _from_folder(source: Path, output: Path, emit: Emitter) -> PreTrainedTokenizerBase:
    """Copy what a model folder has beside its tokenizer, and read that."""
    check_model_folder(source)
    names = [CONFIG, INDEX, GENERATION_CONFIG, *(file.name for file in sorted(source.glob("*.safetensors")))]
    present = [name for name in names if (source / name).is_file()]
    for done, name in enumerate(present):
        emit.progress(done, len(present), f"copying {name}")
        shutil.copyfile(source / name, output / name)
    return read_tokenizer(source)


def _from_gguf(file: Path, output: Path, emit: Emitter) -> PreTrainedTokenizerBase:
    """Write what a GGUF file holds beside its tokenizer as a model folder, and read that."""
    import torch
    from transformers import AutoModelForCausalLM

    emit.progress(0, 2, f"de-quantising {file.name}")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    except ImportError:
        raise ConfigurationError("Reading a .gguf file needs the package gguf: pip install gguf.") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigurationError(f"The model in {file} can't be loaded ({reason[:300]}).") from None
    # transformers loads the weights de-quantised but refuses to save that model, so a fresh one takes them.
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    emit.progress(1, 2, "saving")
    model.save_pretrained(output)
    tokenizer = read_tokenizer(file.parent, gguf_file=file.name)
    _add_marked(tokenizer, file)
    return tokenizer


def _add_marked(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Keep whole, wherever they stand in a text, the tokens that a GGUF file marks as control tokens or user's own.

    Of these transformers knows but three by their names, so that `<think>` becomes three tokens, and text that holds
    one is no longer what the model has learned.
    """
    import gguf
    from tokenizers import AddedToken

    fields, known = gguf.GGUFReader(file).fields, tokenizer.added_tokens_decoder
    special = {gguf.TokenType.CONTROL: True, gguf.TokenType.USER_DEFINED: False}
    if gguf.Keys.Tokenizer.TOKEN_TYPE not in fields:
        return
    tokens, kinds = (fields[name].contents() for name in (gguf.Keys.Tokenizer.LIST, gguf.Keys.Tokenizer.TOKEN_TYPE))
    tokenizer.add_tokens(
        [
            AddedToken(text, normalized=False, special=special[kind])
            for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in special and i not in known
        ]
    )


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES)))
    except RevisionNotFoundError:
        raise ConfigurationError(
            f"The hub model {name} has no revision {revision!r}: check base_model.revision."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ConfigurationError(
            f"The hub has no model {name} that this account may read: check base_model.source, or log in "
            "with hf auth login."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        # The hub's client says of a model that it was refused that the cache lacks it.
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
            raise ConfigurationError(
                f"The hub refuses this account's token for {name}: log in anew with `hf auth login`, or set another "
                "HF_TOKEN that may read it."
            ) from None
        raise InfrastructureError(
            f"The hub can't be reached for {name} and it isn't in the local cache: download it where there is "
            f"a network (hf download {name} --local-dir DIR) and set base_model.source to that folder."
        ) from error


def _finish(tokenizer: PreTrainedTokenizerBase, output: Path, emit: Emitter) -> None:
    """Mend the tokenizer for the model in `output`, save it there, and name where generation stops."""
    mend_tokenizer(tokenizer, emit, positions(output))
    check_vocabulary(tokenizer, output)
    tokenizer.save_pretrained(output)
    path = output / GENERATION_CONFIG
    config = json.loads(path.read_text()) if path.is_file() else {}
    stops = config.get("eos_token_id")
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    config["eos_token_id"] = list(dict.fromkeys([tokenizer.eos_token_id, *stops]))
    config["pad_token_id"] = tokenizer.pad_token_id
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _scale_rope(folder: Path, scaling: RopeScaling) -> None:
    """Write a RoPE extension as transformers and vLLM read it: type and factor in `rope_parameters`, YaRN's original
    length there too, and the new length as `max_position_embeddings`."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    rope, length = config.rope_parameters, config.max_position_embeddings
    if rope.get("rope_type") != "default":
        raise ConfigurationError(
            f"base_model.rope_scaling can't be added to the model's own ({rope.get('rope_type', 'by layer')}, "
            f"{length} positions): remove it."
        )
    config.rope_parameters = {**rope, "rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type == "yarn":
        config.rope_parameters["original_max_position_embeddings"] = length
    config.max_position_embeddings = int(length * scaling.factor)
    config.save_pretrained(folder)


def _measures(folder: Path) -> Metrics:
    return {"parameters": ModelWeights(folder).parameters()}
