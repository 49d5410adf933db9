"""Fixtures of the training tests: data with two domains, and a tiny model that is sometimes right."""

from __future__ import annotations

from pathlib import Path

import pytest

from vibethinker.data.schema import Problem, Trace, write_records

SUMS = [(a, b) for a in range(1, 7) for b in range(1, 7)]


def a_problem(a: int, b: int, domain: str) -> Problem:
    answer = a + b if domain == "algebra" else a * b
    sign = "+" if domain == "algebra" else "*"
    return Problem(f"{domain}-{a}-{b}", domain, f"{a}{sign}{b}?", "test", "MIT", answer=str(answer))


def a_trace(problem: Problem) -> Trace:
    text = f"<think>{problem.problem[:-1]}={problem.answer}</think>\\boxed{{{problem.answer}}}"
    return Trace(problem.id, problem.domain, problem.problem, text, "test")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> Path:
    """What the data step leaves, for algebra (sums) and geometry (products) of small numbers; read only."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("sft", "rl"):
        (folder / part).mkdir()
    for domain in ("algebra", "geometry"):
        problems = [a_problem(a, b, domain) for a, b in SUMS]
        write_records(folder / "rl" / f"{domain}.parquet", Problem, problems)
        write_records(folder / "sft" / f"{domain}.parquet", Trace, [a_trace(problem) for problem in problems])
    return folder


@pytest.fixture(scope="session")
def taught_folder(tmp_path_factory, data_folder, tiny_tokenizer, new_tiny_model) -> Path:
    """The tiny model after some training on sums and products: it answers in form, and is right now and then."""
    import torch

    from tests.conftest import Emitted
    from vibethinker.data.schema import read_records
    from vibethinker.models import save_model, seed_everything
    from vibethinker.settings import Prompts, Sft
    from vibethinker.training.common import Run
    from vibethinker.training.sft import fine_tune, to_examples

    folder = tmp_path_factory.mktemp("taught")
    traces = [t for f in sorted((data_folder / "sft").glob("*.parquet")) for t in read_records(f, Trace)]
    examples, _ = to_examples(tiny_tokenizer, traces, Prompts(), 128)
    run = Run(1, True, "cpu", torch.float32, 4096, Emitted(), folder / "metrics.jsonl", folder / "state")
    seed_everything(1)
    model = new_tiny_model(1)
    fine_tune(model, tiny_tokenizer, examples, Sft(steps=160, batch_size=24, learning_rate=1e-2, checkpoints=1), run)
    save_model(model, tiny_tokenizer, folder)
    return folder
