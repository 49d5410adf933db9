"""The models of a real run, exported by their steps' names, and the card in the run's folder."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from tests.exporting.conftest import export, llama_cpp
from tests.exporting.test_exporting import answers_alone
from vibethinker.exporting import checking
from vibethinker.models import load_model, load_tokenizer

pytestmark = pytest.mark.service


@pytest.mark.long
def test_a_run_s_model_is_exported_for_transformers_and_llama_cpp(micro, tmp_path):
    for form in ("hf", "gguf"):
        done = export("signal-2", "--format", form, "--output", tmp_path / form, "--workspace", micro.workspace)
        assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer(tmp_path / "hf")
    wanted = checking.answers(load_model(tmp_path / "hf"), tokenizer)
    assert answers_alone(tmp_path / "hf", checking.QUESTIONS[0]) == wanted[0]
    texts = [tokenizer.decode(ids) for ids in checking.prompts(tokenizer)]
    [found] = llama_cpp({next((tmp_path / "gguf").glob("*.gguf")): texts}, checking.TOKENS)
    assert found["prompts"] == checking.prompts(tokenizer) and found["answers"] == wanted
    card = ModelCard.load(tmp_path / "gguf" / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "gguf"


def test_the_run_s_folder_has_the_final_model_s_card(micro):
    card = ModelCard.load(micro.folder / "model-card.md")
    scores = next(m["scores"] for m in micro.summary["models"] if m["id"] == "signal-2")
    values = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert values["algebra", "avg@2"] == scores["algebra"]["avg@2"]["value"]
    fingerprint = next(s["fingerprint"] for s in micro.summary["steps"] if s["id"] == "signal-2")
    assert fingerprint in card.text and str(micro.workspace) not in card.text
