"""A tokenizer from outside becomes one that training and generation can use, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vibethinker.errors import ConfigurationError
from vibethinker.models import load_tokenizer, run_base, run_import


@pytest.fixture
def copied(tiny_model_folder, tmp_path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "copied"))


def base_settings(source: Path | str, **more) -> dict:
    return {"seed": 1, "deterministic": True, "base_model": {"source": str(source), **more}}


def changed(folder: Path, name: str, **values) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_tokenizer_without_pad_and_template_and_with_the_wrong_eos_is_mended(new_step, copied):
    config = json.loads((copied / "tokenizer_config.json").read_text())
    del config["pad_token"]
    config["eos_token"] = "<|pad|>"
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    context = new_step(base_settings(copied))
    run_base(context)
    tokenizer = load_tokenizer(context.output)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")
    assert len(context.emit.warnings) == 2
    stops = json.loads((context.output / "generation_config.json").read_text())["eos_token_id"]
    assert stops[0] == tokenizer.eos_token_id


def test_a_tokenizer_without_a_chat_template_gets_chatml(new_step, copied):
    (copied / "chat_template.jinja").unlink()
    context = new_step(base_settings(copied))
    run_base(context)
    text = load_tokenizer(context.output).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert any("chat template" in warning for warning in context.emit.warnings)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only images') }}", "only images"),
        ("{% for message in messages %}{{ message['text'] }}{% endfor %}", "leaves out"),
        ("{% for message in messages %}", "fails on a question"),
        ("{{ messages[0]['content'] }}", "leaves out"),
    ],
)
def test_a_chat_template_that_does_not_render_is_refused(new_step, copied, template, said):
    (copied / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigurationError, match=said):
        run_base(new_step(base_settings(copied)))


def test_a_tokenizer_larger_than_the_embedding_is_refused_wherever_it_is_read(new_step, copied):
    rows = len(load_tokenizer(copied))
    changed(copied, "config.json", vocab_size=rows - 1)
    for use in (
        lambda: run_base(new_step(base_settings(copied))),
        lambda: run_import(new_step({"role": "fusion", "digest": "x"}, source=str(copied))),
        lambda: load_tokenizer(copied),
    ):
        with pytest.raises(ConfigurationError, match=f"up to {rows - 1}.*embeddings for {rows - 1}"):
            use()


def test_a_tokenizer_takes_as_many_tokens_as_its_model(new_step, copied):
    changed(copied, "tokenizer_config.json", model_max_length=64)
    context = new_step(base_settings(copied))
    run_base(context)
    assert load_tokenizer(context.output).model_max_length == 128
    assert len(context.emit.warnings) == 1


def test_a_tokenizer_that_cannot_be_read_is_refused(new_step, copied):
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="can't be loaded"):
        run_base(new_step(base_settings(copied)))
