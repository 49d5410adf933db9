"""GGUF files by llama.cpp itself: the same tokens of a text, the same greedy answers."""

from __future__ import annotations

import pytest
import torch

from tests.exporting.conftest import SHAPES, llama_cpp, new_tokenizer
from vibethinker.errors import ConfigurationError, VibeThinkerError
from vibethinker.exporting import checking, gguf_file
from vibethinker.exporting.checking import TOKENS, answers, prompts
from vibethinker.exporting.convertible import check_convertible
from vibethinker.exporting.gguf_file import write_gguf
from vibethinker.exporting.vocabulary import add_vocabulary
from vibethinker.models import load_model, load_tokenizer

HARD = (
    "Hello WORLD's 3.14 12345  \n\n x=[1,2];  été naïve 你好 don't I'LL\t\tend <think>a</think> \\boxed{7}```py\n",
    "  leading and trailing  ",
    "١٢٣ x² Ⅷ 999999",
)


@pytest.fixture(scope="module")
def asked(shaped, tmp_path_factory):
    """Shape → texts, and what llama.cpp has made of them."""
    folder = tmp_path_factory.mktemp("gguf")
    texts = {}
    for name in SHAPES:
        model, tokenizer = load_model(shaped(name)), load_tokenizer(shaped(name))
        write_gguf(model, tokenizer, folder / f"{name}.gguf", "a name")
        texts[folder / f"{name}.gguf"] = [*(tokenizer.decode(ids) for ids in prompts(tokenizer)), *HARD]
    found = llama_cpp(texts, TOKENS)
    return dict(zip(SHAPES, zip(texts.values(), found, strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_tokenizes_and_answers_as_transformers_does(asked, shaped, name):
    model, tokenizer = load_model(shaped(name)), load_tokenizer(shaped(name))
    texts, found = asked[name]
    assert found["prompts"] == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    wanted = answers(model, tokenizer)
    assert len({tuple(answer) for answer in wanted}) == len(wanted), "the answers tell nothing apart"
    most = TOKENS if model.dtype == torch.float32 else 1  # in 16 bits, what either rounds between adds up
    got = found["answers"][: len(wanted)]
    assert [drop_end(ids)[:most] for ids in got] == [drop_end(ids)[:most] for ids in wanted]


def drop_end(ids: list[int], end: int = 1) -> list[int]:
    """llama.cpp says nothing of the token that ends an answer."""
    return ids[:-1] if ids and ids[-1] == end else ids


@pytest.mark.slow
def test_a_file_says_whether_a_text_begins_with_a_token(shaped, tmp_path):
    import gguf

    for name, begins in (("llama3", True), ("qwen3", False)):
        file = tmp_path / f"{name}.gguf"
        write_gguf(load_model(shaped(name)), load_tokenizer(shaped(name)), file, name)
        fields = gguf.GGUFReader(file).fields
        assert bool(fields["tokenizer.ggml.add_bos_token"].contents()) is begins
        assert fields["tokenizer.chat_template"].contents() == load_tokenizer(shaped(name)).chat_template


@pytest.mark.parametrize(
    ("stops", "ends"),
    [(1, [1]), ([5, 1], [1, 5]), (5, [5, 1]), ([5, 6], [5, 6, 1]), (None, [1])],
    ids=["the tokenizer's", "more than it", "not it", "two others", "unknown"],
)
def test_a_file_names_the_tokens_that_end_the_models_answers(tmp_path, stops, ends):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "qwen2")
    add_vocabulary(writer, new_tokenizer("qwen"), 360, stops)
    said = {key: value.value for key, value in writer.kv_data[0].items()}
    kinds = [f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom")]
    assert [said[kind] for kind in kinds if kind in said] == ends


def test_more_ends_than_a_file_can_name_are_refused(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "qwen2")
    with pytest.raises(ConfigurationError, match=r"end at 4 tokens, and a GGUF file names 3: .* use --format hf"):
        add_vocabulary(writer, new_tokenizer("qwen"), 360, [5, 6, 7])


@pytest.mark.long
def test_llama_cpp_ends_an_answer_where_the_model_does(shaped, tmp_path):
    model, tokenizer = load_model(shaped("qwen3")), load_tokenizer(shaped("qwen3"))
    [wanted, *_] = answers(model, tokenizer)
    # A token of this answer in the place of a turn's end, of which the tokenizer, whose EOS is another, knows nothing.
    model.generation_config.eos_token_id = end = wanted[2]
    write_gguf(model, tokenizer, tmp_path / "model.gguf", "a name")
    texts = [tokenizer.decode(prompts(tokenizer)[0])]
    [found] = llama_cpp({tmp_path / "model.gguf": texts}, TOKENS)
    assert drop_end(found["answers"][0], end) == wanted[: wanted.index(end)]


def test_wrong_weights_are_found(shaped, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "_ordered", lambda key, tensor, config, architecture: tensor)
    model, tokenizer = load_model(shaped("llama")), load_tokenizer(shaped("llama"))
    with pytest.raises(VibeThinkerError, match=r"self_attn\.q_proj\.weight were not written as they are"):
        write_gguf(model, tokenizer, tmp_path / "model.gguf", "x")


def test_other_answers_are_found():
    with pytest.raises(VibeThinkerError, match=r"doesn't answer 'Solve 3x .* \(token 1 differs\)"):
        checking.agree([[1, 2], [3, 4], [5]], [[1, 2], [3, 5], [5]], "GGUF file")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "The architecture GemmaForCausalLM"),
        ({"model_type": "mamba"}, "The architecture mamba"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "A sliding window"),
        ({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, "A Qwen3 with biases"),
        ({"architectures": ["LlamaForCausalLM"], "hidden_act": "gelu"}, "The activation gelu"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(config, said):
    with pytest.raises(ConfigurationError, match=said) as refused:
        check_convertible(config)
    assert "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM" in str(refused.value)


def test_a_tokenizer_that_splits_otherwise_is_refused():
    import gguf
    from tokenizers import pre_tokenizers

    for other in (pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=True)):
        tokenizer = new_tokenizer("gpt2")
        tokenizer.backend_tokenizer.pre_tokenizer = other
        with pytest.raises(ConfigurationError, match=r"has no counterpart in llama\.cpp"):
            add_vocabulary(gguf.GGUFWriter(None, "qwen3"), tokenizer, 360)
