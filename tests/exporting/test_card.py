"""Model cards: metadata that the hub's library reads, and text that shows what it quotes as text."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from vibethinker.artifacts import Artifact, write_json
from vibethinker.exporting import card
from vibethinker.exporting.finding import Found

SCORE = {"value": 0.4375, "low": 0.31, "high": 0.5, "problems": 16, "samples": 4}
EVIL = "<script>alert(1)</script> | `x`"


@pytest.fixture
def new_found(tmp_path):
    """A function of settings → a final model whose run has scores, a step back, and a warning of an evil name."""

    def make(**config: Any) -> Found:
        run, model = tmp_path / "runs" / "r", tmp_path / "artifacts" / "signal-1" / "f"
        run.mkdir(parents=True)
        values = {
            "profile": "own",
            "evaluation": {"temperature": 1.0, "max_tokens": 64},
            "data": {"train": []},
            **config,
        }
        (run / "config.yaml").write_text(yaml.safe_dump(values))
        change = {"baseline": "base", "candidate": "signal-1", "difference": -0.05, "low": -0.08, "high": -0.02,
                  "kind": "recipe", "scope": "code", "metric": "avg@4", "significant": True, "problems": 9}  # fmt: skip
        scores = {"sums": {"avg@4": SCORE, "mean_tokens": {**SCORE, "value": 30.5, "low": 29.0, "high": 32.0}}}
        write_json(
            run / "summary.json",
            {"schema": 1, "run_id": "r", "steps": [], "warnings": [f"signal-1 met {EVIL}"], "comparisons": [change],
             "models": [{"id": "signal-1", "path": str(model), "scores": {**scores, EVIL: {"avg@4": SCORE}}}]},
        )  # fmt: skip
        settings = {
            "objective": {"batch_size": 16, "group_size": 4, "method": "full", "learning_rate": 1e-4, "lambda": 1.0},
            "stage": {"name": "math", "reward": "math", "steps": 3, "context": 96},
        }
        manifest = {"step": "signal-1", "fingerprint": "f" * 64, "files": {}, "kind": "signal", "settings": settings,
                    "metrics": {}, "seed": 1, "revision": "abc", "versions": {"torch": "2.13.0"}}  # fmt: skip
        return Found(model, None, "signal-1", Artifact(model, manifest), run)

    return make


def test_metadata_name_scores_with_their_intervals(new_found):
    hub = {"name": "sums", "hub": {"id": "someone/sums", "revision": "0" * 40}}
    found = new_found(base_model={"source": "Qwen/Qwen3-0.6B"}, data={"train": [hub], "filters": {"languages": ["en"]}})
    data = ModelCard(card.render(found)).data
    assert (data.base_model, data.datasets, data.pipeline_tag) == (
        "Qwen/Qwen3-0.6B",
        ["someone/sums"],
        "text-generation",
    )
    assert (data.license, data.license_link) == ("other", "https://huggingface.co/Qwen/Qwen3-0.6B")
    assert data.library_name == "transformers" and "mgpo" in data.tags and data.language == ["en"]
    [other, result] = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("sums", "avg@4", 0.4375)
    assert result.metric_args == {"low": 0.31, "high": 0.5, "problems": 16, "samples": 4}
    assert other.dataset_name == EVIL  # in YAML it is but a text


def test_the_text_says_what_was_measured_and_what_got_worse(new_found):
    text = card.render(new_found(base_model={"source": "embedded"}), gguf="m.gguf")
    assert "license: mit" in text and "llama-cli -m m.gguf" in text
    assert "| sums | avg@4 | 43.8 % | 31.0 to 50.0 | 16 | 4 |" in text and "| 30.5 | 29.0 to 32.0 |" in text
    assert "It is worse than base on code (avg@4 -5.0 points, 95 % interval -8.0 to -2.0)." in text
    assert "MGPO on math, reward math, 3 updates of 16 rollouts in groups of 4" in text
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body and "&lt;script&gt;" in body and "\\| \\`x\\`" in body


def test_no_path_of_this_machine_is_told(new_found, tmp_path):
    text = card.render(new_found(base_model={"source": str(tmp_path)}))
    assert str(tmp_path) not in text and "license_name: unstated" in text


def test_a_model_from_elsewhere_says_that_nothing_is_known(tmp_path):
    text = card.render(Found(tmp_path / "mine", None, "mine"), licence="apache-2.0")
    assert "license: apache-2.0" in text and "isn't known here" in text and "None are known." in text
    assert str(tmp_path) not in text
