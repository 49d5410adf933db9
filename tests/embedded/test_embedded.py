"""The tiny base model of the default: its tokenizer, its network and its training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from vibethinker.data.schema import Trace, write_records
from vibethinker.embedded.model import new_model
from vibethinker.embedded.optimizer import MuonWithAdamW
from vibethinker.embedded.tokenizer import WHOLE, train_tokenizer
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.models import check_model_folder, load_model, load_tokenizer, run_base
from vibethinker.settings import EmbeddedModel

pytestmark = pytest.mark.slow

TEXTS = [
    "Solve 2x+14=20. <think>20-14=6 6/2=3</think>\\boxed{3}",
    "Write f(x): plus 12. <think>+12</think>\n```python\ndef f(x):\n    return x+12\n```",
]
SMALL = {"hidden_size": 32, "layers": 1, "intermediate_size": 32, "vocabulary": 300, "positions": 64}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 20, vocabulary=400, positions=256)


@pytest.fixture
def data(tmp_path) -> Path:
    """What the data step leaves: a few traces of two domains."""
    (tmp_path / "sft").mkdir()
    for domain in ("algebra", "code"):
        traces = [
            Trace(f"{domain}-{i}", domain, f"{i}+1?", f"<think>{i}+1={i + 1}</think>\\boxed{{{i + 1}}}", "test")
            for i in range(20)
        ]
        write_records(tmp_path / "sft" / f"{domain}.parquet", Trace, traces)
    return tmp_path


@pytest.fixture
def base(new_step, data):
    """A function **settings of the embedded model → the context of the base step, run."""

    def train(prompts=None, **embedded):
        embedded = SMALL | {"steps": 4, "batch_size": 16} | embedded
        settings = {
            "seed": 1,
            "deterministic": True,
            "prompts": prompts or {},
            "base_model": {"source": "embedded", "embedded": embedded},
        }
        context = new_step(settings, {"data": data})
        context.settings["measured"] = run_base(context)
        return context

    return train


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_every_digit_is_a_token(tokenizer):
    assert tokenizer.tokenize("20-14=6 120") == ["2", "0", "-", "1", "4", "=", "6", "Ġ", "1", "2", "0"]


@pytest.mark.parametrize("text", WHOLE)
def test_the_parts_of_an_answer_are_one_token_each(tokenizer, text):
    assert len(tokenizer.tokenize(text)) == 1
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("text", [*TEXTS, "Grüße, 数学 ∑ \t x\r\n  y ", "<|x|> <think", ""])
def test_any_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_conversation_costs_one_token_a_message_and_eos(tokenizer):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|user|>", "x", "<|assistant|>", "y", "<|im_end|>"]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert ids[: len(prompt)] == prompt


def test_pad_and_eos_are_different_tokens(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_vocabulary_fits_the_model_and_equal_texts_give_an_equal_tokenizer(tokenizer):
    again = train_tokenizer(TEXTS * 20, vocabulary=400, positions=256)
    assert len(tokenizer) <= 400
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ConfigurationError, match="vocabulary"):
        train_tokenizer(TEXTS, vocabulary=260, positions=64)


def test_the_network_is_qwen3_of_under_a_million_parameters_with_tied_embeddings(tokenizer):
    model = new_model(EmbeddedModel(), tokenizer)
    assert model.config.model_type == "qwen3"
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert 300_000 <= sum(p.numel() for p in model.parameters()) <= 1_000_000


def test_the_embedded_base_is_an_ordinary_model_that_has_learned(base):
    context = base(steps=20, learning_rate=1e-2)
    check_model_folder(context.output)
    model, tokenizer = load_model(context.output), load_tokenizer(context.output)
    rows = [json.loads(line) for line in (context.output / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert context.settings["measured"]["traces"] == 40
    assert context.settings["measured"]["parameters"] == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        ids = tokenizer("1+1?", return_tensors="pt")["input_ids"]
        assert torch.isfinite(model(ids).logits).all()
    stops = model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (stops if isinstance(stops, list) else [stops])


def test_the_same_seed_gives_the_same_bytes(base):
    assert digests(base().output) == digests(base().output)


def test_data_without_traces_is_an_error(base, data):
    for file in (data / "sft").iterdir():
        write_records(file, Trace, [])
    with pytest.raises(DataError, match="no traces"):
        base()


def test_one_schedule_drives_the_matrices_by_muon_and_the_rest_by_adamw(tokenizer):
    model = new_model(EmbeddedModel(**SMALL | {"vocabulary": 400}), tokenizer)
    optimizer = Accelerator(cpu=True).prepare(MuonWithAdamW(model, matrix_rate=0.02, learning_rate=3e-3))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(input_ids=torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([[5, 6, 7, 8]])).loss.backward()
    optimizer.step()
    schedule.step()
    moved = {name: (parameter - before[name]).detach() for name, parameter in model.named_parameters()}
    assert set(moved) == {name for group in ("matrices", "rest") for name in named(model)[group]}
    for name in named(model)["matrices"]:  # an orthogonal update has the rate as its spectral norm, about
        rows, columns = moved[name].shape
        rate = 0.5 * 0.02 * max(1, rows / columns) ** 0.5
        assert 0.6 * rate < torch.linalg.matrix_norm(moved[name], 2) < 1.3 * rate
    for name in named(model)["rest"]:  # AdamW's first step is the learning rate in each entry with a gradient
        assert moved[name].abs().max() == pytest.approx(0.5 * 3e-3, rel=1e-3)


def named(model) -> dict[str, list[str]]:
    """Which parameters are matrices of the blocks, and which are the rest."""
    names = [name for name, _ in model.named_parameters()]
    matrices = [n for n in names if "proj" in n]
    return {"matrices": matrices, "rest": [n for n in names if n not in matrices]}


def test_the_base_learns_the_configured_prompts(base):
    plain = digests(base().output)["model.safetensors"]
    asked = digests(base(prompts={"math_suffix": " Think."}).output)["model.safetensors"]
    assert plain != asked
