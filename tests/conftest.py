"""Fixtures that several rooms' tests share: a tiny random Qwen3 model with its tokenizer, in memory and as a
folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deselection import pytest_addoption, pytest_ignore_collect  # noqa: F401 (hooks)
from tests.distribution import pytest_collection_modifyitems, pytest_xdist_make_scheduler  # noqa: F401 (hooks)
from tests.slack import Slack, listening

# Tiny models gain little by more threads, and threads that wait for one another are slow where others compute too: of
# test_trainer.py, on two busy cores, 61 s of CPU time became 19. Steps have as many threads as their settings say.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TEXTS = (
    "What is 3 + 4?",
    "Let x be the number, so 2 * x = 10.",
    "The answer is \\boxed{7}.",
    "def f(a, b): return a",
)


@pytest.fixture
def slack() -> Iterator[Slack]:
    """Slack, so to speak."""
    with listening() as one:
        yield one


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from vibethinker.embedded.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS, vocabulary=320, positions=128)


@pytest.fixture(scope="session")
def new_tiny_model(tiny_tokenizer):
    """A function seed → random model of 2 layers in evaluation mode."""
    import torch

    from vibethinker.embedded.model import new_model
    from vibethinker.settings import EmbeddedModel

    def build(seed: int, **overrides):
        shape = {"hidden_size": 32, "layers": 2, "intermediate_size": 64, "vocabulary": 320, "positions": 128}
        torch.manual_seed(seed)
        return new_model(EmbeddedModel(**{**shape, **overrides}), tiny_tokenizer).eval()

    return build


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory, new_tiny_model, tiny_tokenizer) -> Path:
    """A complete model folder; read only."""
    from vibethinker.models import save_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(new_tiny_model(0), tiny_tokenizer, folder)
    return folder


class Emitted:
    """An emitter that keeps what it was told."""

    def __init__(self) -> None:
        self.positions: list[tuple[int, int, str]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.warnings: list[str] = []

    def progress(self, done, total, text="") -> None:
        self.positions.append((done, total, text))

    def metrics(self, step, values) -> None:
        self.rows.append((step, dict(values)))

    def warning(self, text) -> None:
        self.warnings.append(text)


@pytest.fixture
def new_step(tmp_path):
    """A function settings, inputs, **execution → context of a step with an empty output folder of its own."""
    from vibethinker.steps import StepContext

    made = 0

    def make(settings, inputs=None, **execution):
        nonlocal made
        made += 1
        output, state = tmp_path / f"out-{made}", tmp_path / f"state-{made}"
        output.mkdir()
        state.mkdir()
        defaults = {
            "device": "cpu",
            "threads": 1,
            "sft_micro_tokens": 1024,
            "signal_micro_tokens": 1024,
            "generation_batch": 64,
            "sandbox": {},
            "verifier_workers": 1,
            "backend": "transformers",
            "paths": {},
        }
        return StepContext("step", settings, defaults | execution, inputs or {}, output, state, Emitted())

    return make
