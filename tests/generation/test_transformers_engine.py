from __future__ import annotations

import pytest
import torch

from vibethinker.errors import ConfigurationError
from vibethinker.generation.transformers_engine import TransformersEngine

PROMPTS = [[9, 10, 11], [20, 21, 22, 23, 24, 25, 26], [30], [40, 41, 42], [20, 21, 22, 23, 24, 25, 26]]
SAMPLED = {"samples": 3, "max_tokens": 12, "temperature": 1.0, "top_p": 1.0, "seed": 5}
GREEDY = {"samples": 1, "max_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0}


@pytest.fixture(scope="module")
def model(new_tiny_model):
    model = new_tiny_model(0)
    with torch.no_grad():  # spread the logits, so that rounding can't decide between two tokens
        model.get_input_embeddings().weight.mul_(12)
    return model


@pytest.fixture(scope="module")
def engine(model, tiny_tokenizer):
    return TransformersEngine(model, tiny_tokenizer, batch=8)


def reference_ids(model, prompt, stop_ids, tokens):
    output = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens, pad_token_id=0, eos_token_id=stop_ids
    )
    return tuple(output[0, len(prompt) :].tolist())


def test_greedy_completions_equal_generate_for_padded_prompts(model, engine, tiny_tokenizer):
    found = engine.generate(PROMPTS, **GREEDY)
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        assert completion.ids == reference_ids(model, prompt, tiny_tokenizer.eos_token_id, 12)


def test_greedy_completions_equal_generate_on_a_model_with_a_sliding_window(tiny_tokenizer):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["full_attention", "sliding_attention"],
        initializer_range=0.3,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config).eval()
    found = TransformersEngine(model, tiny_tokenizer).generate(PROMPTS, **GREEDY)
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        assert completion.ids == reference_ids(model, prompt, tiny_tokenizer.eos_token_id, 12)


def test_the_same_seed_gives_the_same_completions_and_another_seed_others(engine):
    first = engine.generate(PROMPTS, **SAMPLED)
    assert engine.generate(PROMPTS, **SAMPLED) == first
    assert engine.generate(PROMPTS, **{**SAMPLED, "seed": 6}) != first


def test_completions_do_not_depend_on_the_batch(model, engine, tiny_tokenizer):
    alone = TransformersEngine(model, tiny_tokenizer, batch=1)
    assert alone.generate(PROMPTS, **SAMPLED) == engine.generate(PROMPTS, **SAMPLED)
    fewer = engine.generate(PROMPTS, **{**SAMPLED, "samples": 2})
    assert fewer == [of_prompt[:2] for of_prompt in engine.generate(PROMPTS, **SAMPLED)]


def test_samples_differ_at_temperature_one_even_for_equal_prompts(engine):
    found = engine.generate(PROMPTS, **SAMPLED)
    everything = [completion.ids for of_prompt in found for completion in of_prompt]
    assert len(set(everything)) == len(everything)


def test_sampling_with_a_nucleus_stays_inside_it(model, engine):
    [completions] = engine.generate([PROMPTS[0]], **{**SAMPLED, "samples": 8, "top_p": 0.6})
    for completion in completions:
        ids = torch.tensor([PROMPTS[0] + list(completion.ids)])
        with torch.inference_mode():
            shares = model(ids).logits[0, len(PROMPTS[0]) - 1 : -1].softmax(-1)
        for share, token in zip(shares, completion.ids, strict=True):
            assert float(share[share > share[token]].sum()) < 0.6 + 1e-5


def test_an_end_of_sequence_token_ends_the_completion_and_is_kept(model, engine, tiny_tokenizer):
    [[whole]] = engine.generate([PROMPTS[0]], **GREEDY)
    assert whole.truncated and whole.tokens == len(whole.ids) == 12
    stop = whole.ids[4]
    model.generation_config.eos_token_id = [stop]
    try:
        stopping = TransformersEngine(model, tiny_tokenizer)
    finally:
        model.generation_config.eos_token_id = tiny_tokenizer.eos_token_id
    end = whole.ids.index(stop)
    found = stopping.generate(PROMPTS, **GREEDY)
    assert found[0][0].ids == whole.ids[: end + 1]
    assert not found[0][0].truncated and found[0][0].tokens == end + 1
    assert found[0][0].text == tiny_tokenizer.decode(whole.ids[: end + 1], skip_special_tokens=True)
    assert [c.ids for (c,) in found[1:]] == [reference_ids(model, p, [stop, 1], 12) for p in PROMPTS[1:]]


def test_completions_end_where_the_models_positions_do(engine):
    full, nearly, short = [9] * 128, [9] * 123, [9] * 4
    found = engine.generate([full, nearly, short], **{**GREEDY, "max_tokens": 10})
    assert [(c.tokens, c.truncated) for (c,) in found] == [(0, True), (5, True), (10, True)]


def test_generation_leaves_the_model_as_it_was(model, engine):
    model.train()
    try:
        engine.generate(PROMPTS[:1], **GREEDY)
        assert model.training and model.config._attn_implementation == "sdpa"
    finally:
        model.eval()


def test_progress_reaches_the_total(engine):
    seen = []
    engine.generate(PROMPTS, **{**SAMPLED, "max_tokens": 100}, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (15, 15) and seen == sorted(seen) and len(seen) > 2


def test_each_completion_is_told_once_as_soon_as_it_has_ended(engine):
    told = {}

    def ended(index, sample, completion):
        assert (index, sample) not in told
        told[index, sample] = completion

    full = [5] * 4096  # fills the model's positions
    generated = engine.generate([*PROMPTS, full], **SAMPLED, ended=ended)
    assert told == {(i, s): completion for i, of in enumerate(generated) for s, completion in enumerate(of)}


def test_senseless_arguments_are_refused(engine):
    for wrong in ({"samples": 0}, {"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match="generation needs"):
            engine.generate(PROMPTS, **{**SAMPLED, **wrong})


def test_a_model_that_could_never_stop_is_refused(model, tiny_tokenizer):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    endless = copy.deepcopy(model)
    endless.generation_config.eos_token_id = None
    with pytest.raises(ConfigurationError, match="end-of-sequence"):
        TransformersEngine(endless, tokenizer)
