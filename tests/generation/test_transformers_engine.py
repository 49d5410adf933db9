"""The engine by transformers, beside `generate` of the same model."""

from __future__ import annotations

import pytest
import torch

from vibethinker.errors import ConfigurationError
from vibethinker.generation import transformers_engine
from vibethinker.generation.transformers_engine import TransformersEngine
from vibethinker.models import load_model, save_model

pytestmark = pytest.mark.slow

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


def logits_of(model, prompt, ids):
    with torch.inference_mode():
        return model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]


def chosen(logits, ids):
    return logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.3, 0.7), (0.0, 1.0)])
def test_logprobs_are_those_of_the_distribution_that_was_drawn_from(model, engine, temperature, top_p):
    sampling = {**SAMPLED, "temperature": temperature, "top_p": top_p}
    found = engine.generate(PROMPTS, **sampling, logprobs=True)
    for prompt, completions in zip(PROMPTS, found, strict=True):
        for completion in completions:
            logits = logits_of(model, prompt, completion.ids) / (temperature or 1)
            shares, order = logits.softmax(-1).sort(descending=True)
            outside = shares.cumsum(-1) - shares >= top_p
            nucleus = logits.scatter(-1, order, logits.gather(-1, order).masked_fill(outside, float("-inf")))
            wanted = chosen(nucleus, completion.ids)
            assert torch.allclose(torch.tensor(completion.logprobs), wanted, atol=1e-4)


def test_logprobs_are_there_only_where_asked_for_and_change_nothing_else(engine):
    full = [5] * 128
    plain = engine.generate([*PROMPTS, full], **SAMPLED)
    asked = engine.generate([*PROMPTS, full], **SAMPLED, logprobs=True)
    assert all(c.logprobs is None for of in plain for c in of)
    assert all(len(c.logprobs) == c.tokens for of in asked for c in of)
    assert [[c.ids for c in of] for of in asked] == [[c.ids for c in of] for of in plain]


def test_score_is_a_forward_pass_at_temperature_one(model, engine, monkeypatch):
    sequences = [([9, 10, 11], [20, 21]), ([30], [31, 32, 33, 34, 35, 36]), ([5, 6], []), ([7] * 20, [8] * 50)]
    for at_once in (2**28, 1):  # all together, one by one
        monkeypatch.setattr(transformers_engine, "_SCORED_LOGITS", at_once)
        scored = engine.score(sequences)
        for (prompt, completion), values in zip(sequences, scored, strict=True):
            wanted = chosen(logits_of(model, prompt, completion), completion).tolist() if completion else []
            assert values == pytest.approx(wanted, abs=1e-4)
    assert engine.score([]) == []


def test_senseless_sequences_are_refused(engine):
    for wrong in (([], [1]), ([1] * 100, [2] * 29)):
        with pytest.raises(ValueError, match="scoring needs"):
            engine.score([wrong])


@pytest.fixture
def owning(new_tiny_model, tiny_tokenizer):
    return TransformersEngine(new_tiny_model(0), tiny_tokenizer, batch=8, owned=True)


SEQUENCES = [([9, 10, 11], [20, 21]), ([30], [31, 32, 33])]


def test_after_an_update_the_engine_is_the_new_model(owning, new_tiny_model, tiny_tokenizer):
    stale = owning.score(SEQUENCES)
    assert owning.score(SEQUENCES) == stale
    other = new_tiny_model(1)
    fresh = TransformersEngine(other, tiny_tokenizer, batch=8)
    assert stale != fresh.score(SEQUENCES)
    owning.update((name, tensor.double()) for name, tensor in other.named_parameters())  # another type, ties once
    assert owning.score(SEQUENCES) == fresh.score(SEQUENCES)
    assert owning.generate(PROMPTS, **SAMPLED) == fresh.generate(PROMPTS, **SAMPLED)


def test_an_engine_of_the_model_in_training_follows_it_and_leaves_the_weights_unread(new_tiny_model, tiny_tokenizer):
    model = new_tiny_model(0)
    engine = TransformersEngine(model, tiny_tokenizer)
    before = engine.score(SEQUENCES)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    unread = iter(model.named_parameters())
    engine.update(unread)
    assert engine.score(SEQUENCES) != before
    assert len(list(unread)) == len(list(model.named_parameters()))
    engine.close()
    assert next(model.parameters()).numel()


def test_an_update_has_to_be_whole_and_fit(owning, new_tiny_model):
    weights = dict(new_tiny_model(1).named_parameters())
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=f"1 weights .* {name}"):
        owning.update((n, tensor) for n, tensor in weights.items() if n != name)
    with pytest.raises(ValueError, match="such_weight"):
        owning.update([("such_weight", weights[name])])
    with pytest.raises(ValueError, match=name):
        owning.update([(name, weights[name][1:])])


def test_another_checkpoint_is_loaded_in_place(owning, new_tiny_model, tiny_tokenizer, tmp_path):
    save_model(new_tiny_model(2), tiny_tokenizer, tmp_path / "two")
    owning.load(tmp_path / "two")
    fresh = TransformersEngine(load_model(tmp_path / "two"), tiny_tokenizer, batch=8)
    assert owning.generate(PROMPTS, **SAMPLED) == fresh.generate(PROMPTS, **SAMPLED)


def test_an_adapter_is_loaded_merged_into_its_base(
    owning, new_tiny_model, tiny_tokenizer, tiny_model_folder, new_adapter
):
    owning.load(new_adapter(3), tiny_model_folder)
    merged = load_model(new_adapter(3), base=tiny_model_folder)
    fresh = TransformersEngine(merged, tiny_tokenizer, batch=8)
    assert owning.score(SEQUENCES) == fresh.score(SEQUENCES)
    assert owning.score(SEQUENCES) != TransformersEngine(new_tiny_model(0), tiny_tokenizer).score(SEQUENCES)


def test_sleeping_and_waking_keeps_the_weights(owning):
    before = owning.score(SEQUENCES)
    owning.sleep()
    owning.wake()
    assert owning.score(SEQUENCES) == before


def test_the_meter_tells_the_speed_since_it_was_last_read(engine):
    engine.meter.take()
    assert engine.meter.take() == {}
    engine.generate(PROMPTS, **SAMPLED)
    assert engine.meter.take()["tokens_per_second"] > 0
    assert engine.meter.take() == {}
