"""Models of each shape that is exported, with the tokenizers of such models, small and with answers that differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.conftest import TEXTS
from vibethinker import cli
from vibethinker.embedded.tokenizer import CHAT_TEMPLATE, EOS, PAD, ROLES
from vibethinker.models import save_model

ROOT = Path(__file__).parents[2]
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPLITS = {
    "digits": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "qwen": [pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
    "llama": [pre_tokenizers.Split(Regex(LLAMA), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
SHAPES = {
    "qwen3": ("qwen3", "digits", torch.float32, {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", "qwen", torch.bfloat16, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    "yarn": ("qwen3", "qwen", torch.float32, {"head_dim": 32, "rope_parameters": {"rope_theta": 1e4, **YARN}}),
    "llama": ("llama", "digits", torch.float32, {"tie_word_embeddings": True}),
    "llama3": ("llama", "llama", torch.float32, {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}),
    "linear": ("qwen2", "gpt2", torch.float16,
               {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}}),
}  # fmt: skip


def new_tokenizer(split: str, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that splits text in one of the known ways."""
    tokenizer = Tokenizer(models.BPE())
    # Trained on whole texts, it has merges over digits, spaces and words' ends, of which each split forbids others.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=[PAD, EOS, "<|begin|>", *ROLES.values()], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([*TEXTS, "12345 x=[1,2];  don't I'LL\t\tend 999999 3.14 WORLD's"] * 2, trainer)
    parts = SPLITS[split]
    tokenizer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, bos_token="<|begin|>", chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def new_model(kind: str, dtype: torch.dtype, **more):
    """A model of two layers whose weights are far apart, so that its answers are no matter of rounding."""
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 360, "max_position_embeddings": 128, "eos_token_id": 1,
             "pad_token_id": 0, "bos_token_id": 2, "tie_word_embeddings": False}  # fmt: skip
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **more}))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return model.to(dtype).eval()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads wait for each other more than they compute in models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shaped(tmp_path_factory) -> Callable[[str], Path]:
    """A function from a shape's name to the folder of such a model; read only."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            kind, split, dtype, more = SHAPES[name]
            made[name] = tmp_path_factory.mktemp("shapes") / name
            save_model(new_model(kind, dtype, **more), new_tokenizer(split, bos=name == "llama3"), made[name])
        return made[name]

    return folder


@pytest.fixture
def here(capfd) -> Callable[..., tuple[int, str, str]]:
    """A function (arguments of `vibethinker export`) → exit code, stdout and stderr, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = 0
        try:
            cli.main(["export", *map(str, arguments)])
        except SystemExit as done:
            code = int(done.code or 0)
        return code, *capfd.readouterr()

    return run


def export(*arguments: object, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`vibethinker export` in a process of its own."""
    command = [sys.executable, "-m", "vibethinker", "export", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, **(environ or {})}
    )


def llama_cpp(asked: Mapping[Path, list[str]], tokens: int) -> list[dict[str, list[list[int]]]]:
    """For each file, the tokens that llama.cpp makes of its texts, and of its greedy answers to them."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("llama_cpp.py"))],
        input=json.dumps([{"file": str(file), "texts": texts, "tokens": tokens} for file, texts in asked.items()]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
