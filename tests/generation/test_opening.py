"""Which engine a model folder or a model in training gets, and when one is closed for another."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import pytest
import torch

from vibethinker.errors import ConfigurationError
from vibethinker.generation.opening import Engines, engine_name, open_engine
from vibethinker.generation.transformers_engine import TransformersEngine
from vibethinker.generation.vllm_start import capture_sizes, skeleton
from vibethinker.models import save_model

pytestmark = pytest.mark.slow

EXECUTION = {"device": "cpu", "generation_batch": 8, "engine": "auto", "vllm": {"memory": 0.5}}
SEQUENCES = [([9, 10, 11], [20, 21]), ([30], [31, 32, 33])]


def test_auto_is_transformers_without_a_gpu_and_a_named_engine_is_taken_as_it_is():
    assert engine_name(EXECUTION) == "transformers"
    assert engine_name({**EXECUTION, "engine": "vllm"}) == "vllm"
    assert engine_name({**EXECUTION, "device": "cuda", "engine": "transformers"}) == "transformers"


def test_an_engine_of_a_folder_owns_its_model(tiny_model_folder, new_tiny_model, tiny_tokenizer):
    engine = open_engine(tiny_model_folder, execution=EXECUTION)
    other = new_tiny_model(4)
    engine.update(other.named_parameters())
    assert engine.score(SEQUENCES) == TransformersEngine(other, tiny_tokenizer, 8).score(SEQUENCES)
    engine.close()


def test_an_engine_of_a_model_in_training_decodes_with_it(tiny_model_folder, new_tiny_model):
    model = new_tiny_model(5)
    engine = open_engine(tiny_model_folder, execution=EXECUTION, share=True, model=model)
    before = engine.score(SEQUENCES)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    assert engine.score(SEQUENCES) != before


def test_an_adapter_is_opened_on_its_base_alone(tiny_model_folder, new_adapter):
    engine = open_engine(new_adapter(3), base=tiny_model_folder, execution=EXECUTION)
    plain = open_engine(tiny_model_folder, execution=EXECUTION)
    assert engine.score(SEQUENCES) != plain.score(SEQUENCES)
    plain.load(new_adapter(3), tiny_model_folder)
    assert engine.score(SEQUENCES) == plain.score(SEQUENCES)
    with pytest.raises(ConfigurationError, match="adapter"):
        open_engine(new_adapter(3), execution=EXECUTION)


@pytest.fixture
def saved(tmp_path, new_tiny_model, tiny_tokenizer):
    """A function seed, shape → folder of a random model."""

    def save(seed, **shape):
        folder = tmp_path / f"{seed}-{len(shape)}"
        save_model(new_tiny_model(seed, **shape), tiny_tokenizer, folder)
        return folder

    return save


def test_checkpoints_of_one_architecture_share_an_engine_and_give_what_each_gives_alone(
    saved, tiny_model_folder, new_adapter
):
    folders = [(saved(6), None), (saved(7), None), (new_adapter(3), tiny_model_folder), (saved(6), None)]
    lengths = []
    with Engines(EXECUTION, lambda tokenizer: lengths.append(tokenizer)) as engines:
        found = [(engine := engines.at(*of), engine.score(SEQUENCES)) for of in folders]
    assert len({id(engine) for engine, _ in found}) == 1 == len(lengths)
    alone = [open_engine(folder, base=base, execution=EXECUTION).score(SEQUENCES) for folder, base in folders]
    assert [scores for _, scores in found] == alone
    assert found[0][1] == found[3][1] != found[1][1]


def test_another_architecture_or_tokenizer_closes_the_engine_and_opens_a_new_one(saved):
    first, larger = saved(8), saved(8, layers=3)
    other = shutil.copytree(first, first.parent / "other")
    tokenizer = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"extra": 1}))
    used = []
    with Engines(EXECUTION, lambda tokenizer: None) as engines:
        for folder in (first, larger, first, other):
            used.append(engines.at(folder))
            used[-1].score(SEQUENCES)
    assert len({id(engine) for engine in used}) == 4
    for engine in used:
        with pytest.raises(AttributeError):
            engine.score(SEQUENCES)


def test_an_error_closes_the_engine(saved):
    with pytest.raises(KeyError), Engines(EXECUTION, lambda tokenizer: None) as engines:
        engine = engines.at(saved(9))
        raise KeyError
    with pytest.raises(AttributeError):
        engine.score(SEQUENCES)


def test_graphs_are_captured_for_few_batches_up_to_the_largest():
    assert capture_sizes(1) == [1] and capture_sizes(10) == [1, 2, 4, 8, 10]
    for batch in (64, 256, 1000):
        sizes = capture_sizes(batch)
        assert sizes[-1] == batch and len(sizes) < 30
        assert all(b <= max(a + 8, a * 1.3) for a, b in pairwise(sizes))


def test_models_of_one_architecture_start_from_one_folder(saved, tmp_path):
    first, second, larger = saved(1), saved(2), saved(1, layers=3)
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(config | {"transformers_version": "0", "use_cache": False}))
    found = skeleton(first, tmp_path / "bare")
    assert skeleton(first, tmp_path / "bare") == found == skeleton(second, tmp_path / "bare")
    assert skeleton(larger, tmp_path / "bare") != found
    assert sorted(file.name for file in found.iterdir()) == ["config.json", "generation_config.json"]
    assert len(list((tmp_path / "bare").iterdir())) == 2
